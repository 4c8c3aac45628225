"""A process that others take over from, on its listening socket. `python successor_app.py PORT HOW [PROGRAM]`.

HOW: `exec` (run PROGRAM in this pid when the file $GATE appears), `exec-thread` (the same from a second thread), `child` (run
PROGRAM as a child), `recycle` (children that have one pid in turn, every second one under another service name).
"""

import asyncio
import ctypes
import os
import socket
import subprocess
import sys
import threading
import time

import prefork_app

CLONE3 = 435
SIGCHLD = 17


def fork_as(pid):
    """fork(2), with a pid of one's choice, which must be free: clone3(2) with set_tid."""
    wanted = (ctypes.c_int * 1)(pid)
    fields = (ctypes.c_uint64 * 11)(0, 0, 0, 0, SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.pythonapi.PyOS_BeforeFork()
    got = libc.syscall(CLONE3, fields, ctypes.c_size_t(88))
    if got == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    if got < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    return got


def recycle(listener, life):
    pid, turn = None, 0
    while True:
        turn += 1
        child = os.fork() if pid is None else fork_as(pid)
        if child == 0:
            os.environ.update(WHO=f"turn-{turn}", OTEL_SERVICE_NAME=f"turn-{turn}")
            if turn % 2:
                # The same interpreter goes on, and keeps its parent's environment for those who look from outside.
                os.environ["WHO"] = ""
                prefork_app.worker(listener, life)
                os._exit(0)
            arguments = [sys.executable, __file__, str(listener.fileno()), "inherited", str(life)]
            os.execv(sys.executable, arguments)
        os.waitpid(child, 0)
        pid = child


def main():
    how = sys.argv[2]
    if how == "inherited":
        listener = socket.socket(fileno=int(sys.argv[1]))
        asyncio.run(prefork_app.serve(listener, float(sys.argv[3])))
        return
    listener = prefork_app.listen(int(sys.argv[1]))
    os.set_inheritable(listener.fileno(), True)
    if how == "recycle":
        recycle(listener, 0.4)
    program = sys.argv[3]
    arguments = [program, __file__, str(listener.fileno()), "inherited", "3600"]
    gate = os.environ["GATE"]

    def act():
        while not os.path.exists(gate):
            time.sleep(0.05)
        if how == "child":
            subprocess.Popen(arguments, pass_fds=[listener.fileno()]).wait()
        else:
            os.execv(program, arguments)

    if how == "exec-thread":
        threading.Thread(target=act).start()
        time.sleep(3600)
    act()


main()
