"""Requests that count the time of their own bursts of work; between two of them other greenlets may have the thread."""

import contextlib
import json
import time

from flask import Flask

app = Flask(__name__)
# Path, CPU seconds and seconds of each request that is over.
accounts = []


class Account:
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


def burn(seconds, account):
    with account.count():
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            sum(range(100))


@app.get("/accounts")
def all_accounts():
    return json.dumps(accounts)


@app.get("/<route>/<n>/<seconds>")
def request(route, n, seconds):
    account, seconds = Account(), float(seconds)
    if route == "burn":
        burn(seconds, account)
    elif route == "sleep":
        time.sleep(seconds)
    elif route == "waits":
        for _ in range(5):
            burn(seconds / 5, account)
            time.sleep(0.002)
    elif route == "yields":
        for _ in range(5):
            burn(seconds / 5, account)
            time.sleep(0)
    accounts.append([f"/{route}/{n}/{seconds:.3f}", account.cpu, account.wall])
    return "ok"
