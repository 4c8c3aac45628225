"""The measured service: each request makes five calls, two to PostgreSQL, two to Redis and one over HTTP."""

import asyncio
import os
import ssl
from contextlib import asynccontextmanager

import asyncpg
import httpx
import redis.asyncio as redis
from fastapi import FastAPI


async def keep_as_it_is(connection):
    """Instead of the pool's own reset, which would be a third query on each release."""


@asynccontextmanager
async def lifespan(app: FastAPI):
    authority = os.environ.get("BENCH_AUTHORITY")
    trust = ssl.create_default_context(cafile=authority) if authority else True
    async with (
        asyncpg.create_pool(os.environ["BENCH_DATABASE"], min_size=16, max_size=16, reset=keep_as_it_is) as app.state.database,
        redis.from_url(os.environ["BENCH_CACHE"]) as app.state.cache,
        httpx.AsyncClient(base_url=os.environ["BENCH_PEER"], timeout=20, verify=trust) as app.state.peer,
    ):
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/work/{number}")
async def work(number: int):
    database, cache = app.state.database, app.state.cache
    row, views = await asyncio.gather(
        database.fetchrow("SELECT title, price_cents FROM products WHERE id = $1", number),
        cache.incr(f"views:{number}"),
    )
    level = await database.fetchval("SELECT available FROM levels WHERE sku = $1", f"sku-{number}")
    note = await cache.get("note")
    answer = await app.state.peer.get(f"/answers/{number}")
    return {"title": row["title"], "views": views, "level": level, "note": note, "answer": answer.text}
