"""The service behind the services: answers every GET with a small JSON body. `python upstream.py PORT [CERTIFICATE KEY]`.

The header `x-after` says how the connection goes on: `unwrap` (TLS ends and the socket goes on in the clear), `notify` (the body
ends with TLS) or `cut` (the body ends with the socket).
"""

import contextlib
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        after = self.headers.get("x-after")
        body = b'{"up": true}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        if after in ("notify", "cut"):
            self.send_header("connection", "close")
        else:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if after == "unwrap":
            self.request = self.request.unwrap()
            self.setup()
        elif after == "notify":
            # The client does not say that it has finished.
            with contextlib.suppress(OSError):
                self.request.unwrap()

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256


    def get_request(self):
        connection, address = super().get_request()
        if len(sys.argv) > 2:
            # The handshake is the handler's, in its own thread.
            connection = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address


if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
