"""Requests that burn CPU time in threads, or in greenlets that take turns."""

import time

from flask import Flask

import burn

app = Flask(__name__)


@app.get("/turns/<int:n>")
def turns(n):
    function = burn.function(n)
    for _ in range(4):
        function(0.02)
        time.sleep(0)
    return {}
