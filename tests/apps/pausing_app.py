"""A WSGI service that pauses, for what is to be seen while a request is served. `/pause/MILLISECONDS`."""

import os
import threading
import time


def app(environ, start_response):
    kind, _, rest = environ["PATH_INFO"].lstrip("/").partition("/")
    if kind == "pause":
        time.sleep(int(rest) / 1000)
    body = f"{os.getpid()} {threading.get_native_id()}".encode()
    start_response("200 OK", [("content-type", "text/plain"), ("content-length", str(len(body)))])
    return [body]
