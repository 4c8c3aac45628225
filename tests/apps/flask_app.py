"""A Flask service with the blocking clients; under gevent also with work in child greenlets."""

from flask import Flask

import blocking

app = Flask(__name__)


@app.get("/work/<int:n>")
def work(n):
    ops = [blocking.pg(n, 0), blocking.kv(n, 1), blocking.http(n, 2), blocking.kv(n, 3), blocking.pg(n, 4)]
    return {"ops": ops}


@app.get("/spawn/<int:n>")
def spawn(n):
    import gevent

    children = [gevent.spawn(blocking.kv, n, 1), gevent.spawn(blocking.http, n, 2)]
    gevent.joinall(children)
    return {"ops": [blocking.kv(n, 0)] + [child.get() for child in children]}
