"""Pre-forked workers that accept on the inherited socket at once, and live briefly. `python prefork_app.py PORT MODE LIFE_MS`.

MODE: `fork` (two workers, asyncio from their first instruction), `fork-pool` (the same, with work in a thread pool), or a start method of multiprocessing (`mp-fork`,
`mp-spawn`, `mp-forkserver`). A worker stops accepting when its time is over, answers what it has accepted, and ends; its
successor starts at that moment. Requests wait in the backlog, so that a worker has its first one before it asks.
"""

import asyncio
import json
import multiprocessing
import os
import socket
import sys
import threading

import redis.asyncio

import common

WORKERS = 2
POOLED = sys.argv[2:3] == ["fork-pool"]


async def serve(listener, life):
    """One request for each connection; the operations of each run concurrently, in tasks of their own."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(common.REDIS, max_connections=16, timeout=60)
    client = redis.asyncio.Redis(connection_pool=pool)
    open_requests = set()

    async def kv(n, i):
        await client.set(common.key(n, i), "value")
        return f"redis:{n}:{i}"

    def blocking(n, i):
        with redis.Redis.from_url(common.REDIS) as connection:
            connection.set(common.key(n, i), "value")
        return f"redis:{n}:{i}"

    async def pooled(n, i):
        return await asyncio.get_running_loop().run_in_executor(None, blocking, n, i)

    async def handle(reader, writer):
        open_requests.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            n = int(head.split(b" ")[1].rsplit(b"/", 1)[1])
            first = [await kv(n, 0)]
            rest = await asyncio.gather(kv(n, 1), kv(n, 2), pooled(n, 3) if POOLED else kv(n, 3))
            body = json.dumps({"ops": first + rest, "pid": os.getpid(), "who": os.environ.get("WHO", "")}).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(body), body)
            )
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            open_requests.discard(writer)

    server = await asyncio.start_server(handle, sock=listener)
    await asyncio.sleep(life)
    server.close()
    while open_requests:
        await asyncio.sleep(0.005)
    # What was accepted in the last turn has its handler by now.
    await asyncio.sleep(0.02)
    while open_requests:
        await asyncio.sleep(0.005)


def worker(listener, life):
    asyncio.run(serve(listener, life))


def listen(port):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(512)
    return listener


def by_fork(listener, life):
    while True:
        pid = os.fork()
        if pid == 0:
            worker(listener, life)
            os._exit(0)
        os.waitpid(pid, 0)


def by_multiprocessing(method, listener, life):
    # Not this module's own: a spawned process imports what it runs by name, and there `__main__` is another module.
    import prefork_app

    context = multiprocessing.get_context(method)
    while True:
        process = context.Process(target=prefork_app.worker, args=(listener, life))
        process.start()
        process.join()


def main():
    port, mode, life = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]) / 1000
    listener = listen(port)
    if mode.startswith("fork"):
        # Each half of the crew has a parent of its own, so that they do not wait for each other.
        for _ in range(WORKERS - 1):
            if os.fork() == 0:
                break
        by_fork(listener, life)
    method = mode.split("-")[1]
    crew = [threading.Thread(target=by_multiprocessing, args=(method, listener, life)) for _ in range(WORKERS)]
    for thread in crew:
        thread.start()


if __name__ == "__main__":
    main()
