"""Requests that count the time of their own bursts of work; between two of them other greenlets may have the thread."""

import json
import time

from flask import Flask

from account import Account, burn

app = Flask(__name__)
# Path, CPU seconds and seconds of each request that is over.
accounts = []


def burst(seconds, account):
    with account.count():
        burn(seconds)


@app.get("/accounts")
def all_accounts():
    return json.dumps(accounts)


@app.get("/<route>/<n>/<seconds>")
def request(route, n, seconds):
    account, seconds = Account(), float(seconds)
    if route == "burn":
        burst(seconds, account)
    elif route == "sleep":
        time.sleep(seconds)
    elif route == "waits":
        for _ in range(5):
            burst(seconds / 5, account)
            time.sleep(0.002)
    elif route == "yields":
        for _ in range(5):
            burst(seconds / 5, account)
            time.sleep(0)
    accounts.append([f"/{route}/{n}/{seconds:.3f}", account.cpu, account.wall])
    return "ok"
