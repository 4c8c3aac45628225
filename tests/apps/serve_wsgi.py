"""Serves the Flask service with a WSGI server that has no command line of its own. `python serve_wsgi.py PORT SERVER`."""

import sys

from flask_app import app

port, server = int(sys.argv[1]), sys.argv[2]
if server == "waitress":
    import waitress

    waitress.serve(app, host="127.0.0.1", port=port, threads=8, _quiet=True)
else:
    from cheroot.wsgi import Server

    Server(("127.0.0.1", port), app, numthreads=8, request_queue_size=256).start()
