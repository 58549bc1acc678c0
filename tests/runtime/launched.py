"""A launcher under test: a tiny model repository, a tiny engine, and a subprocess that serves them.

The model is not a language model. It adds numbers through MPI, so an answer proves that every rank took part in it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from runtime.process_tree import die_with_parent
from runtime.spec import engine_id
from runtime.store import EngineStore

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 45.0
T = TypeVar("T")

CONFIG = """
name: "tensorrt_llm"
backend: "python"
max_batch_size: 0
input [{ name: "x" data_type: TYPE_INT32 dims: [1] }]
output [{ name: "y" data_type: TYPE_INT32 dims: [1] }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""

MODEL = """
import os, socket, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.lifeline = socket.socket(socket.AF_UNIX)
        self.lifeline.connect(os.environ["TRITONFLEET_LIFELINE"])
        from mpi4py import MPI
        self.ranks = MPI.COMM_WORLD
        if self.ranks.rank == int(os.environ.get("TEST_FAILING_RANK", "-1")):
            raise RuntimeError("this rank was told to fail")
        self.ranks.barrier()
        while self.ranks.rank > 0:
            while not self.ranks.iprobe(source=0):
                time.sleep(0.002)
            x = self.ranks.recv(source=0)
            if x is None:
                return
            self.ranks.send(x * (self.ranks.rank + 1), dest=0)

    def execute(self, requests):
        others = range(1, self.ranks.size)
        responses = []
        for request in requests:
            x = int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy()[0])
            print(f"asked for {x}", flush=True)
            time.sleep(x / 1000 if x >= 1000 else 0)
            for rank in others:
                self.ranks.send(x, dest=rank)
            y = x + sum(self.ranks.recv(source=rank) for rank in others)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([y], np.int32))]))
        return responses

    def finalize(self):
        time.sleep(float(os.environ.get("TEST_FINALIZE_SECONDS", "0")))
        for rank in range(1, self.ranks.size):
            self.ranks.send(None, dest=rank)
"""


def write_model_repository(directory: Path) -> Path:
    (directory / "tensorrt_llm" / "1").mkdir(parents=True)
    (directory / "tensorrt_llm" / "config.pbtxt").write_text(CONFIG)
    (directory / "tensorrt_llm" / "1" / "model.py").write_text(MODEL)
    return directory


def publish_engine(store: Path, ranks: int) -> Path:
    key: dict[str, Any] = {
        "backend": "cpu",
        "model": {"source": "test://adder", "revision": "1", "architecture": "Adder", "family": "adder"},
        "dtype": "float32",
        "quantization": {"weights": "none", "kv_cache": "none"},
        "mapping": {"tensor_parallel": ranks, "pipeline_parallel": 1, "gpus_per_node": ranks},
        "target": {"gpu": None, "compute_capability": None, "mig_profile": None},
        "versions": {"cpu_engine": "1"},
        "build": {},
    }

    def build(out: Path) -> None:
        mapping = {"world_size": ranks, "tp_size": ranks, "pp_size": 1, "cp_size": 1, "gpus_per_node": ranks}
        (out / "config.json").write_text(json.dumps({"version": "1", "pretrained_config": {"mapping": mapping}}))
        for rank in range(ranks):
            (out / f"rank{rank}.safetensors").write_bytes(b"weights of rank %d" % rank)

    return EngineStore(store).publish({"engine": engine_id(key), "key": key}, build)


def until(condition: Callable[[], T], what: str, seconds: float = DEADLINE_SECONDS) -> T:
    """The condition's first true value. Fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s: {what}")


@dataclass
class Launched:
    """`python -m runtime.launch` in a subprocess; `prefix` goes before it (for example `ip netns exec NAME`)."""

    directory: Path
    arguments: Sequence[str]
    env: dict[str, str] = field(default_factory=dict[str, str])
    prefix: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.run_dir = self.directory / "run"
        self.seen: set[psutil.Process] = set()
        self.output = self.directory / "launcher.log"
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "runtime.launch", "--run-dir", str(self.run_dir), *self.arguments],
                cwd=ROOT,
                env={**os.environ, **self.env},
                stdout=output,
                stderr=subprocess.STDOUT,
                # A test run that is killed must not leave its launchers, nor what hangs on them.
                preexec_fn=die_with_parent,
            )

    def state(self) -> dict[str, Any]:
        try:
            return json.loads((self.run_dir / "state.json").read_text())
        except FileNotFoundError:
            return {"phase": None, "generation": 0, "ranks": []}

    def ready(self, generation: int = 1) -> dict[str, Any]:
        """The state once that generation, or a later one, is ready."""

        def is_ready() -> dict[str, Any] | None:
            assert self.process.poll() is None, self.log()
            state = self.state()
            return state if state["phase"] == "ready" and state["generation"] >= generation else None

        try:
            state = until(is_ready, f"generation {generation} ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        assert state is not None
        return state

    def ask(self, x: int) -> int:
        """The model's answer, asked from the host that the leader runs on."""
        body = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [x]}]}
        url = f"http://{self.state()['http'].replace('0.0.0.0', '127.0.0.1')}/v2/models/tensorrt_llm/infer"
        program = (
            "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], sys.argv[2].encode(), 20).read().decode())"
        )
        command = [*self.prefix, sys.executable, "-c", program, url, json.dumps(body)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return json.loads(answer)["outputs"][0]["data"][0]

    def until_asked(self, x: int) -> None:
        """Returns once the model works on that request."""
        log = self.run_dir / "rank0.log"
        until(lambda: f"asked for {x}\n" in log.read_text(errors="replace"), f"the model is asked for {x}")

    def ask_ignoring_failure(self, x: int) -> None:
        """For an answer that may never come."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.ask(x)

    def log(self) -> str:
        return self.output.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """Everything below the launcher."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.seen.update(below)
        return below

    def stop(self) -> int:
        """SIGTERM, as a kubelet sends it; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def destroy(self) -> None:
        """For the end of a test, however it ended."""
        if self.process.poll() is None:
            self.processes()
            self.process.kill()
            self.process.wait()
        _, alive = psutil.wait_procs(list(self.seen), timeout=10)
        for process in alive:
            process.kill()
