"""A FastAPI service that shows the corners of the protocols, and handles secrets that nobody else may see."""

import asyncio
import contextlib
import io

import asyncpg
import psycopg
import redis
import redis.asyncio
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse

import common
import nonblocking as nb


@contextlib.asynccontextmanager
async def lifespan(_app):
    await nb.start()
    yield


app = FastAPI(lifespan=lifespan)


@app.api_route("/plain", methods=["GET", "HEAD"])
async def plain():
    return Response(b"x" * 1234, media_type="text/plain")


@app.get("/status/{code}")
async def status(code: int):
    return Response(status_code=code)


@app.get("/large/{size}")
async def large(size: int):
    return Response(b"y" * size, media_type="application/octet-stream")


@app.get("/chunked")
async def chunked():
    async def pieces():
        for _ in range(10):
            yield b"z" * 1000
            await asyncio.sleep(0.02)

    return StreamingResponse(pieces(), media_type="text/plain")


@app.post("/echo")
async def echo(request: Request):
    return {"length": len(await request.body())}


@app.websocket("/ws")
async def ws(socket: WebSocket):
    await socket.accept()
    for _ in range(3):
        await socket.send_text(await socket.receive_text())
        await nb.kv("ws", 0)
    await socket.close()


@app.get("/postgres/error")
async def postgres_error():
    try:
        await nb.clients["asyncpg"].fetchval("SELECT no_such_column AS tag_error FROM pg_class")
    except asyncpg.UndefinedColumnError:
        return {"ops": []}


@app.get("/postgres/several")
async def postgres_several():
    await nb.clients["asyncpg"].execute("SELECT 1 AS tag_first; SELECT 2 AS tag_second")
    return {"ops": []}


@app.get("/postgres/pipeline")
def postgres_pipeline():
    with psycopg.connect(common.POSTGRES, autocommit=True) as connection, connection.pipeline():
        cursors = [connection.execute(f"SELECT %s::int AS tag_pipe_{i}", [i]) for i in range(5)]
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(5))
    return {"ops": []}


@app.get("/postgres/copy")
def postgres_copy():
    with psycopg.connect(common.POSTGRES, autocommit=True) as connection:
        connection.execute("CREATE TEMP TABLE copied (n int, t text)")
        with connection.cursor() as cursor:
            with cursor.copy("COPY copied FROM STDIN") as copy:
                for n in range(2000):
                    copy.write_row((n, "some text of a row"))
            out = io.BytesIO()
            with cursor.copy("COPY copied TO STDOUT") as copy:
                for data in copy:
                    out.write(data)
            cursor.execute("SELECT count(*) AS tag_after_copy FROM copied")
            assert cursor.fetchone()[0] == 2000
    return {"ops": []}


prepared = {}


@app.get("/postgres/prepared")
async def postgres_prepared():
    if "statement" not in prepared:
        prepared["connection"] = await asyncpg.connect(common.POSTGRES)
        prepared["statement"] = await prepared["connection"].prepare("SELECT $1::int AS tag_prepared")
    return {"value": await prepared["statement"].fetchval(7)}


@app.get("/redis/pipeline")
async def redis_pipeline():
    async with nb.clients["redis"].pipeline(transaction=False) as pipe:
        for i in range(3):
            pipe.set(f"pipe:{i}", "value")
        await pipe.execute()
    return {"ops": []}


@app.get("/redis/multi")
async def redis_multi():
    async with nb.clients["redis"].pipeline(transaction=True) as pipe:
        pipe.incr("multi:counter")
        pipe.expire("multi:counter", 60)
        await pipe.execute()
    return {"ops": []}


@app.get("/redis/error")
async def redis_error():
    await nb.clients["redis"].set("error:key", "text")
    try:
        await nb.clients["redis"].incr("error:key")
    except redis.ResponseError:
        return {"ops": []}


@app.get("/redis/select")
def redis_select():
    with redis.Redis.from_url(common.REDIS.replace("/0", "/3")) as client:
        client.set("selected:key", "value")
    return {"ops": []}


@app.post("/canary")
async def canary(request: Request):
    """Uses every secret that the request names, wherever a careless observer would repeat it."""
    secret = await request.json()
    pool = nb.clients["asyncpg"]
    await pool.fetchval(f"SELECT '{secret['literal']}'::text AS canary_literal")
    await pool.fetchval("SELECT $1::text AS canary_parameter", secret["parameter"])
    try:
        await pool.fetchval(f"SELECT '{secret['error']}'::int AS canary_error")
    except asyncpg.PostgresError:
        pass
    plain = psycopg.conninfo.make_conninfo(common.POSTGRES, user="plain", password=secret["cleartext"])
    async with await psycopg.AsyncConnection.connect(plain) as connection:
        await connection.execute("SELECT 1 AS canary_plain")
    await nb.clients["redis"].set("canary:key", secret["redis"])
    async with redis.asyncio.Redis.from_url(common.REDIS, username="canary", password=secret["acl"]) as client:
        await client.get("canary:key")
    headers = {"authorization": f"Bearer {secret['bearer']}", "cookie": f"session={secret['cookie']}"}
    await nb.clients["httpx"].get(
        f"{common.UPSTREAM}/up/canary?X-Amz-Signature={secret['signature']}&page=2", headers=headers
    )
    upstream = common.UPSTREAM.replace("://", f"://someone:{secret['userinfo']}@")
    await nb.clients["httpx"].get(f"{upstream}/up/canary")
    return Response(secret["answer"], headers={"set-cookie": f"answer={secret['cookie']}"})
