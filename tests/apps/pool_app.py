"""A FastAPI service that has its work done by thread pools and threads, which are given no context."""

import asyncio
import concurrent.futures
import contextlib
import functools
import queue
import threading

import anyio.to_thread
import redis.asyncio
from fastapi import FastAPI

import blocking
import common
import nonblocking as nb


@contextlib.asynccontextmanager
async def lifespan(_app):
    await nb.start()
    yield


app = FastAPI(lifespan=lifespan)
# Fewer workers than there are requests: items wait in the queue.
SMALL = concurrent.futures.ThreadPoolExecutor(4)
LARGE = concurrent.futures.ThreadPoolExecutor(16)


def submitted(*calls):
    return [call.result() for call in [SMALL.submit(*call) for call in calls]]


@app.get("/executor/{n}")
async def executor(n: int):
    """The loop's own pool, and work of the task itself beside it."""
    loop = asyncio.get_running_loop()
    calls = [loop.run_in_executor(None, call, n, i) for i, call in enumerate((blocking.kv, blocking.http))]
    return {"ops": await asyncio.gather(*calls, nb.kv(n, 2))}


@app.get("/backlog/{n}")
async def backlog(n: int):
    loop = asyncio.get_running_loop()
    calls = (blocking.kv, blocking.http, blocking.pg)
    return {"ops": await asyncio.gather(*[loop.run_in_executor(SMALL, call, n, i) for i, call in enumerate(calls)])}


@app.get("/nested/{n}")
async def nested(n: int):
    """An item that submits items."""

    def outer():
        return [blocking.kv(n, 0), *submitted((blocking.kv, n, 1), (blocking.http, n, 2)), blocking.kv(n, 3)]

    return {"ops": await asyncio.get_running_loop().run_in_executor(LARGE, outer)}


@app.get("/inside/{n}")
async def inside(n: int):
    """A thread with a copied context that submits items."""
    return {"ops": await anyio.to_thread.run_sync(submitted, (blocking.kv, n, 0), (blocking.kv, n, 1))}


@app.get("/mapped/{n}")
async def mapped(n: int):
    """A synchronous iterator over the results."""
    call = functools.partial(blocking.kv, n)
    return {"ops": await anyio.to_thread.run_sync(lambda: list(SMALL.map(call, range(3))))}


@app.get("/copied/{n}")
async def copied(n: int):
    """Threads of the loop's pool that run in a copied context, then in none."""
    loop = asyncio.get_running_loop()
    first = await anyio.to_thread.run_sync(blocking.kv, n, 0)
    return {"ops": [first, await loop.run_in_executor(None, blocking.kv, n, 1), await nb.kv(n, 2)]}


@app.get("/forgotten/{n}")
async def forgotten(n: int):
    """Nobody waits for it."""
    asyncio.get_running_loop().run_in_executor(LARGE, blocking.kv, n, 1)
    return {"ops": [await nb.kv(n, 0), f"redis:{n}:1"]}


@app.get("/loops/{n}")
async def loops(n: int):
    """An item that runs an event loop of its own, and does more work afterwards."""

    async def client(i):
        async with redis.asyncio.Redis.from_url(common.REDIS) as connection:
            await connection.set(common.key(n, i), "value")

    async def both():
        await asyncio.gather(client(1), client(2))

    def item():
        before = blocking.kv(n, 0)
        asyncio.run(both())
        return [before, f"redis:{n}:1", f"redis:{n}:2"]

    return {"ops": await asyncio.get_running_loop().run_in_executor(LARGE, item)}


@app.get("/thread/{n}")
def thread(n: int):
    """A thread for each call, joined."""
    ops = []
    threads = [threading.Thread(target=lambda i=i: ops.append(blocking.kv(n, i))) for i in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return {"ops": ops}


def consume(items):
    while True:
        n, done = items.get()
        done.set_result(blocking.kv(n, 0))


@functools.lru_cache(maxsize=None)
def flusher_thread():
    items = queue.Queue()
    threading.Thread(target=consume, args=(items,), daemon=True).start()
    return items


@functools.lru_cache(maxsize=None)
def flusher_item():
    items = queue.Queue()
    concurrent.futures.ThreadPoolExecutor(1).submit(consume, items)
    return items


def flushed(items, n):
    done = concurrent.futures.Future()
    items.put((n, done))
    return {"ops": [done.result()]}


@app.get("/flusher_thread/{n}")
def by_flusher_thread(n: int):
    """A thread that the first request started works for all."""
    return flushed(flusher_thread(), n)


@app.get("/flusher_item/{n}")
def by_flusher_item(n: int):
    """An item that the first request submitted works for all, and never ends."""
    return flushed(flusher_item(), n)
