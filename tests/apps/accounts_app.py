"""Requests that count their own time: every step of their task on the loop, every job in a worker thread.

A step has a CPU for no longer than it takes, and for no less than the CPU time that it is charged for.
"""

import asyncio
import contextvars
import json
from concurrent.futures import ThreadPoolExecutor

import asyncpg

import common
from account import Account, burn

# Path, CPU seconds and seconds of each request that is over.
accounts = []
workers = ThreadPoolExecutor(4)
pool = None
background = None


class Counted:
    """Awaits a coroutine, and counts its steps."""

    def __init__(self, coroutine, account):
        self.coroutine, self.account = coroutine, account

    def __await__(self):
        steps = self.coroutine.__await__()
        resume = lambda: steps.send(None)
        while True:
            try:
                with self.account.count():
                    wanted = resume()
            except StopIteration as stop:
                return stop.value
            try:
                yield wanted
                resume = lambda: steps.send(None)
            except BaseException as error:
                resume = lambda error=error: steps.throw(error)


def job(seconds, account):
    with account.count():
        burn(seconds)


async def query(seconds):
    await pool.fetchval("SELECT 1 FROM pg_sleep($1)", seconds)


async def part(seconds):
    burn(seconds)
    await asyncio.sleep(0.001)


async def handle(route, seconds, account):
    loop = asyncio.get_running_loop()
    if route == "burn":
        burn(seconds)
    elif route == "sleep":
        await asyncio.sleep(seconds)
    elif route == "steps":
        for _ in range(10):
            burn(seconds / 10)
            await asyncio.sleep(0)
    elif route == "waits":
        for _ in range(5):
            burn(seconds / 5)
            await asyncio.sleep(0.002)
    elif route == "pool":
        await loop.run_in_executor(workers, contextvars.copy_context().run, job, seconds, account)
    elif route == "bare":
        # The worker has no context of the request's.
        await loop.run_in_executor(workers, job, seconds, account)
    elif route == "gather":
        await asyncio.gather(*(counted(part(seconds / 3), account) for _ in range(3)))
    elif route == "both":
        await query(seconds)
        burn(seconds)
    elif route == "pgs":
        for _ in range(4):
            await query(0)
            burn(seconds / 4)
    elif route == "event":
        event = asyncio.Event()
        loop.call_later(0.003, event.set)
        burn(seconds / 2)
        await event.wait()
        burn(seconds / 2)


async def counted(coroutine, account):
    await Counted(coroutine, account)


async def burn_quietly():
    """Is at work on the loop, and does nothing by which that could be seen."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.create_future()
        loop.call_later(0.004, due.set_result, None)
        await due
        burn(0.003)


async def answer(send, body):
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


async def lifespan(receive, send):
    global pool, background
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            pool = await asyncpg.create_pool(common.POSTGRES, min_size=2, max_size=8)
            background = asyncio.ensure_future(burn_quietly())
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    if scope["path"] == "/accounts":
        return await answer(send, json.dumps(accounts).encode())
    _, route, _, seconds = scope["path"].split("/")
    account = Account()

    async def request():
        await handle(route, float(seconds), account)
        await answer(send, b"ok")

    await Counted(request(), account)
    accounts.append([scope["path"], account.cpu, account.wall])
