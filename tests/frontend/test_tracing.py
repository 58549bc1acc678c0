"""Spans of completions at a real OTLP receiver, their context in a real Triton, and no collector at all."""

# pyright: basic
import signal
import subprocess
import sys
import time

import httpx2
import pytest

from tests.frontend.otlp import Collector, attributes_of
from tests.frontend.serving import ROOT, FrontendProcess, stub_repository
from tests.model_repo.triton_process import TritonProcess
from tests.ports import free_ports

TEXT = {"model": "smollm2", "prompt": " one two three", "max_tokens": 5}
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SERVICE = "tritonfleet-frontend"
ERROR = 2


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.close()


def exporting(url: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "100"}


@pytest.fixture
def frontend(start_frontend, collector):
    return start_frontend("--max-sequences=4", environment=exporting(collector.url))


def post(frontend, path: str = "completions", parent: str = "", **changes):
    headers = {"traceparent": parent} if parent else {}
    return httpx2.post(f"{frontend.url}/v1/{path}", json=TEXT | changes, headers=headers, timeout=30)


def test_a_span_tells_of_a_completion(frontend, collector):
    asked_at = time.time_ns()
    asked = {"n": 2, "seed": 7, "temperature": 0.5, "stream": True}
    assert post(frontend, parent=f"00-{TRACE}-{CALLER}-01", **asked).status_code == 200
    (span,) = collector.wait_for(lambda service, _: service == SERVICE)

    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.name) == (TRACE, CALLER, "text_completion smollm2")
    assert span.kind == span.SPAN_KIND_SERVER
    assert asked_at <= span.start_time_unix_nano <= span.end_time_unix_nano
    found = attributes_of(span)
    assert {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "smollm2",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.response.finish_reasons": ["length", "length"],
        "http.response.status_code": 200,
    }.items() <= found.items()
    assert [(event.name, attributes_of(event)["choice"]) for event in span.events] == [
        ("first_token", 0),
        ("first_token", 1),
    ]
    for event in span.events:
        assert span.start_time_unix_nano <= event.time_unix_nano <= span.end_time_unix_nano


def test_a_span_tells_how_a_request_failed(frontend, collector):
    post(frontend, max_tokens=-1)
    post(frontend, n=4, max_tokens=3)
    post(frontend, model="other")
    assert post(frontend, prompt=[TEXT["prompt"]] * 5).status_code == 400
    frontend.process.send_signal(signal.SIGTERM)
    spans = collector.wait_for(lambda service, _: service == SERVICE, 4)

    # What it ended with is exported before it ends.
    assert [attributes_of(span)["http.response.status_code"] for span in spans] == [400, 200, 404, 400]
    assert all(span.status.code != ERROR for span in spans)
    assert frontend.process.wait(30) == 0


def test_a_failure_of_the_server_is_an_error(engine, collector):
    (port,) = free_ports(1)
    frontend = FrontendProcess(port, engine / "tokenizer", wait=False, environment=exporting(collector.url))
    while not frontend.answers("/healthz"):
        assert frontend.process.poll() is None
        time.sleep(0.1)
    try:
        assert post(frontend).status_code == 503
        (span,) = collector.wait_for(lambda service, _: service == SERVICE)
    finally:
        frontend.stop()

    assert span.status.code == ERROR
    assert {"error.type": "503", "gen_ai.response.finish_reasons": ["error"]}.items() <= attributes_of(span).items()


def test_the_trace_goes_on_through_triton(engine, collector, tmp_path):
    trace_config = ("mode=opentelemetry", f"opentelemetry,url={collector.url}/v1/traces", "rate=1", "level=TIMESTAMPS")
    flags = [f"--trace-config={setting}" for setting in trace_config]
    triton = TritonProcess(stub_repository(engine, tmp_path / "repository"), tmp_path / "cache", *flags)
    try:
        triton.wait_ready()
        frontend = FrontendProcess(triton.ports[1], engine / "tokenizer", environment=exporting(collector.url))
        try:
            # Without a caller's, the trace begins in the frontend: Triton can have it from nowhere else.
            assert post(frontend).status_code == 200
            (span,) = collector.wait_for(lambda service, _: service == SERVICE)
            (its,) = collector.wait_for(lambda service, span: service != SERVICE and span.name == "tensorrt_llm")
        finally:
            frontend.stop()
    finally:
        triton.stop()

    assert its.trace_id == span.trace_id
    assert its.start_time_unix_nano >= span.start_time_unix_nano


def test_what_the_sampler_leaves_out_is_not_exported(start_frontend, collector):
    frontend = start_frontend(environment=exporting(collector.url))
    assert post(frontend, parent=f"00-{TRACE}-{CALLER}-00").status_code == 200
    assert post(frontend, parent=f"00-{TRACE[::-1]}-{CALLER}-01").status_code == 200
    collector.wait_for(lambda service, span: service == SERVICE and span.trace_id.hex() == TRACE[::-1])

    assert [span.trace_id.hex() for _, span in collector.spans] == [TRACE[::-1]]


def test_a_collector_that_is_not_there_holds_up_nobody(start_frontend):
    (port,) = free_ports(1)
    frontend = start_frontend(environment=exporting(f"http://127.0.0.1:{port}"))
    assert [post(frontend).status_code for _ in range(20)] == [200] * 20
    frontend.process.send_signal(signal.SIGTERM)
    assert frontend.process.wait(30) == 0


def test_without_a_collector_nothing_of_it_is_imported():
    program = """
import sys
import frontend.__main__
frontend.__main__.from_environment()
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
