"""A process for each connection. `python forking_app.py PORT`."""

import json
import os
import socketserver
import sys

import redis

import common


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        if not line:
            return
        while self.rfile.readline().strip():
            pass
        n = int(line.split(b" ")[1].rsplit(b"/", 1)[1])
        client = redis.Redis.from_url(common.REDIS)
        ops = []
        for i in range(3):
            client.set(common.key(n, i), "value")
            ops.append(f"redis:{n}:{i}")
        body = json.dumps({"ops": ops, "pid": os.getpid()}).encode()
        self.wfile.write(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )


class Server(socketserver.ForkingTCPServer):
    allow_reuse_address = True
    request_queue_size = 512
    max_children = 16


Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
