"""Serves in the clear, and imports `ssl` when the first request needs it. `python late_tls.py PORT`."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import common


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        import http.client
        import ssl

        authority = common.UPSTREAM.removeprefix("https://")
        context = ssl.create_default_context(cafile=common.CA)
        connection = http.client.HTTPSConnection(authority, context=context)
        connection.request("GET", f"/up/{self.path.rpartition('/')[2]}/0")
        connection.getresponse().read()
        connection.close()
        body = b"{}"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
