"""Processes that burn CPU time for a moment and are gone."""

import os
import time


def child_work(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def main():
    print("ready", flush=True)
    n = 0
    while True:
        n += 1
        child = os.fork()
        if child == 0:
            child_work(0.02 * (n % 10))
            os._exit(0) if n % 3 else os.kill(os.getpid(), 9)
        os.waitpid(child, 0)


main()
