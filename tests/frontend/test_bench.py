"""`fleet bench` against a real frontend, and against what is none."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet.bench import Answer, summary
from tests.frontend.serving import FrontendProcess
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]


def bench(url: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fleet", "bench", f"--url={url}/v1", "--tool=own", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_every_token_is_counted_and_no_faster_than_the_engine(frontend: FrontendProcess) -> None:
    # The stub engine waits `min_tokens` milliseconds before each token.
    done = bench(frontend.url, "--requests=8", "--concurrency=4", "--input-tokens=20", "--output-tokens=12", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["model"], report["requests"], report["failed"]) == ("smollm2", 8, 0)
    assert report["output_tokens"] == 8 * 12
    assert report["prompt_tokens"] > 8 * 20
    # The first piece may come late, and the pace after it is the quicker for that.
    assert 8 <= report["inter_token_latency_ms"]["p50"] <= report["inter_token_latency_ms"]["p99"]
    assert report["time_to_first_token_ms"]["p50"] >= 12
    assert report["request_latency_ms"]["p50"] >= 12 * 12
    assert report["output_tokens_per_s"] == pytest.approx(8 * 12 / report["seconds"], rel=0.01)


def test_people_get_a_table_and_a_picture(frontend: FrontendProcess) -> None:
    done = bench(frontend.url, "--requests=4", "--output-tokens=4")
    assert done.returncode == 0, done.stderr
    assert "output tokens/s" in done.stdout
    assert "time to first token" in done.stdout
    assert "first token came within (ms)" in done.stdout
    assert "┤" in done.stdout


def test_who_does_not_answer_is_said_in_one_error(frontend: FrontendProcess) -> None:
    (port,) = free_ports(1)
    done = bench(f"http://127.0.0.1:{port}")
    assert done.returncode == 1
    assert "does not answer as OpenAI's API" in done.stderr
    assert "Traceback" not in done.stderr
    done = bench(frontend.url, "--model=nobody")
    assert done.returncode == 1
    assert "HTTP 404" in done.stderr


def test_refused_requests_count_as_failed(start_frontend: Callable[..., FrontendProcess], tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = {"name": "slow", "sha256": hashlib.sha256(b"k").hexdigest(), "requests_per_minute": 3}
    keys.write_text(json.dumps({"keys": [key]}))
    served = start_frontend(f"--api-keys={keys}")
    done = bench(served.url, "--api-key=k", "--model=smollm2", "--requests=6", "--output-tokens=2", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["failed"] == 6 - 2, "the first of three was the one that warms up"
    assert "429" in report["errors"][0]


def test_the_pace_of_an_answer_is_a_tokens_not_a_pieces() -> None:
    """A piece may hold several tokens."""
    answer = Answer(sent=10.0, pieces=[10.5, 11.0, 12.5], prompt_tokens=7, output_tokens=5)
    cut = Answer(sent=10.0, pieces=[10.1], error="the stream ended before [DONE]")
    report = summary([answer, cut], seconds=4.0)
    assert report["inter_token_latency_ms"]["p50"] == 500.0
    assert report["time_to_first_token_ms"]["p50"] == 500.0
    assert report["request_latency_ms"]["mean"] == 2500.0
    assert (report["failed"], report["output_tokens_per_s"]) == (1, 1.25)
