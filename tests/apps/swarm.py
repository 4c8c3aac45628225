"""Thousands of short processes on demand. `python swarm.py`: reads lines `KIND COUNT`, answers `done`.

KIND: `fork` (a fork that copies contexts), `sh` (a fork that runs /bin/true), `loop` (a fork that runs an event loop),
`python` (another interpreter, started anew), `tls` (a fork that begins a handshake), `https` (an interpreter that does).
"""

import asyncio
import contextvars
import os
import subprocess
import sys


async def nothing():
    await asyncio.gather(*(asyncio.sleep(0) for _ in range(3)))


HELLO = """
import ssl
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="nobody")
try:
    tls.do_handshake()
except ssl.SSLWantReadError:
    pass
"""


def one(kind):
    if kind == "https":
        subprocess.run([sys.executable, "-S", "-c", HELLO], check=True)
        return
    if kind == "tls":
        import ssl  # The children inherit it.
    if kind == "sh":
        subprocess.run(["/bin/true"], check=True)
        return
    if kind == "python":
        subprocess.run([sys.executable, "-S", "-c", "pass"], check=True)
        return
    pid = os.fork()
    if pid == 0:
        if kind == "loop":
            asyncio.run(nothing())
        elif kind == "tls":
            exec(HELLO, {})
        else:
            contextvars.copy_context()
        os._exit(0)
    os.waitpid(pid, 0)


for line in sys.stdin:
    kind, count = line.split()
    for _ in range(int(count)):
        one(kind)
    print("done", flush=True)
