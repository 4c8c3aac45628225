"""Two services and a client of them, with the standard library only, for a kernel with nothing else on it.

`front` answers /order/N with what `back` says of /item/N, asked over a Unix socket, and of /price/N, asked over IPv6 in
a worker thread, both at once. `client` sends eight orders at once over IPv4. Every answer quotes the path that it is
for, and all wait a little, so that a reader who mixes the requests up is found out.
"""

import asyncio
import socket
import sys
import threading
import urllib.request

ORDERS = 8
ROUNDS = 2
BACK_PATH = "/run/back.sock"
BACK_PORT = 8001
FRONT_PORT = 8000


async def handle(reader, writer, answer):
    while request := await reader.readline():
        path = request.split()[1].decode()
        while await reader.readline() != b"\r\n":
            pass
        body = (await answer(path)).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
    writer.close()


async def back(path):
    await asyncio.sleep(0.05)
    return path


async def over_unix(path):
    reader, writer = await asyncio.open_unix_connection(BACK_PATH)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: back\r\n\r\n".encode())
    headers = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(int(headers.split(b"Content-Length: ")[1].split()[0]))
    writer.close()
    return body.decode()


def over_ipv6(path):
    with urllib.request.urlopen(f"http://[::1]:{BACK_PORT}{path}") as response:
        return response.read(4096).decode()


async def front(path):
    number = path.rsplit("/", 1)[1]
    await asyncio.sleep(0.05)
    item, price = await asyncio.gather(
        over_unix(f"/item/{number}"), asyncio.to_thread(over_ipv6, f"/price/{number}")
    )
    return f"{path} {item} {price}"


async def serve(name):
    if name == "back":
        await asyncio.start_unix_server(lambda r, w: handle(r, w, back), BACK_PATH)
        await asyncio.start_server(lambda r, w: handle(r, w, back), "::1", BACK_PORT)
    else:
        await asyncio.start_server(lambda r, w: handle(r, w, front), "127.0.0.1", FRONT_PORT)
    await asyncio.Event().wait()


def order(number):
    # A message in two pieces each way is a list of buffers for the kernel programs.
    with socket.create_connection(("127.0.0.1", FRONT_PORT)) as connection:
        connection.sendmsg([f"GET /order/{number} HTTP/1.1\r\n".encode(), b"Host: front\r\n\r\n"])
        expected = f"/order/{number} /item/{number} /price/{number}"
        answer = b""
        while not answer.endswith(expected.encode()):
            received = connection.recvmsg(4096)[0]
            if not received:
                sys.exit(f"order {number} was answered with {answer!r}")
            answer += received


def client():
    for turn in range(ROUNDS):
        threads = [
            threading.Thread(target=order, args=(turn * ORDERS + number,)) for number in range(1, ORDERS + 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print("client: done", flush=True)


if sys.argv[1] == "client":
    client()
else:
    asyncio.run(serve(sys.argv[1]))
