"""A Flask service that has its work done by thread pools and threads; its own threads may be those of a pool, too."""

import asyncio
import concurrent.futures
import multiprocessing.pool
import sys
import threading

import redis.asyncio
from flask import Flask

import blocking
import common

app = Flask(__name__)
POOL = concurrent.futures.ThreadPoolExecutor(4)
WORKERS = multiprocessing.pool.ThreadPool(4)


@app.get("/shared/<int:n>")
def shared(n):
    items = [POOL.submit(call, n, i) for i, call in enumerate((blocking.kv, blocking.http, blocking.pg))]
    return {"ops": [blocking.kv(n, 3)] + [item.result() for item in items]}


@app.get("/mapped/<int:n>")
def mapped(n):
    return {"ops": list(POOL.map(lambda i: blocking.kv(n, i), range(3)))}


@app.get("/own/<int:n>")
def own(n):
    """A pool for the request alone."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ops = list(pool.map(lambda i: blocking.kv(n, i), range(3)))
    return {"ops": [*ops, blocking.kv(n, 3)]}


@app.get("/thread/<int:n>")
def thread(n):
    ops = []
    threads = [threading.Thread(target=lambda i=i: ops.append(blocking.kv(n, i))) for i in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return {"ops": [*ops, blocking.kv(n, 2)]}


@app.get("/below/<int:n>")
def below(n):
    """An item that starts a thread."""

    def item():
        thread = threading.Thread(target=blocking.kv, args=(n, 1))
        thread.start()
        thread.join()
        return [blocking.kv(n, 0), f"redis:{n}:1"]

    return {"ops": POOL.submit(item).result()}


@app.get("/view/<int:n>")
async def view(n):
    """Flask has asgiref run it, on a loop in the only thread of a pool of its own."""
    async with redis.asyncio.Redis.from_url(common.REDIS) as connection:
        await connection.set(common.key(n, 0), "value")
        await asyncio.gather(*[connection.set(common.key(n, i), "value") for i in range(1, 3)])
    return {"ops": [f"redis:{n}:{i}" for i in range(3)]}


@app.get("/workers/<int:n>")
def workers(n):
    """Another kind of pool, whose threads are handed tuples."""
    return {"ops": WORKERS.map(lambda i: blocking.kv(n, i), range(3))}


@app.get("/cancelled/<int:n>")
def cancelled(n):
    """Items that the handler takes out of the queue to cancel them."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    items = [pool.submit(blocking.kv, n, i) for i in range(2)]
    items += [pool.submit(sum, [1]) for _ in range(10)]
    done = [item.result() for item in items[:2]]
    if sys.version_info >= (3, 9):
        pool.shutdown(cancel_futures=True)
    return {"ops": [*done, blocking.kv(n, 2)]}
