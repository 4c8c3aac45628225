"""The blocking clients: psycopg, redis-py and requests, one session per thread. For sync handlers of any framework."""

import threading

import psycopg_pool
import redis
import requests
from requests.adapters import HTTPAdapter

import common

_local = threading.local()
_lock = threading.Lock()
_clients = {}


def _pool():
    with _lock:
        if "pool" not in _clients:
            _clients["pool"] = psycopg_pool.ConnectionPool(
                common.POSTGRES, min_size=2, max_size=8, timeout=60, kwargs={"autocommit": True}
            )
        return _clients["pool"]


def _redis():
    with _lock:
        if "redis" not in _clients:
            # Newer clients allow 100, and 64 requests with several greenlets each may want more at once.
            _clients["redis"] = redis.Redis.from_url(common.REDIS, max_connections=1000)
        return _clients["redis"]


def _session():
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
        _local.session.mount("http://", HTTPAdapter(pool_maxsize=4))
        _local.session.mount("https://", HTTPAdapter(pool_maxsize=4))
    return _local.session


def pg(n, i):
    with _pool().connection() as connection:
        connection.execute(common.sql(n, i)).fetchone()
    return f"pg:{n}:{i}"


def kv(n, i):
    _redis().set(common.key(n, i), "value")
    return f"redis:{n}:{i}"


def http(n, i):
    _session().get(common.url(n, i)).raise_for_status()
    return f"http:{n}:{i}"
