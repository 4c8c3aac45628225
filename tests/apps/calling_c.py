"""Burns CPU time in C functions of libraries, each called by a Python function of its own, and in Python alone.

    python calling_c.py
"""

import hashlib
import time
import zlib

DATA = bytes(range(256)) * 4096


def checksum():
    zlib.crc32(DATA)


def digest():
    hashlib.sha256(DATA).digest()


def pure():
    total = 0
    for number in range(20_000):
        total += number * number
    return total


def main():
    print("ready", flush=True)
    while True:
        for work in (checksum, digest, pure):
            end = time.perf_counter() + 0.02
            while time.perf_counter() < end:
                work()


main()
