"""The Flask service as an ASGI application, through a2wsgi and its threads."""

from a2wsgi import WSGIMiddleware

import flask_app

app = WSGIMiddleware(flask_app.app, workers=8)
