"""Serves in the clear, and calls back ends over TLS. What a route needs it imports when it is first asked for, `ssl` too, so
that the OpenSSLs of this process (the interpreter's, and those in wheels) come one by one. `python tls_clients.py PORT`.
"""

import contextlib
import ctypes
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import common

AUTHORITY = common.UPSTREAM.removeprefix("https://")
PORT = int(AUTHORITY.rpartition(":")[2])


def late(n):
    """The standard library's client."""
    import http.client
    import ssl

    connection = http.client.HTTPSConnection(AUTHORITY, context=ssl.create_default_context(cafile=common.CA))
    connection.request("GET", f"/up/{n}/0")
    connection.getresponse().read()
    connection.close()
    return [f"http:{n}:0"]


def wheels(n, host="127.0.0.1"):
    """Three wheels that bring an OpenSSL each, one of them linked in, and clients that use the interpreter's."""
    import psycopg
    import psycopg2
    import redis
    import requests
    import urllib3

    postgres, upstream = (url.replace("127.0.0.1", host) for url in (common.POSTGRES, common.UPSTREAM))
    for i, library in enumerate((psycopg2, psycopg)):
        connection = library.connect(postgres)
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(common.sql(n, i))
        cursor.fetchone()
        connection.close()
    with contextlib.closing(redis.Redis.from_url(common.REDIS.replace("127.0.0.1", host))) as client:
        client.set(common.key(n, 2), "value")
    with urllib3.PoolManager(ca_certs=common.CA) as pool:
        assert pool.request("GET", f"{upstream}/up/{n}/3").status == 200
    requests.get(f"{upstream}/up/{n}/4", verify=common.CA).raise_for_status()
    with pyopenssl() as connection:
        get(connection, n, 5, host=f"{host}:{PORT}")
    return [f"pg:{n}:0", f"pg:{n}:1", f"redis:{n}:2", *(f"http:{n}:{i}" for i in range(3, 6))]


def named(n):
    """The server is known by its name, which only the handshake tells."""
    import asyncio

    import asyncpg

    async def query():
        connection = await asyncpg.connect(common.POSTGRES.replace("127.0.0.1", "localhost"))
        await connection.fetchval(common.sql(n, 6))
        await connection.close()

    operations = wheels(n, "localhost")
    asyncio.run(query())
    # Without a Host.
    with secured() as connection:
        connection.sendall(f"GET /up/{n}/7 HTTP/1.0\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    return [*operations, f"pg:{n}:6", f"http:{n}:7"]


def secured():
    import socket
    import ssl

    context = ssl.create_default_context(cafile=common.CA)
    return context.wrap_socket(socket.create_connection(("127.0.0.1", PORT)), server_hostname="localhost")


@contextlib.contextmanager
def pyopenssl():
    import socket

    from OpenSSL import SSL

    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.load_verify_locations(common.CA)
    with socket.create_connection(("127.0.0.1", PORT)) as carrier:
        connection = SSL.Connection(context, carrier)
        connection.set_connect_state()
        connection.do_handshake()
        yield connection


def get(connection, n, i, header="", host=AUTHORITY):
    """A GET, and the head of the response with as much of the body as has come with it."""
    connection.sendall(f"GET /up/{n}/{i} HTTP/1.1\r\nhost: {host}\r\n{header}\r\n".encode())
    reply = connection.recv(65536)
    while b"\r\n\r\n" not in reply or not (reply.endswith(b"}") or b"content-length" not in reply):
        reply += connection.recv(65536)
    assert reply.startswith(b"HTTP/1.1 200"), reply


def ends(n):
    """Connections that end in every way: TLS before the socket, the socket before TLS, one direction before the other."""
    import socket
    import ssl

    with secured() as connection:
        get(connection, n, 0)
        get(connection, n, 1, "x-after: unwrap\r\n")
        plain = connection.unwrap()
        get(plain, n, 2)
        get(plain, n, 3)
        plain.close()
    # The end of the body is that of the connection: told, or not.
    for i, way in (4, "notify"), (5, "cut"):
        with secured() as connection:
            get(connection, n, i, f"x-after: {way}\r\n")
            while connection.recv(65536):
                pass
    # The client says that it has finished before the server answers.
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=common.CA)
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", PORT)) as connection:

        def moved(step):
            while True:
                wanted = False
                try:
                    result = step()
                except ssl.SSLWantReadError:
                    wanted = True
                if outgoing.pending:
                    connection.sendall(outgoing.read())
                if not wanted:
                    return result
                incoming.write(connection.recv(65536))

        moved(tls.do_handshake)
        moved(lambda: tls.write(f"GET /up/{n}/6 HTTP/1.1\r\nhost: {AUTHORITY}\r\n\r\n".encode()))
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        connection.sendall(outgoing.read())
        assert moved(lambda: tls.read(65536)).startswith(b"HTTP/1.1 200")
    return [f"http:{n}:{i}" for i in range(7)]


def odd(n):
    """A library with OpenSSL's functions that nobody can put a probe on."""
    if n == 0:
        ctypes.CDLL(sys.argv[2])
    return late(n)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        _, route, n = self.path.split("/")
        body = json.dumps({"ops": globals()[route](int(n))}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
