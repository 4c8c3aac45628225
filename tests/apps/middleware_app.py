"""The FastAPI service behind a BaseHTTPMiddleware, which runs the handler in a task of its own."""

from starlette.middleware.base import BaseHTTPMiddleware

import nonblocking as nb
from fastapi_app import app


async def dispatch(request, call_next):
    n = request.url.path.rsplit("/", 1)[-1]
    before = await nb.kv(n, 90)
    response = await call_next(request)
    after = await nb.pg(n, 91)
    response.headers["x-ops"] = f"{before} {after}"
    return response


app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
