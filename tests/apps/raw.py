"""As much HTTP/1.1 as the hand-written servers need: heads, bodies of known length, and answers."""

import json


def head(data):
    """(method, route, n, body length) of a request's head."""
    lines = data.decode().split("\r\n")
    method, path, _ = lines[0].split(" ")
    length = 0
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            length = int(value)
    _, route, n = path.split("?")[0].split("/")
    return method, route, int(n), length


def answer(ops, status="200 OK"):
    body = json.dumps({"ops": ops}).encode()
    return b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        status.encode(),
        len(body),
        body,
    )
