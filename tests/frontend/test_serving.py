"""Keys and their limits, a full queue, a dead and a stalled engine, draining, metrics and traces."""

# pyright: basic
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2
import psutil
import pytest

from tests.frontend.serving import ROOT, FrontendProcess, ended_requests, stub_repository
from tests.model_repo.triton_process import TritonProcess
from tests.ports import free_ports

TEXT = {"model": "smollm2", "prompt": " one two three", "max_tokens": 3}


def slow(tokens: int, pause_ms: int, **more) -> dict:
    return {**TEXT, "max_tokens": tokens, "min_tokens": pause_ms, **more}


def post(frontend: FrontendProcess, body: dict = TEXT, key: str | None = None) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx2.post(f"{frontend.url}/v1/completions", json=body, headers=headers, timeout=60)


def in_background(frontend: FrontendProcess, body: dict, count: int) -> tuple[list[threading.Thread], list]:
    """Threads with one request each, and where their responses will be."""
    responses = []
    threads = [threading.Thread(target=lambda: responses.append(post(frontend, body))) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, responses


def metric(frontend: FrontendProcess, name: str) -> float:
    lines = httpx2.get(f"{frontend.url}/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_first_tokens(frontend: FrontendProcess, count: int) -> None:
    wait_for(lambda: metric(frontend, "frontend_time_to_first_token_seconds_count") == count)


def write_keys(path, **limits_by_key: dict) -> None:
    keys = [
        {"name": key, "sha256": hashlib.sha256(key.encode()).hexdigest(), **limits}
        for key, limits in limits_by_key.items()
    ]
    staging = path.with_name("staging")
    staging.write_text(json.dumps({"keys": keys}))
    staging.rename(path)


def test_keys_are_asked_for_and_rotated_without_a_restart(start_frontend, tmp_path):
    path = tmp_path / "keys.json"
    write_keys(path, old={})
    frontend = start_frontend(f"--api-keys={path}")
    for key in (None, "wrong"):
        refused = post(frontend, key=key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"
    assert httpx2.get(f"{frontend.url}/v1/models").status_code == 401
    assert post(frontend, key="old").status_code == 200

    write_keys(path, old={}, new={})
    assert [post(frontend, key=key).status_code for key in ("old", "new")] == [200, 200]
    write_keys(path, new={})
    assert [post(frontend, key=key).status_code for key in ("old", "new")] == [401, 200]
    path.write_text("half a fi")
    assert post(frontend, key="new").status_code == 200, "a broken file locks nobody out"


def test_a_new_key_is_made_by_a_command(tmp_path, start_frontend):
    made = subprocess.run([sys.executable, "-m", "frontend.keys", "me"], cwd=ROOT, capture_output=True, text=True)
    path = tmp_path / "keys.json"
    path.write_text(f'{{"keys": [{made.stdout}]}}')

    key = made.stderr.split()[-1]
    assert key not in made.stdout
    assert post(start_frontend(f"--api-keys={path}"), key=key).status_code == 200


def test_a_key_over_its_requests_or_tokens_waits(start_frontend, tmp_path):
    path = tmp_path / "keys.json"
    write_keys(path, few={"requests_per_minute": 2}, short={"tokens_per_minute": 20}, free={})
    frontend = start_frontend(f"--api-keys={path}")

    assert [post(frontend, key="few").status_code for _ in range(3)] == [200, 200, 429]
    refused = post(frontend, key="few")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert (refused.json()["error"]["type"], refused.json()["error"]["code"]) == ("requests", "rate_limit_exceeded")
    # 3 tokens of prompt and 30 of answer: the first is served whole, and paid for by the next.
    assert post(frontend, {**TEXT, "max_tokens": 30}, key="short").status_code == 200
    refused = post(frontend, key="short")
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
    assert post(frontend, key="free").status_code == 200


def test_nobody_listens_to_the_world_without_keys(engine):
    frontend = FrontendProcess(1, engine / "tokenizer", "--host=0.0.0.0", wait=False)

    assert frontend.process.wait(30) == 2
    said = frontend.stop()
    assert "no API keys are given" in said
    assert "fix:" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("content", [None, "{", '{"keys": [{"name": "x", "sha256": "plain"}]}'])
def test_keys_that_cannot_be_read_are_refused_at_start(engine, tmp_path, content):
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    frontend = FrontendProcess(1, engine / "tokenizer", f"--api-keys={path}", wait=False)

    assert frontend.process.wait(30) == 2
    assert "consequence:" in frontend.stop()


def test_what_is_over_the_queue_is_refused_with_retry_after(start_frontend):
    frontend = start_frontend("--max-sequences=4")
    threads, responses = in_background(frontend, slow(160, 50), 4)
    wait_for_first_tokens(frontend, 4)
    refused = [post(frontend) for _ in range(8)]
    for thread in threads:
        thread.join()

    assert [response.status_code for response in responses] == [200] * 4
    assert [response.status_code for response in refused] == [503] * 8
    assert all(response.headers["retry-after"] == "1" for response in refused)
    assert {response.json()["error"]["code"] for response in refused} == {"queue_full"}
    assert metric(frontend, "frontend_sequences_in_flight") == 0
    assert post(frontend).status_code == 200


def test_metrics_of_a_stream(start_frontend):
    frontend = start_frontend()
    post(frontend, slow(10, 20, stream=True))

    assert metric(frontend, "frontend_time_to_first_token_seconds_count") == 1
    assert metric(frontend, "frontend_inter_token_latency_seconds_count") == 9
    assert 0.1 < metric(frontend, "frontend_inter_token_latency_seconds_sum") < 2
    assert metric(frontend, 'frontend_tokens_total{kind="completion"}') == 10
    assert metric(frontend, 'frontend_tokens_total{kind="prompt"}') == 3
    assert metric(frontend, "frontend_sequences_waiting") == 0
    labels = 'frontend_requests_total{key="anonymous",path="/v1/completions",status="200"}'
    assert metric(frontend, labels) == 1


def test_drain_lets_streams_end_and_refuses_new_ones(start_frontend):
    frontend = start_frontend()
    threads, responses = in_background(frontend, slow(40, 50, stream=True), 16)
    wait_for(lambda: metric(frontend, "frontend_sequences_in_flight") == 16)
    frontend.process.send_signal(signal.SIGTERM)
    wait_for(lambda: httpx2.get(f"{frontend.url}/readyz").status_code == 503)
    refused = post(frontend)
    for thread in threads:
        thread.join()

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["code"] == "shutting_down"
    for response in responses:
        assert response.status_code == 200
        assert response.text.endswith("data: [DONE]\n\n")
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        text = "".join(event["choices"][0]["text"] for event in events)
        assert text.split() == (["one", "two", "three"] * 14)[:40], "cut or doubled"
    assert frontend.process.wait(10) == 0


def test_what_cannot_end_in_time_is_told_in_band(start_frontend, triton):
    before = len(ended_requests(triton))
    frontend = start_frontend("--drain-seconds=0.5")
    streams, streamed = in_background(frontend, slow(1000, 50, stream=True), 2)
    wholes, whole = in_background(frontend, slow(1000, 50), 2)
    wait_for_first_tokens(frontend, 4)
    frontend.process.send_signal(signal.SIGTERM)
    for thread in (*streams, *wholes):
        thread.join()

    for response in streamed:
        *_, event, done = [line for line in response.text.splitlines() if line]
        assert json.loads(event[6:])["error"]["code"] == "shutting_down"
        assert done == "data: [DONE]"
    assert [response.status_code for response in whole] == [503, 503]
    assert frontend.process.wait(10) == 0
    assert [line["how"] for line in ended_requests(triton)[before:]] == ["stopped"] * 4


@pytest.fixture
def own_triton(engine, tmp_path):
    process = TritonProcess(stub_repository(engine, tmp_path / "repository"), tmp_path / "cache")
    yield process.wait_ready()
    process.stop()


def test_a_dead_engine_is_503_and_a_stream_over_it_ends_with_an_error(own_triton, engine):
    frontend = FrontendProcess(own_triton.ports[1], engine / "tokenizer")
    threads, responses = in_background(frontend, slow(1000, 50, stream=True), 2)
    wait_for_first_tokens(frontend, 2)
    os.killpg(own_triton.process.pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    refused = post(frontend)

    for response in responses:
        *_, event, done = [line for line in response.text.splitlines() if line]
        assert json.loads(event[6:])["error"]["code"] == "engine_unavailable"
        assert done == "data: [DONE]"
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert "retry-after" in refused.headers
    assert httpx2.get(f"{frontend.url}/readyz").status_code == 503
    assert httpx2.get(f"{frontend.url}/healthz").status_code == 200
    assert metric(frontend, "frontend_sequences_in_flight") == 0
    assert "Traceback" not in frontend.stop()


def test_a_dead_model_process_behind_a_living_triton_is_503(own_triton, engine):
    frontend = FrontendProcess(own_triton.ports[1], engine / "tokenizer", "--silence-seconds=1")
    threads, responses = in_background(frontend, slow(1000, 50, stream=True), 1)
    wait_for_first_tokens(frontend, 1)
    (stub,) = psutil.Process(own_triton.process.pid).children()
    stub.kill()
    threads[0].join(30)
    refused = post(frontend)

    assert responses[0].text.endswith("data: [DONE]\n\n")
    assert '"server_error"' in responses[0].text
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    frontend.stop()


def test_a_stalled_engine_is_told_and_not_waited_for(own_triton, engine):
    frontend = FrontendProcess(own_triton.ports[1], engine / "tokenizer", "--silence-seconds=1")
    threads, responses = in_background(frontend, slow(1000, 50, stream=True), 1)
    wait_for_first_tokens(frontend, 1)
    os.kill(own_triton.process.pid, signal.SIGSTOP)
    try:
        threads[0].join(30)
        assert "engine_stalled" in responses[0].text
    finally:
        os.kill(own_triton.process.pid, signal.SIGCONT)
    wait_for(lambda: post(frontend).status_code == 200)
    frontend.stop()


def test_who_connected_before_the_end_is_answered(start_frontend):
    frontend = start_frontend()

    def is_refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", frontend.port)).close()
        except ConnectionRefusedError:
            return True
        return False

    with socket.create_connection(("127.0.0.1", frontend.port), timeout=10) as early:
        frontend.process.send_signal(signal.SIGTERM)
        wait_for(is_refused)
        early.sendall(b"GET /readyz HTTP/1.1\r\nHost: early\r\n\r\n")
        assert early.recv(4096).startswith(b"HTTP/1.1 503")
    assert frontend.process.wait(10) == 0


def test_a_drain_before_a_stalled_engine_is_told_in_band(own_triton, engine):
    frontend = FrontendProcess(own_triton.ports[1], engine / "tokenizer", "--drain-seconds=0.2")
    streams, streamed = in_background(frontend, slow(1000, 50, stream=True), 2)
    wholes, whole = in_background(frontend, slow(1000, 50), 2)
    wait_for_first_tokens(frontend, 4)
    os.kill(own_triton.process.pid, signal.SIGSTOP)
    try:
        frontend.process.send_signal(signal.SIGTERM)
        for thread in (*streams, *wholes):
            thread.join(30)
        assert frontend.process.wait(30) == 0
    finally:
        os.kill(own_triton.process.pid, signal.SIGCONT)
    for response in streamed:
        *_, event, done = [line for line in response.text.splitlines() if line]
        assert json.loads(event[6:])["error"]["code"] == "shutting_down"
        assert done == "data: [DONE]"
    assert [response.status_code for response in whole] == [503, 503]
    assert "Traceback" not in frontend.stop()


def test_a_traced_request_is_served_on_a_stream_of_its_own(start_frontend):
    """Triton reads the parent of a trace from its stream's metadata."""
    frontend = start_frontend()
    parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    for _ in range(3):
        assert httpx2.post(f"{frontend.url}/v1/completions", json=TEXT, headers=parent).status_code == 200


def test_a_port_that_is_taken_is_refused(engine):
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        frontend = FrontendProcess(1, engine / "tokenizer", f"--port={port}", wait=False)
        assert frontend.process.wait(30) == 2
    assert f"port {port}" in frontend.stop()


def test_an_engine_that_is_not_loaded_is_503(start_frontend):
    other = start_frontend("--engine-model=absent", wait=False)
    wait_for(lambda: other.answers("/healthz"))

    assert httpx2.get(f"{other.url}/readyz").status_code == 503
    assert (post(other).status_code, post(other).json()["error"]["code"]) == (503, "engine_unavailable")
