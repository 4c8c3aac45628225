"""BlackSheep: an ASGI framework in Cython, with an HTTP client of its own that it does not need here."""

from blacksheep import Application, get, json

import nonblocking as nb
import routes

app = Application()


@app.on_start
async def start(_):
    if not routes.LAZY:
        await nb.start()


@get("/{route}/{n}")
async def route(route: str, n: int):
    return json({"ops": await routes.run(route, n)})
