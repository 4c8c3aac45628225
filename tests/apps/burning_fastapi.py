"""Requests that burn CPU time on the loop, in its tasks and in its threads, all at the same time."""

import asyncio

import anyio.to_thread
from fastapi import FastAPI

import burn

app = FastAPI()
SLICE = 0.02


async def steps(function, count):
    for _ in range(count):
        function(SLICE)
        await asyncio.sleep(0)


@app.get("/loop/{n}")
async def loop(n: int):
    await steps(burn.function(n), 4)
    return {}


@app.get("/tasks/{n}")
async def tasks(n: int):
    function = burn.function(n)
    await asyncio.gather(steps(function, 2), steps(function, 2))
    return {}


@app.get("/pool/{n}")
def pool(n: int):
    burn.function(n)(4 * SLICE)
    return {}


@app.get("/to_thread/{n}")
async def to_thread(n: int):
    function = burn.function(n)
    await asyncio.gather(anyio.to_thread.run_sync(function, 2 * SLICE), steps(function, 2))
    return {}


@app.get("/idle/{n}")
async def idle(n: int):
    await asyncio.sleep(0.01)
    return {}
