"""The shop: FastAPI on uvicorn and uvloop, with asyncpg, redis.asyncio and httpx. It knows nothing of tracing."""

import asyncio
import os
from contextlib import asynccontextmanager

import asyncpg
import httpx
import redis.asyncio as redis
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with (
        asyncpg.create_pool(os.environ["SHOP_DATABASE"], min_size=2, max_size=8) as app.state.database,
        redis.from_url(os.environ["SHOP_CACHE"]) as app.state.cache,
        httpx.AsyncClient(base_url=os.environ["SHOP_STOCK"], timeout=10) as app.state.stock,
    ):
        yield


app = FastAPI(lifespan=lifespan)


class Order(BaseModel):
    product_id: int
    quantity: int


@app.get("/health")
async def health():
    return {"cache": await app.state.cache.ping()}


@app.get("/products")
async def products():
    count = await app.state.cache.get("products:count")
    if count is None:
        count = await app.state.database.fetchval("SELECT count(*) FROM products")
        await app.state.cache.set("products:count", count, ex=60)
    rows = await app.state.database.fetch("SELECT id, title FROM products ORDER BY id LIMIT 5")
    return {"count": int(count), "first": [dict(row) for row in rows]}


@app.get("/products/{product_id}")
async def product(product_id: int):
    """Asks the database, the cache and the stock service at the same time."""
    row, views, level = await asyncio.gather(
        app.state.database.fetchrow("SELECT title, price_cents FROM products WHERE id = $1", product_id),
        app.state.cache.incr(f"views:{product_id}"),
        app.state.stock.get(f"/levels/sku-{product_id}"),
    )
    if row is None:
        raise HTTPException(404, "no such product")
    return {**row, "views": views, "available": level.json()["available"]}


@app.post("/orders", status_code=201)
async def order(order: Order):
    reservation = {"sku": f"sku-{order.product_id}", "quantity": order.quantity}
    reserved = await app.state.stock.post("/reservations", json=reservation)
    if reserved.status_code != 200:
        raise HTTPException(409, "not enough in stock")
    async with app.state.database.acquire() as connection, connection.transaction():
        number = await connection.fetchval(
            "INSERT INTO orders (product_id, quantity) VALUES ($1, $2) RETURNING id", order.product_id, order.quantity
        )
    async with app.state.cache.pipeline(transaction=True) as pipeline:
        await pipeline.incrby(f"sold:{order.product_id}", order.quantity).delete("report").execute()
    return {"order": number}


@app.get("/prices/{sku}")
async def price(sku: str):
    """What the stock service asks back before it reserves something."""
    return {"price_cents": await app.state.database.fetchval("SELECT price_cents FROM products WHERE sku = $1", sku)}


@app.get("/report")
async def report():
    """A bug: the table has no such column, so that the response is a 500."""
    return await app.state.database.fetchval("SELECT sum(discount) FROM orders")
