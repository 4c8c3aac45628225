"""A Flask service on gevent's own server, whose work goes to greenlets. `python gevent_app.py PORT`."""

from gevent import monkey

monkey.patch_all()

import functools
import sys

import gevent
import gevent.event
import gevent.pool
import gevent.queue
from flask import Flask
from gevent.pywsgi import WSGIServer

import blocking

app = Flask(__name__)
POOL = gevent.pool.Pool(8)


@app.get("/work/<int:n>")
def work(n):
    return {"ops": [blocking.pg(n, 0), blocking.kv(n, 1), blocking.http(n, 2)]}


def bare(environ):
    """A handler without a framework, which uses no context variable at all."""
    n = int(environ["PATH_INFO"].rsplit("/", 1)[1])
    children = [gevent.spawn(blocking.kv, n, 1), gevent.spawn(blocking.http, n, 2)]
    gevent.joinall(children)
    return [blocking.kv(n, 0)] + [child.get() for child in children]


@app.get("/spawn/<int:n>")
def spawn(n):
    children = [gevent.spawn(blocking.kv, n, 1), gevent.spawn_later(0.002, blocking.http, n, 2)]
    gevent.joinall(children)
    return {"ops": [blocking.kv(n, 0)] + [child.get() for child in children]}


@app.get("/pool/<int:n>")
def pool(n):
    """A pool that all requests share: greenlets wait for a place in it."""
    return {"ops": POOL.map(lambda i: blocking.kv(n, i), range(3))}


@app.get("/nested/<int:n>")
def nested(n):
    def outer():
        inner = gevent.spawn(blocking.kv, n, 1)
        return [blocking.kv(n, 0), inner.get()]

    return {"ops": gevent.spawn(outer).get() + [blocking.kv(n, 2)]}


def consume(items):
    while True:
        n, done = items.get()
        done.set(blocking.kv(n, 0))


@functools.lru_cache(maxsize=None)
def flusher():
    items = gevent.queue.Queue()
    gevent.spawn(consume, items)
    return items


@app.get("/flusher/<int:n>")
def by_flusher(n):
    """A greenlet that the first request spawned works for all."""
    done = gevent.event.AsyncResult()
    flusher().put((n, done))
    return {"ops": [done.get()]}


def serve(environ, start_response):
    if not environ["PATH_INFO"].startswith("/bare/"):
        return app(environ, start_response)
    body = ('{"ops": ["' + '", "'.join(bare(environ)) + '"]}').encode()
    start_response("200 OK", [("content-type", "application/json"), ("content-length", str(len(body)))])
    return [body]


WSGIServer(("127.0.0.1", int(sys.argv[1])), serve, log=None).serve_forever()
