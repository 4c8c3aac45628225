"""What the small services of one framework each have in common: the routes, as coroutines that know no framework.

`await run(route, n)` does the work of request N and returns the keys of its operations. `started` opens the clients; a
service that never calls it opens them in the first request that needs them (TEST_LAZY=1).
"""

import asyncio
import os

import blocking
import nonblocking as nb

LAZY = os.environ.get("TEST_LAZY") == "1"
tasks = set()
_opening = None
_queue = None


async def started():
    """Opens the clients once. With TEST_LAZY=1 that is inside of the first request: pools and their housekeeping are its."""
    global _opening
    if _opening is None:
        _opening = asyncio.ensure_future(nb.start())
    await asyncio.shield(_opening)


async def run(route, n):
    if LAZY:
        await started()
    return await ROUTES[route](n)


async def work(n):
    ops = [await nb.pg(n, 0), await nb.kv(n, 1), await nb.http(n, 2)]
    early = asyncio.create_task(nb.kv(n, 3))
    ops += await asyncio.gather(nb.pg3(n, 4), nb.kv(n, 5), nb.http(n, 6))
    return [*ops, await early]


async def thread(n):
    return [await nb.kv(n, 0), await asyncio.to_thread(blocking.kv, n, 1)]


async def later(n):
    """A task that outlives the response, twice asleep."""

    async def afterwards():
        for i in (1, 2):
            await asyncio.sleep(0.03)
            await nb.kv(n, i)

    keep(asyncio.create_task(afterwards()))
    return [await nb.kv(n, 0), f"redis:{n}:1", f"redis:{n}:2"]


async def timeout(n):
    """Work that is cancelled while it waits, and other work after it."""
    ops = []

    async def slow():
        ops.append(await asyncio.shield(nb.kv(n, 1)))
        await asyncio.sleep(30)

    try:
        await asyncio.wait_for(slow(), 0.1)
    except asyncio.TimeoutError:
        pass
    return [*ops, await nb.kv(n, 0)]


async def queue(n):
    """The first request makes a worker task, which then does everybody's commands."""
    global _queue
    if _queue is None:
        _queue = asyncio.Queue()
        keep(asyncio.create_task(worker(_queue)))
    done = asyncio.get_running_loop().create_future()
    _queue.put_nowait((n, done))
    return [await done, await nb.pg(n, 1)]


async def worker(items):
    while True:
        n, done = await items.get()
        done.set_result(await nb.kv(n, 0))


def keep(task):
    tasks.add(task)
    task.add_done_callback(tasks.discard)


ROUTES = {"work": work, "thread": thread, "later": later, "timeout": timeout, "queue": queue}
