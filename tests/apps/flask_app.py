"""A Flask service with the blocking clients; under gevent also with work in child greenlets; with event loops of requests."""

import asyncio

from flask import Flask

import blocking

app = Flask(__name__)


@app.get("/work/<int:n>")
def work(n):
    ops = [blocking.pg(n, 0), blocking.kv(n, 1), blocking.http(n, 2), blocking.kv(n, 3), blocking.pg(n, 4)]
    return {"ops": ops}


@app.get("/spawn/<int:n>")
def spawn(n):
    import gevent

    children = [gevent.spawn(blocking.kv, n, 1), gevent.spawn(blocking.http, n, 2)]
    gevent.joinall(children)
    return {"ops": [blocking.kv(n, 0)] + [child.get() for child in children]}


@app.get("/view/<int:n>")
async def view(n):
    """asgiref runs an event loop for this request, in a thread of its own."""
    await asyncio.sleep(0.001)
    return {"ops": [blocking.kv(n, 0), await asyncio.to_thread(blocking.pg, n, 1)]}


@app.get("/loop/<int:n>")
def loop(n):
    """An event loop for this request, in the worker's thread."""

    async def inner():
        await asyncio.sleep(0.001)
        return [blocking.kv(n, 1), *await asyncio.gather(asyncio.to_thread(blocking.pg, n, 2), awaited(n, 3))]

    async def awaited(n, i):
        return blocking.kv(n, i)

    return {"ops": [blocking.kv(n, 0), *asyncio.run(inner()), blocking.kv(n, 4)]}
