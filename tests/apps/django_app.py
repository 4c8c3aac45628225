"""A Django service in one file: the ORM's connection, redis-py and requests; `app` is WSGI, `asgi` is ASGI."""

import asyncio
import sys
from urllib.parse import urlsplit

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import JsonResponse
from django.urls import path

import blocking
import common

database = urlsplit(common.POSTGRES)
settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": database.path.lstrip("/"),
            "USER": database.username,
            "PASSWORD": database.password,
            "HOST": database.hostname,
            "PORT": database.port,
            # Under ASGI every request has a thread of its own, which would take its connection along.
            "CONN_MAX_AGE": 60 if "gunicorn" in sys.argv[0] else 0,
        }
    },
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for tests",
)
django.setup()


def orm(n, i):
    with connection.cursor() as cursor:
        cursor.execute(common.sql(n, i))
        cursor.fetchone()
    return f"pg:{n}:{i}"


def work(_request, n):
    ops = [orm(n, 0), blocking.kv(n, 1), blocking.http(n, 2), orm(n, 3)]
    return JsonResponse({"ops": ops})


async def awork(_request, n):
    ops = [await sync_to_async(orm)(n, 0)]
    threads = [sync_to_async(call, thread_sensitive=False)(n, i) for i, call in ((1, blocking.kv), (2, blocking.pg))]
    ops += await asyncio.gather(*threads)
    return JsonResponse({"ops": ops})


urlpatterns = [path("work/<int:n>", work), path("awork/<int:n>", awork)]
app = get_wsgi_application()
asgi = get_asgi_application()
