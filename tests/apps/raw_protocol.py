"""`asyncio.Protocol` by hand: some requests are answered at once, in the callback, with blocking clients; others by a task.

`python raw_protocol.py PORT [uvloop]`. Requests of one connection may be answered out of turn: no client here pipelines.
"""

import asyncio
import sys

import blocking
import nonblocking as nb
import raw
import routes


class Http(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.buffer = b""

    def data_received(self, data):
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            _, route, n, length = raw.head(head)
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            if route == "blocking":
                self.transport.write(raw.answer([blocking.kv(n, 0), blocking.pg(n, 1)]))
            elif route == "mixed":
                # A command in the callback, the response in a task.
                routes.keep(asyncio.ensure_future(self.mixed(n, blocking.kv(n, 0))))
            else:
                routes.keep(asyncio.ensure_future(self.answer(route, n)))

    async def mixed(self, n, first):
        self.transport.write(raw.answer([first, await nb.kv(n, 1)]))

    async def answer(self, route, n):
        self.transport.write(raw.answer(await routes.run(route, n)))


async def main():
    if not routes.LAZY:
        await nb.start()
    server = await asyncio.get_running_loop().create_server(Http, "127.0.0.1", int(sys.argv[1]), backlog=256)
    await server.serve_forever()


if "uvloop" in sys.argv:
    import uvloop

    uvloop.install()
asyncio.run(main())
