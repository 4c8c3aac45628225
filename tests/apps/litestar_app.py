"""Litestar, whose synchronous handlers run in threads."""

from litestar import Litestar, get

import blocking
import nonblocking as nb
import routes


async def start():
    if not routes.LAZY:
        await nb.start()


@get("/{route:str}/{n:int}")
async def route(route: str, n: int) -> dict:
    return {"ops": await routes.run(route, n)}


@get("/sync/{n:int}", sync_to_thread=True)
def sync(n: int) -> dict:
    return {"ops": [blocking.pg(n, 0), blocking.kv(n, 1), blocking.http(n, 2)]}


app = Litestar([route, sync], on_startup=[start])
