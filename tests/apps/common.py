"""What every service of the system tests shares: where its back ends are, and how an operation is tagged.

Request N's operation i carries both numbers where redaction leaves them: in a column alias, a Redis key, a URL path.
A helper returns the operation's key ("pg:N:i", "redis:N:i", "http:N:i"); the response lists the keys that ran.
"""

import os

POSTGRES = os.environ.get("TEST_POSTGRES", "")
REDIS = os.environ.get("TEST_REDIS", "")
# The authority behind the certificates of the back ends, where they speak TLS.
CA = os.environ.get("TEST_CA", "")
UPSTREAM = os.environ.get("TEST_UPSTREAM", "")
# Which database of the broker a test has to itself.
REDIS_DB = os.environ.get("TEST_BROKER", "").rpartition("/")[2]


def sql(n, i):
    return f"SELECT 1 AS tag_{n}_{i}"


def key(n, i):
    return f"k:{n}:{i}"


def url(n, i):
    return f"{UPSTREAM}/up/{n}/{i}"
