"""Work that takes a known CPU time, and what a request counts of its own."""

import contextlib
import time


class Account:
    """CPU seconds, and seconds, of what was counted."""

    def __init__(self):
        self.cpu = 0.0
        self.wall = 0.0

    @contextlib.contextmanager
    def count(self):
        cpu, wall = time.thread_time(), time.perf_counter()
        try:
            yield
        finally:
            self.cpu += time.thread_time() - cpu
            self.wall += time.perf_counter() - wall


def burn(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(100))
