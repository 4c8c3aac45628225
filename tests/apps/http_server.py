"""The standard library's HTTP server. `python http_server.py PORT [threads]`: one request at a time, or a thread for each
connection. Its handlers may go on working when the response is out."""

import asyncio
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import blocking
import raw


async def nested(n):
    """An event loop for this request only."""
    calls = [asyncio.to_thread(blocking.kv, n, 0), asyncio.to_thread(blocking.http, n, 1)]
    ops = await asyncio.gather(*calls)
    return [*ops, blocking.kv(n, 2)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1" if "threads" in sys.argv else "HTTP/1.0"

    def do_GET(self):
        _, route, n = self.path.split("/")
        if route == "nested":
            self.wfile.write(raw.answer([blocking.pg(n, 3), *asyncio.run(nested(n))]))
        elif route == "leftover":
            self.wfile.write(raw.answer([blocking.kv(n, 0), f"redis:{n}:1"]))
            blocking.kv(n, 1)
        else:
            self.wfile.write(raw.answer([blocking.pg(n, 0), blocking.kv(n, 1), blocking.http(n, 2), blocking.kv(n, 3)]))

    def log_message(self, *args):
        pass


class Single(HTTPServer):
    request_queue_size = 256


class Threads(ThreadingHTTPServer):
    request_queue_size = 256


(Threads if "threads" in sys.argv else Single)(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
