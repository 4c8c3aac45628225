"""A FastAPI service with every way of getting work done: awaits, gather, tasks, threads, background tasks, streams."""

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import queue as queues
import threading

import anyio
import anyio.to_thread
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

import blocking
import common
import nonblocking as nb
import routes


@contextlib.asynccontextmanager
async def lifespan(_app):
    if not routes.LAZY:
        await nb.start()
    yield


async def clients():
    """With TEST_LAZY=1 the first request opens the pools."""
    if routes.LAZY:
        await routes.started()


app = FastAPI(lifespan=lifespan, dependencies=[Depends(clients)])
running = set()


@app.get("/work/{n}")
async def work(n: int):
    ops = [await nb.pg(n, 0), await nb.kv(n, 1), await nb.http(n, 2)]
    early = asyncio.create_task(nb.kv(n, 3))
    ops += await asyncio.gather(nb.pg(n, 4), nb.kv(n, 5), nb.http(n, 6), nb.pg3(n, 7))
    ops.append(await early)
    return {"ops": ops}


@app.get("/sync/{n}")
def sync(n: int):
    return {"ops": [blocking.pg(n, 0), blocking.kv(n, 1), blocking.http(n, 2), blocking.pg(n, 3)]}


@app.get("/to_thread/{n}")
async def to_thread(n: int):
    first = await nb.kv(n, 0)
    threads = [anyio.to_thread.run_sync(blocking.pg, n, 1), anyio.to_thread.run_sync(blocking.kv, n, 2)]
    return {"ops": [first, *await asyncio.gather(*threads)]}


@app.get("/executor/{n}")
async def executor(n: int):
    loop = asyncio.get_running_loop()
    calls = [loop.run_in_executor(None, blocking.kv, n, i) for i in range(2)]
    return {"ops": await asyncio.gather(*calls)}


@app.get("/background/{n}")
async def background(n: int, tasks: BackgroundTasks):
    tasks.add_task(nb.pg, n, 1)
    tasks.add_task(blocking.kv, n, 2)
    return {"ops": [await nb.kv(n, 0), f"pg:{n}:1", f"redis:{n}:2"]}


@app.get("/later/{n}")
async def later(n: int):
    async def afterwards():
        await asyncio.sleep(0.05)
        await nb.kv(n, 1)

    task = asyncio.create_task(afterwards())
    running.add(task)
    task.add_done_callback(running.discard)
    return {"ops": [await nb.kv(n, 0), f"redis:{n}:1"]}


@app.get("/sse/{n}")
async def sse(n: int):
    async def events():
        ops = []
        for i in range(4):
            ops.append(await (nb.pg(n, i) if i % 2 else nb.kv(n, i)))
            await asyncio.sleep(0.01)
            yield f"data: {json.dumps({'ops': ops})}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/orm/{n}")
async def orm(n: int):
    """SQLAlchemy runs its synchronous core in greenlets that switch inside of the task."""
    async with engine().connect() as connection:
        await connection.execute(text(common.sql(n, 0)))
        first = await nb.kv(n, 1)
        await connection.execute(text(common.sql(n, 2)))
    return {"ops": [f"pg:{n}:0", first, f"pg:{n}:2"]}


@app.get("/groups/{n}")
async def groups(n: int):
    """Task groups in task groups, anyio's, which Python 3.8 has as well."""
    ops = []

    async def leaf(call, i):
        ops.append(await call(n, i))

    async def branch(base):
        async with anyio.create_task_group() as group:
            for i, call in enumerate((nb.pg, nb.kv, nb.http)):
                group.start_soon(leaf, call, base + i)

    async with anyio.create_task_group() as group:
        group.start_soon(branch, 0)
        group.start_soon(branch, 10)
        await leaf(nb.kv, 20)
    return {"ops": ops}


@app.get("/boom/{n}")
async def boom(n: int):
    """Fails when some of its work is done."""
    await asyncio.gather(nb.kv(n, 0), nb.pg(n, 1))
    raise RuntimeError("on purpose")


@app.get("/slow/{n}")
async def slow(n: int):
    """Is cancelled by its own time limit in whatever it is doing."""
    ops = []

    async def much():
        for i in range(20):
            ops.append(await (nb.kv(n, i) if i % 2 else nb.pg(n, i)))
            await asyncio.sleep(0.001)

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(much(), 0.02)
    return {"ops": ops}


@app.get("/queue/{n}")
async def queued(n: int):
    """A worker task that the first request created does everybody's work: its lineage is the first request's."""
    global queue
    if queue is None:
        queue = asyncio.Queue()
        task = asyncio.create_task(worker(queue))
        running.add(task)
    done = asyncio.get_running_loop().create_future()
    queue.put_nowait((n, done))
    return {"ops": [await done]}


queue = None


async def worker(items):
    while True:
        n, done = await items.get()
        done.set_result(await nb.kv(n, 0))


def deliver():
    while True:
        n, done = mails.get()
        done.set_result(blocking.kv(n, 0))


mails = queues.Queue()
threading.Thread(target=deliver, daemon=True).start()


@app.get("/mailbox/{n}")
async def mailbox(n: int):
    """A thread that was there before the first request does everybody's work."""
    done = concurrent.futures.Future()
    mails.put((n, done))
    return {"ops": [await asyncio.wrap_future(done)]}


@functools.lru_cache(maxsize=None)
def engine():
    return create_async_engine(common.POSTGRES.replace("postgresql:", "postgresql+asyncpg:"), pool_size=8)


@app.get("/chain/{n}")
async def chain(n: int):
    """Calls the upstream only: what the cross-process test asks the first of two services."""
    return {"ops": [await nb.http(n, 0), *await asyncio.gather(nb.http(n, 1), nb.http(n, 2))]}


@app.get("/up/{n}/{i}")
async def up(n: int, i: int):
    """Serves as the second of two services: one Redis command for each call."""
    return {"ops": [await nb.kv(n, 100 + i)]}
