"""Celery's tasks, and a Flask service that sends them. `/work/N` says what its task is going to do."""

import os

from celery import Celery
from flask import Flask

import blocking
import common

celery = Celery("shop", broker=os.environ["TEST_BROKER"], backend=os.environ.get("TEST_RESULTS") or None)
celery.conf.broker_connection_retry_on_startup = True
celery.conf.worker_hijack_root_logger = False
app = Flask(__name__)


def finished():
    blocking._redis().incr(f"done:{common.REDIS_DB}")


@celery.task(name="shop.work")
def work(n):
    for step in (blocking.pg(n, 0), blocking.kv(n, 1), blocking.http(n, 2), blocking.kv(n, 3)):
        assert step
    finished()


@celery.task(name="shop.again", bind=True, max_retries=2, default_retry_delay=0)
def again(self, n):
    blocking.kv(n, self.request.retries)
    if self.request.retries < 2:
        raise self.retry(exc=ValueError("canary-retry-19ab"))
    finished()


@celery.task(name="shop.fail")
def fail(n):
    blocking.kv(n, 0)
    finished()
    raise KeyError("canary-raised-77f0")


@celery.task(name="shop.parent")
def parent(n):
    blocking.kv(n, 0)
    child.delay(n)


@celery.task(name="shop.child")
def child(n):
    blocking.pg(n, 1)
    finished()


@celery.task(name="shop.loop")
def loop(n):
    import asyncio

    async def step(i):
        await asyncio.sleep(0.001)
        return blocking.kv(n, i)

    async def steps():
        await asyncio.gather(step(0), step(1))

    asyncio.run(steps())
    blocking.pg(n, 2)
    finished()


@celery.task(name="shop.secret")
def secret(n, *, password):
    blocking.kv(n, 0)
    finished()
    return {"answer": password}


@app.get("/work/<int:n>")
def send_work(n):
    own = blocking.kv(n, 4)
    sent = work.delay(n)
    return {"id": sent.id, "ops": [own, f"pg:{n}:0", f"redis:{n}:1", f"http:{n}:2", f"redis:{n}:3"]}


@app.get("/again/<int:n>")
def send_again(n):
    return {"id": again.delay(n).id, "ops": [f"redis:{n}:{i}" for i in range(3)]}


@app.get("/fail/<int:n>")
def send_fail(n):
    return {"id": fail.delay(n).id, "ops": [f"redis:{n}:0"]}


@app.get("/parent/<int:n>")
def send_parent(n):
    return {"id": parent.delay(n).id, "ops": [f"redis:{n}:0", f"pg:{n}:1"]}


@app.get("/loop/<int:n>")
def send_loop(n):
    return {"id": loop.delay(n).id, "ops": [f"redis:{n}:0", f"redis:{n}:1", f"pg:{n}:2"]}


@app.get("/large/<int:n>")
def send_large(n):
    sent = celery.send_task("shop.secret", args=[n], kwargs={"password": "canary-large-5c1d" * 2000})
    return {"id": sent.id, "ops": [f"redis:{n}:0"]}


@app.get("/remote/<int:n>")
def send_remote(n):
    traceparent = f"00-{n:032x}-{n:016x}-01"
    return {"id": work.apply_async((n,), headers={"traceparent": traceparent}).id, "ops": []}


@app.get("/secret/<int:n>")
def send_secret(n):
    sent = secret.apply_async((n,), {"password": "canary-task-argument-60e2"})
    celery.send_task("shop.secret", args=[n], kwargs={"password": "canary-task-large-b3a1" * 300})
    fail.delay(n)
    return {"id": sent.id, "ops": []}


@app.get("/plain/<int:n>")
def plain(n):
    """A queue of the application's own, on the broker that Celery uses."""
    client = blocking._redis()
    client.lpush(common.key(n, 0), '{"headers": {"task": "none"}}')
    client.brpop(common.key(n, 1), timeout=1)
    return {"ops": [f"redis:{n}:0", f"redis:{n}:1"]}


@app.get("/done/<int:n>")
def done(n):
    return {"done": int(blocking._redis().get(f"done:{common.REDIS_DB}") or 0)}
