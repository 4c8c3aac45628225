"""CPU time in functions that are known: one function for each request, by which a sample says whose it is."""

import time

SOURCE = """
def burn_{n}(seconds):
    end = clock() + seconds
    while clock() < end:
        pass
"""


def function(n):
    """A function that burns CPU time (of its thread) and is called `burn_N`."""
    names = {"clock": time.thread_time}
    exec(compile(SOURCE.format(n=n), f"<burn {n}>", "exec"), names)
    return names[f"burn_{n}"]
