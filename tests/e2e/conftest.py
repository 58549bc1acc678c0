"""The local stack, served for real by `python -m fleet serve`: three tritonservers in one Open MPI world."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fleet.local import read_state
from runtime.process_tree import die_with_parent
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
READY_SECONDS = 120


@dataclass(frozen=True)
class Served:
    """A running fleet: its state directory, the launcher that `fleet serve` became, and the frontend's port."""

    state_dir: Path
    process: "subprocess.Popen[str]"
    log: Path
    frontend: int

    @property
    def run_dir(self) -> Path:
        return self.state_dir / "run" / "smollm2"

    def state(self) -> dict[str, Any]:
        state = read_state(self.run_dir)
        assert state is not None, self.log.read_text()
        return state

    def wait_ready(self, generation: int) -> dict[str, Any]:
        """The state once that generation, or a later one, is ready."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            state = read_state(self.run_dir)
            if state and state["phase"] == "ready" and state["generation"] >= generation:
                return state
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(f"not ready after {READY_SECONDS} s: {self.log.read_text()}")


def fleet(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """`python -m fleet ARGUMENTS`, run to its end."""
    command = [sys.executable, "-m", "fleet", *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300, check=False, **options)


@pytest.fixture(scope="session")
def served(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    assert smollm2_gguf.exists()
    state_dir = tmp_path_factory.mktemp("fleet")
    log = state_dir / "serve.log"
    ports = free_ports(4)
    flags = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics", "frontend"), ports, strict=True)]
    command = [sys.executable, "-m", "fleet", "serve", "local", f"--state-dir={state_dir}", *flags]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            # A test run that is interrupted must not leave it, nor what hangs on it.
            preexec_fn=die_with_parent,
        )
    fleet_ = Served(state_dir, process, log, ports[-1])
    try:
        fleet_.wait_ready(1)
        yield fleet_
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
