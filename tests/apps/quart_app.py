"""Quart, the ASGI side of Flask."""

from quart import Quart

import nonblocking as nb
import routes

app = Quart(__name__)


@app.before_serving
async def start():
    if not routes.LAZY:
        await nb.start()


@app.get("/<route>/<int:n>")
async def route(route, n):
    return {"ops": await routes.run(route, n)}
