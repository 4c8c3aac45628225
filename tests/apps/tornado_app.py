"""Tornado, with its own client, which lets no more than ten calls run at once. `python tornado_app.py PORT`."""

import asyncio
import sys

import tornado.web
from tornado.httpclient import AsyncHTTPClient

import common
import nonblocking as nb
import routes


class Route(tornado.web.RequestHandler):
    async def get(self, route, n):
        if route == "fetch":
            ops = [await nb.kv(n, 0), await fetch(n, 1)]
            ops += await asyncio.gather(fetch(n, 2), fetch(n, 3))
            self.write({"ops": ops})
        elif route == "leftover":
            await self.finish({"ops": [await nb.kv(n, 0), f"redis:{n}:1", f"redis:{n}:2"]})
            await nb.kv(n, 1)
            await asyncio.sleep(0.01)
            await nb.kv(n, 2)
        else:
            self.write({"ops": await routes.run(route, n)})


async def fetch(n, i):
    await AsyncHTTPClient().fetch(common.url(n, i))
    return f"http:{n}:{i}"


async def main():
    if not routes.LAZY:
        await nb.start()
    tornado.web.Application([(r"/(\w+)/(\d+)", Route)]).listen(int(sys.argv[1]), "127.0.0.1")
    await asyncio.Event().wait()


asyncio.run(main())
