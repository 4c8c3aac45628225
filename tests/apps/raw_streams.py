"""`asyncio.start_server` and a loop by hand: one task for all requests of a connection. `python raw_streams.py PORT`."""

import asyncio
import sys

import nonblocking as nb
import raw
import routes


async def serve(reader, writer):
    try:
        while True:
            _, route, n, length = raw.head(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(length)
            if route == "leftover":
                # The response is out, and the task goes on with this request's work; the next request may be there.
                writer.write(raw.answer([await nb.kv(n, 0), f"redis:{n}:1", f"redis:{n}:2"]))
                await nb.kv(n, 1)
                await asyncio.sleep(0.01)
                await nb.kv(n, 2)
                continue
            writer.write(raw.answer(await routes.run(route, n)))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    if not routes.LAZY:
        await nb.start()
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=256)
    await server.serve_forever()


if "uvloop" in sys.argv:
    import uvloop

    uvloop.install()
asyncio.run(main())
