"""The stock: Flask on gunicorn, with psycopg, redis-py and requests. It knows nothing of tracing."""

import os

import psycopg
import redis
import requests
from flask import Flask, request

app = Flask(__name__)
cache = redis.from_url(os.environ["STOCK_CACHE"])


def database():
    return psycopg.connect(os.environ["STOCK_DATABASE"])


@app.get("/health")
def health():
    return {"cache": cache.ping()}


@app.get("/levels/<sku>")
def level(sku):
    known = cache.get(f"level:{sku}")
    if known is not None:
        return {"available": int(known)}
    with database() as connection:
        row = connection.execute("SELECT available FROM levels WHERE sku = %s", [sku]).fetchone()
    available = row[0] if row else 0
    cache.set(f"level:{sku}", available, ex=60)
    return {"available": available}


@app.post("/reservations")
def reserve():
    sku, quantity = request.json["sku"], int(request.json["quantity"])
    price = requests.get(f"{os.environ['STOCK_SHOP']}/prices/{sku}", timeout=10).json()["price_cents"]
    with database() as connection:
        reserved = connection.execute(
            "UPDATE levels SET available = available - %s WHERE sku = %s AND available >= %s RETURNING available",
            [quantity, sku, quantity],
        ).fetchone()
    if reserved is None:
        return {"error": "not enough"}, 409
    cache.set(f"level:{sku}", reserved[0], ex=60)
    return {"available": reserved[0], "worth_cents": price * quantity}
