"""A collector of traces that speaks OTLP over HTTP, as tests and exporters see it."""

# pyright: basic
import base64
import gzip
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.ports import free_ports


class Collector:
    """`spans`: each span that came, with its service's name."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                as_json = self.headers["content-type"] == "application/json"
                collector.take(_from_json(body) if as_json else ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                del format, args

        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, request: Any) -> None:
        for resource in request.resource_spans:
            service = attributes_of(resource.resource).get("service.name", "")
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]

    def wait_for(self, wanted: Callable[[str, Any], bool], count: int = 1, seconds: float = 30) -> list[Any]:
        """The spans that are wanted, once there are so many."""
        deadline = time.monotonic() + seconds
        while len(found := [span for service, span in self.spans if wanted(service, span)]) < count:
            assert time.monotonic() < deadline, [(service, span.name) for service, span in self.spans]
            time.sleep(0.05)
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _from_json(body: bytes) -> Any:
    """As Triton sends it: OTLP writes ids in hexadecimal, where protobuf's JSON has base64."""
    ids = re.compile(rb'"(traceId|spanId|parentSpanId)":"([0-9a-f]*)"')
    body = ids.sub(lambda found: b'"%b":"%b"' % (found[1], base64.b64encode(bytes.fromhex(found[2].decode()))), body)
    return json_format.Parse(body, ExportTraceServiceRequest())


def attributes_of(message: Any) -> dict[str, Any]:
    """The attributes of a span, an event or a resource as plain values."""

    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {attribute.key: plain(attribute.value) for attribute in message.attributes}
