"""An aiohttp server and client with psycopg's async side and threads. `python aiohttp_app.py PORT`."""

import asyncio
import contextvars
import functools
import sys

import aiohttp
from aiohttp import web

import blocking
import common
import nonblocking as nb


async def in_thread(call, *arguments):
    """asyncio.to_thread, which Python 3.8 lacks."""
    run = functools.partial(contextvars.copy_context().run, call, *arguments)
    return await asyncio.get_running_loop().run_in_executor(None, run)


async def call(request, n, i):
    async with request.app["session"].get(common.url(n, i)) as response:
        await response.read()
    return f"http:{n}:{i}"


async def work(request):
    n = request.match_info["n"]
    ops = [await nb.pg3(n, 0), await nb.kv(n, 1), await call(request, n, 2)]
    ops += await asyncio.gather(nb.pg3(n, 3), nb.pg(n, 4), in_thread(blocking.kv, n, 5), call(request, n, 6))
    return web.json_response({"ops": ops})


async def clients(application):
    await nb.start()
    async with aiohttp.ClientSession() as session:
        application["session"] = session
        yield


app = web.Application()
app.cleanup_ctx.append(clients)
app.router.add_get("/work/{n}", work)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
