"""Compiles, runs and drops code objects for ever, so that new ones get the addresses of old ones.

Number N is in the function's name, in its file's name, and in its line: N % 40 lines below the first one. It burns CPU
time in proportion to N % 17.
"""

import itertools
import time

clock = time.thread_time


def spin(seconds):
    end = clock() + seconds
    while clock() < end:
        pass


for n in itertools.count(1000):
    names = {"spin": spin}
    lines = "\n" * (n % 40)
    source = f"{lines}def outer_{n}(): inner_{n}()\ndef inner_{n}(): spin({0.0005 * (n % 17)})\n"
    exec(compile(source, f"<made {n}>", "exec"), names)
    names[f"outer_{n}"]()
    # The functions and their globals refer to one another.
    names.clear()
