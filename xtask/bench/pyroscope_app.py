"""The measured service with Pyroscope's profiler in its process, at pitviper's frequency."""

import os

import pyroscope

from app import app as app

pyroscope.configure(application_name="bench", server_address=os.environ["BENCH_PYROSCOPE"], sample_rate=97)
