"""A Flask service that has its work done by thread pools and threads; its own threads may be those of a pool, too."""

import concurrent.futures
import sys
import threading

from flask import Flask

import blocking

app = Flask(__name__)
POOL = concurrent.futures.ThreadPoolExecutor(4)


@app.get("/shared/<int:n>")
def shared(n):
    items = [POOL.submit(call, n, i) for i, call in enumerate((blocking.kv, blocking.http, blocking.pg))]
    return {"ops": [blocking.kv(n, 3)] + [item.result() for item in items]}


@app.get("/mapped/<int:n>")
def mapped(n):
    return {"ops": list(POOL.map(lambda i: blocking.kv(n, i), range(3)))}


@app.get("/own/<int:n>")
def own(n):
    """A pool for the request alone."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ops = list(pool.map(lambda i: blocking.kv(n, i), range(3)))
    return {"ops": [*ops, blocking.kv(n, 3)]}


@app.get("/thread/<int:n>")
def thread(n):
    ops = []
    threads = [threading.Thread(target=lambda i=i: ops.append(blocking.kv(n, i))) for i in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return {"ops": [*ops, blocking.kv(n, 2)]}


@app.get("/below/<int:n>")
def below(n):
    """An item that starts a thread."""

    def item():
        thread = threading.Thread(target=blocking.kv, args=(n, 1))
        thread.start()
        thread.join()
        return [blocking.kv(n, 0), f"redis:{n}:1"]

    return {"ops": POOL.submit(item).result()}


@app.get("/cancelled/<int:n>")
def cancelled(n):
    """Items that the handler takes out of the queue to cancel them."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    items = [pool.submit(blocking.kv, n, i) for i in range(2)]
    items += [pool.submit(sum, [1]) for _ in range(10)]
    done = [item.result() for item in items[:2]]
    if sys.version_info >= (3, 9):
        pool.shutdown(cancel_futures=True)
    return {"ops": [*done, blocking.kv(n, 2)]}
