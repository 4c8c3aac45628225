"""Sanic: the task of a connection runs the handlers of all its requests. `python sanic_app.py PORT`."""

import asyncio
import sys

from sanic import Sanic
from sanic.response import json

import nonblocking as nb
import routes

app = Sanic("shop", configure_logging=False)


@app.get("/<route>/<n:int>")
async def route(_request, route, n):
    return json({"ops": await routes.run(route, n)})


async def main():
    if not routes.LAZY:
        await nb.start()
    server = await app.create_server("127.0.0.1", int(sys.argv[1]), return_asyncio_server=True, backlog=256)
    await server.startup()
    await server.serve_forever()


asyncio.run(main())
