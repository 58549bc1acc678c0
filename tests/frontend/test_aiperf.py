"""aiperf, unmodified, loads the frontend with streamed chats. `make aiperf` installs it."""

# pyright: basic
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frontend.serving import ROOT

AIPERF = ROOT / ".venv" / "aiperf" / "bin" / "aiperf"
REQUESTS, TOKENS, PAUSE_MS = 8, 12, 10


@pytest.fixture
def aiperf() -> Path:
    if not AIPERF.exists():
        pytest.skip("no .venv/aiperf: `make aiperf` installs the load generator (1.2 GB)")
    return AIPERF


def test_it_finds_every_request_answered_and_timed(aiperf, frontend, engine, tmp_path):
    flags = {
        "model": "smollm2",
        "url": frontend.url,
        "endpoint-type": "chat",
        "tokenizer": engine / "tokenizer",
        "request-count": REQUESTS,
        "concurrency": 2,
        "isl": 20,
        "osl": TOKENS,
        # The stub engine waits so long before each token.
        "extra-inputs": f"min_tokens:{PAUSE_MS}",
        "artifact-dir": tmp_path,
        "ui": "none",
    }
    command = [str(aiperf), "profile", "--streaming", "--no-gpu-telemetry"]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "profile_export_aiperf.json").read_text())

    assert report["completed_request_count"]["avg"] == REQUESTS
    assert report["request_error_rate"]["avg"] == 0
    assert report["usage_completion_tokens"]["min"] == report["usage_completion_tokens"]["max"] == TOKENS
    assert report["time_to_first_token"]["min"] >= PAUSE_MS
    assert 0 < report["inter_token_latency"]["avg"] < report["request_latency"]["avg"]


def test_fleet_bench_uses_it_where_it_is_on_path(aiperf, frontend, engine):
    command = [
        sys.executable,
        "-m",
        "fleet",
        "bench",
        f"--url={frontend.url}/v1",
        f"--tokenizer={engine / 'tokenizer'}",
    ]
    command += [f"--requests={REQUESTS}", "--concurrency=2", "--input-tokens=20", f"--output-tokens={TOKENS}", "--json"]
    environment = {**os.environ, "PATH": f"{aiperf.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)

    assert (report["tool"], report["requests"], report["failed"], report["errors"]) == ("aiperf", REQUESTS, 0, [])
    assert report["output_tokens"] == REQUESTS * TOKENS
    assert report["time_to_first_token_ms"]["p50"] >= TOKENS, "the stub engine waits min_tokens before each"
    assert report["output_tokens_per_s"] == pytest.approx(REQUESTS * TOKENS / report["seconds"], rel=0.01)
