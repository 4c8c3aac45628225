"""A FastAPI service between two others: what it is asked for it asks of the upstream, with a Redis command beside it.

`TEST_SDK=http` or `grpc` sets an OpenTelemetry SDK up in code, spans over that; `metrics`: one that exports metrics only.
"""

import contextlib
import os

import asyncpg
import httpx
import redis.asyncio
from fastapi import FastAPI, Request

import common

SDK = os.environ.get("TEST_SDK")
clients = {}


@contextlib.asynccontextmanager
async def lifespan(_app):
    clients["asyncpg"] = await asyncpg.create_pool(common.POSTGRES, min_size=1, max_size=4)
    clients["redis"] = redis.asyncio.Redis.from_url(common.REDIS)
    clients["httpx"] = httpx.AsyncClient(timeout=60, trust_env=False)
    yield


app = FastAPI(lifespan=lifespan)


async def pg(n, i):
    await clients["asyncpg"].fetchval(common.sql(n, i))
    return f"pg:{n}:{i}"


async def kv(n, i):
    await clients["redis"].set(common.key(n, i), "value")
    return f"redis:{n}:{i}"


async def http(n, i, headers=None):
    (await clients["httpx"].get(common.url(n, i), headers=headers)).raise_for_status()
    return f"http:{n}:{i}"


@app.get("/work/{n}")
async def work(n: int):
    return {"ops": [await pg(n, 0), await kv(n, 1), await http(n, 2)]}


@app.get("/inner/{n}")
async def inner(n: int):
    """Nothing that would carry a `traceparent`."""
    return {"ops": [await pg(n, 0), await kv(n, 1)]}


@app.get("/up/{n}/{i}")
async def up(n: int, i: int):
    return {"ops": [await kv(n, 200 + i), await http(n, i)]}


@app.get("/forward/{n}")
async def forward(n: int, request: Request):
    """As a plain proxy does: the trace context goes on as it came."""
    kept = {name: value for name, value in request.headers.items() if name in ("traceparent", "tracestate")}
    return {"ops": [await http(n, 0, kept), await kv(n, 1)]}


def set_up_traces():
    from opentelemetry import trace
    from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
    from opentelemetry.instrumentation.redis import RedisInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if SDK == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    for instrumentor in (AsyncPGInstrumentor, RedisInstrumentor, HTTPXClientInstrumentor):
        instrumentor().instrument()
    FastAPIInstrumentor.instrument_app(app)


def set_up_metrics():
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(), export_interval_millis=200)])
    counter = provider.get_meter("relay").create_counter("requests")

    @app.middleware("http")
    async def count(request, call_next):
        counter.add(1)
        return await call_next(request)


if SDK == "metrics":
    set_up_metrics()
elif SDK:
    set_up_traces()
