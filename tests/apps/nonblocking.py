"""The asyncio clients: asyncpg, psycopg's async side, redis.asyncio and httpx, opened once per process."""

import ssl

import asyncpg
import httpx
import psycopg_pool
import redis.asyncio

import common

clients = {}


async def start():
    clients["asyncpg"] = await asyncpg.create_pool(common.POSTGRES, min_size=2, max_size=10)
    clients["psycopg"] = psycopg_pool.AsyncConnectionPool(
        common.POSTGRES, min_size=2, max_size=6, timeout=60, open=False, kwargs={"autocommit": True}
    )
    await clients["psycopg"].open()
    pool = redis.asyncio.BlockingConnectionPool.from_url(common.REDIS, max_connections=32, timeout=60)
    clients["redis"] = redis.asyncio.Redis(connection_pool=pool)
    limits = httpx.Limits(max_connections=32, max_keepalive_connections=32)
    verify = ssl.create_default_context(cafile=common.CA) if common.CA else True
    clients["httpx"] = httpx.AsyncClient(limits=limits, timeout=60, trust_env=False, verify=verify)


async def pg(n, i):
    await clients["asyncpg"].fetchval(common.sql(n, i))
    return f"pg:{n}:{i}"


async def pg3(n, i):
    async with clients["psycopg"].connection() as connection:
        await (await connection.execute(common.sql(n, i))).fetchone()
    return f"pg:{n}:{i}"


async def kv(n, i):
    await clients["redis"].set(common.key(n, i), "value")
    return f"redis:{n}:{i}"


async def http(n, i):
    (await clients["httpx"].get(common.url(n, i))).raise_for_status()
    return f"http:{n}:{i}"
