"""`fleet demo` is what a newcomer runs first: it must work beside whatever else the machine is doing."""

import os
from pathlib import Path

import psutil

from tests.e2e.conftest import fleet


def test_the_demo_answers_says_what_ran_where_and_leaves_nothing_running(smollm2_gguf: Path, tmp_path: Path) -> None:
    assert smollm2_gguf.exists()
    done = fleet("demo", f"--state-dir={tmp_path}", env={**os.environ, "COLUMNS": "120"})

    assert done.returncode == 0, done.stderr
    for words in ("Kubernetes is a", "3 tritonservers in one Open MPI world", "tokens/s", "python -m fleet serve"):
        assert words in done.stdout
    assert "ready in" in done.stderr
    # Ranks, servers and the frontend are told of files below their state directory.
    assert not [
        each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or [])
    ]
