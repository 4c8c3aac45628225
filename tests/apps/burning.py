"""Burns CPU time in every kind of function, in shares that its arguments name: KIND=WEIGHT ...

The line in which a kind calls `spin` is marked with the kind: a sample must be on it.
"""

import asyncio
import random
import sys
import threading
import time

clock = time.thread_time


def spin(weight):
    end = clock() + weight * 0.002
    while clock() < end:
        pass


def plain(weight):
    spin(weight)  # plain


def a_lambda(weight):
    (lambda: spin(weight))()  # lambda


def a_generator(weight):
    def generator():
        yield
        spin(weight)  # generator

    list(generator())


def a_comprehension(weight):
    [spin(weight) for _ in "1"]  # comprehension


def a_generator_expression(weight):
    for _ in (spin(weight) for _ in "1"):  # generator_expression
        pass


class Outer:
    class Inner:
        @staticmethod
        def method(weight):
            return [
                weight,
                spin(weight),  # method
            ]


def a_class(weight):
    class Body:
        spin(weight)  # class


def größe(weight):
    spin(weight)  # größe


def 数(weight):
    spin(weight)  # 数


def made(weight):
    names = {"spin": spin, "weight": weight}
    exec(compile("\n\n\nspin(weight)\n", "<made>", "exec"), names)


def a_thread(weight):
    def in_thread():
        spin(weight)  # thread

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()


def a_task(weight):
    async def inner():
        spin(weight)  # task

    async def outer():
        await asyncio.create_task(inner())

    asyncio.run(outer())


def deep(weight, depth=200):
    if depth:
        return deep(weight, depth - 1)
    spin(weight)  # deep


class Constructed:
    def __init__(self, weight):
        spin(weight)  # constructed


def key_function(weight):
    sorted([weight], key=lambda weight: spin(weight) or 0)  # key


KINDS = {
    "plain": plain,
    "lambda": a_lambda,
    "generator": a_generator,
    "comprehension": a_comprehension,
    "generator_expression": a_generator_expression,
    "method": Outer.Inner.method,
    "class": a_class,
    "größe": größe,
    "数": 数,
    "made": made,
    "thread": a_thread,
    "task": a_task,
    "deep": deep,
    "constructed": Constructed,
    "key": key_function,
}

if __name__ == "__main__":
    kinds = [argument.split("=") for argument in sys.argv[1:]]
    kinds = [(KINDS[kind], int(weight)) for kind, weight in kinds]
    print("ready", flush=True)
    while True:
        random.shuffle(kinds)
        for function, weight in kinds:
            function(weight)
