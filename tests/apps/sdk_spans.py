"""Exports the spans of N requests with OpenTelemetry's SDK; of every ten, one's statement is under the wrong request, and
one's is an orphan. `python sdk_spans.py N`, endpoint and protocol from the environment."""

import os
import sys

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

if os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
else:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

provider = TracerProvider(resource=Resource.create({"service.name": "sdk"}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
tracer = provider.get_tracer("sdk")


def request(n, statement):
    attributes = {"url.path": f"/work/{n}"}
    with tracer.start_as_current_span("GET", kind=trace.SpanKind.SERVER, attributes=attributes):
        context = Context() if n % 10 == 3 else None
        attributes = {"db.system.name": "postgresql", "db.query.text": f"SELECT ? AS tag_{statement}_0"}
        tracer.start_span("SELECT", context=context, kind=trace.SpanKind.CLIENT, attributes=attributes).end()


for n in range(int(sys.argv[1])):
    # The statement of the request before a multiple of ten and its own have changed places.
    request(n, {8: n + 1, 9: n - 1}.get(n % 10, n) if n % 20 < 10 else n)
provider.shutdown()
