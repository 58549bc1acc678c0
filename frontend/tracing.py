"""The trace of a request: its context goes on to Triton, and its span to a collector, where the environment names one.

`OTEL_EXPORTER_OTLP_ENDPOINT` names it; OpenTelemetry's other variables say the rest: headers, sampler, service name.
"""

import os
from collections.abc import Sequence

from starlette.requests import Request

from frontend import completion
from frontend.engine import Metadata
from frontend.errors import Refusal
from frontend.requests import AnyRequest

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
HEADERS = ("traceparent", "tracestate")


class Trace:
    """Of one request, without a span. `metadata` is what Triton is told: the caller's context."""

    def __init__(self, http: Request) -> None:
        self.metadata: Metadata = tuple((name, http.headers[name]) for name in HEADERS if name in http.headers)

    def asked(self, request: AnyRequest, prompt_tokens: int) -> None:
        """What was asked, once it is known to be valid."""

    def end(self, status: int, sequences: Sequence[completion.Sequence] = ()) -> None:
        """How it ended; called once."""


class Tracing:
    """Of a process that exports nothing."""

    def start(self, http: Request) -> Trace:
        return Trace(http)

    def close(self) -> None:
        """Export what waits."""


def from_environment() -> Tracing:
    """Imports OpenTelemetry only where a collector is named. Raises Refusal."""
    if not os.environ.get(ENDPOINT):
        return Tracing()
    try:
        from frontend.spans import SpanTracing
    except ImportError as error:
        raise Refusal(
            f"{ENDPOINT} is set, and {error.name} is not installed",
            "no trace would be exported",
            "install opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http, or unset the variable",
        ) from None
    return SpanTracing()
