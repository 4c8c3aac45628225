"""An ASGI application for trio: tasks in nurseries, threads, and httpx, which runs on trio as well as on asyncio."""

import json

import httpx
import trio

import blocking
import common

client = httpx.AsyncClient(limits=httpx.Limits(max_connections=32), timeout=60, trust_env=False)


async def http(n, i):
    (await client.get(common.url(n, i))).raise_for_status()
    return f"http:{n}:{i}"


async def work(n):
    ops = [await http(n, 0), await trio.to_thread.run_sync(blocking.kv, n, 1)]

    async def child(call, *arguments):
        ops.append(await call(*arguments))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child, http, n, 2)
        nursery.start_soon(child, trio.to_thread.run_sync, blocking.pg, n, 3)
        nursery.start_soon(child, trio.to_thread.run_sync, blocking.kv, n, 4)
    return ops


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = json.dumps({"ops": await work(int(scope["path"].rsplit("/", 1)[-1]))}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
