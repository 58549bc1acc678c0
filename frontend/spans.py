"""OpenTelemetry spans of requests, with its attributes for generative AI, exported by OTLP over HTTP."""

import os
import threading
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.requests import Request

from frontend import completion
from frontend.requests import AnyRequest, ChatRequest
from frontend.tracing import Trace, Tracing

CONTEXT = TraceContextTextMapPropagator()
LAST_EXPORT_SECONDS = 3.0


class SpanTracing(Tracing):
    def __init__(self) -> None:
        resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "tritonfleet-frontend")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("tritonfleet.frontend")

    def start(self, http: Request) -> Trace:
        return SpanTrace(http, self._tracer)

    def close(self) -> None:
        # A collector that is not there would hold up the end of the process for a minute.
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(LAST_EXPORT_SECONDS)


class SpanTrace(Trace):
    def __init__(self, http: Request, tracer: trace.Tracer) -> None:
        super().__init__(http)
        path = http.url.path
        self._span = tracer.start_span(
            f"POST {path}",
            CONTEXT.extract(dict(self.metadata)),
            trace.SpanKind.SERVER,
            {"http.request.method": "POST", "url.path": path},
        )
        # What the sampler leaves out keeps its caller's context, and a stream to Triton that others have used.
        if self._span.is_recording():
            carrier: dict[str, str] = {}
            CONTEXT.inject(carrier, trace.set_span_in_context(self._span))
            self.metadata = tuple(carrier.items())

    def asked(self, request: AnyRequest, prompt_tokens: int) -> None:
        operation = "chat" if isinstance(request, ChatRequest) else "text_completion"
        self._span.update_name(f"{operation} {request.model}")
        asked = {
            "operation.name": operation,
            "provider.name": "tritonfleet",
            "request.model": request.model,
            "response.model": request.model,
            "request.choice.count": request.n,
            "request.max_tokens": request.limit,
            "request.temperature": request.temperature,
            "request.top_p": request.top_p,
            "request.seed": request.seed,
            "usage.input_tokens": prompt_tokens,
        }
        self._span.set_attributes({f"gen_ai.{name}": value for name, value in asked.items() if value is not None})

    def end(self, status: int, sequences: Sequence[completion.Sequence] = ()) -> None:
        span = self._span
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(trace.StatusCode.ERROR)
        if sequences:
            span.set_attribute("gen_ai.usage.output_tokens", sum(sequence.tokens for sequence in sequences))
            # One for each choice, in their order.
            finishes = [sequence.finish or "error" for sequence in sequences]
            span.set_attribute("gen_ai.response.finish_reasons", finishes)
        for index, sequence in enumerate(sequences):
            if sequence.first_token_ns is not None:
                # Until then it waited in queues, and its prompt was computed.
                span.add_event("first_token", {"choice": index}, sequence.first_token_ns)
        span.end()
