"""Requests whose time goes where their route says."""

import asyncio
import contextlib
import threading
import time

import asyncpg
from fastapi import FastAPI

import common
from account import burn

TIME = 0.12


wanted = threading.Event()


def want_the_lock():
    while wanted.wait():
        sum(range(1000))


def hold_the_loop():
    time.sleep(3 * TIME)


@contextlib.asynccontextmanager
async def lifespan(_app):
    global pool
    for _ in range(3):
        threading.Thread(target=want_the_lock, daemon=True).start()
    pool = await asyncpg.create_pool(common.POSTGRES, min_size=2, max_size=8)
    yield


async def answered_late():
    await pool.fetchval("SELECT 1 FROM pg_sleep($1)", TIME)


app = FastAPI(lifespan=lifespan)


@app.get("/burn/{n}")
async def on_the_loop(n: int):
    burn(TIME)
    return {}


@app.get("/pool/{n}")
def in_the_pool(n: int):
    burn(TIME)
    return {}


@app.get("/sleep/{n}")
async def sleep(n: int):
    await asyncio.sleep(TIME)
    return {}


@app.get("/pg/{n}")
async def postgres(n: int):
    await answered_late()
    return {}


@app.get("/both/{n}")
async def both(n: int):
    await answered_late()
    burn(TIME)
    return {}


@app.get("/gil/{n}")
def lock(n: int):
    wanted.set()
    burn(TIME / 2)
    wanted.clear()
    return {}


@app.get("/hold/{n}")
async def hold(n: int):
    hold_the_loop()
    return {}


@app.get("/hold_burning/{n}")
async def hold_burning(n: int):
    burn(3 * TIME)
    return {}


@app.get("/wait/{n}")
async def wait(n: int):
    for _ in range(10):
        await asyncio.sleep(TIME / 10)
    return {}
