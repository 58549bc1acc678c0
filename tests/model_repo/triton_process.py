"""A real tritonserver over a repository, and a client that streams from it."""

# pyright: basic
import json
import os
import queue
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc

from runtime.process_tree import die_with_parent
from runtime.triton import Endpoints, find_triton, rank_command
from tests.ports import free_ports

NUMPY = {bool: np.bool_, int: np.int32, float: np.float32}


class TritonProcess:
    """`wait_ready` raises with the log when the server ends instead."""

    def __init__(self, repository: Path, cache: Path, *flags: str) -> None:
        triton = find_triton(cache)
        self.ports = free_ports(3)
        self.repository, self.log = repository, repository.parent / f"{repository.name}.log"
        command = rank_command(
            triton,
            rank=0,
            backend="cpu",
            model_repository=str(repository),
            endpoints=Endpoints("127.0.0.1", *self.ports),
            shm_prefix=f"t{os.getpid()}_{self.ports[0]}_",
        )
        path = os.pathsep.join([triton.environment.get("PATH", ""), os.environ["PATH"]])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *flags],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **triton.environment, "PATH": path},
                start_new_session=True,
                # A test run that is interrupted must not leave it.
                preexec_fn=die_with_parent,
            )

    def wait_ready(self, seconds: float = 60) -> "TritonProcess":
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.ports[0]}/v2/health/ready", timeout=1)
                return self
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"tritonserver is not ready:\n{self.log.read_text()[-6000:]}")

    def wait_exit(self, seconds: float = 60) -> str:
        """The log of a server that should not have started."""
        self.process.wait(seconds)
        return self.log.read_text()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @contextmanager
    def stream(self, model: str, text: str | bytes, **inputs: Any) -> Iterator["Stream"]:
        client = grpc.InferenceServerClient(f"127.0.0.1:{self.ports[1]}")
        stream = Stream(client, model, text, inputs)
        try:
            yield stream
        finally:
            client.stop_stream(cancel_requests=not stream.ended)
            client.close()

    def ask(self, model: str, text: str | bytes, **inputs: Any) -> list[dict[str, Any]]:
        """All responses of one request, each as {output: array}; raises InferenceServerException."""
        with self.stream(model, text, **inputs) as stream:
            return list(stream)


class Stream:
    """Iterates over the responses of one request, until its final one."""

    def __init__(
        self, client: grpc.InferenceServerClient, model: str, text: str | bytes, inputs: dict[str, Any]
    ) -> None:
        self.client, self.ended = client, False
        self._queue: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        client.start_stream(lambda result, error: self._queue.put((result, error)))
        given = {"text_input": text, "max_tokens": 1000, "stream": True, **inputs}
        tensors = [_input(name, value) for name, value in given.items()]
        client.async_stream_infer(model, tensors, enable_empty_final_response=True)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> dict[str, Any]:
        while not self.ended:
            result, error = self._queue.get(timeout=60)
            if error is not None:
                self.ended = True
                raise error
            response = result.get_response()
            self.ended = response.parameters["triton_final_response"].bool_param
            if response.outputs:
                return {output.name: result.as_numpy(output.name) for output in response.outputs}
        raise StopIteration


def text_of(responses: list[dict[str, Any]]) -> str:
    return b"".join(response["text_output"].reshape(-1)[0] for response in responses).decode()


def _input(name: str, value: Any) -> grpc.InferInput:
    if isinstance(value, str | bytes):
        array = np.array([[value.encode() if isinstance(value, str) else value]], np.object_)
    elif isinstance(value, list):
        array = np.array([[word if isinstance(word, bytes) else word.encode() for word in value]], np.object_)
    elif isinstance(value, np.ndarray):
        array = value
    else:
        array = np.array([[value]], np.uint64 if name == "seed" else NUMPY[type(value)])
    tensor = grpc.InferInput(name, array.shape, _wire_type(array))
    tensor.set_data_from_numpy(array)
    return tensor


def _wire_type(array: np.ndarray) -> str:
    return {"O": "BYTES", "b": "BOOL", "i": "INT32", "u": "UINT64", "f": "FP32"}[array.dtype.kind]


def requests_seen(server: "TritonProcess") -> list[dict[str, Any]]:
    """What the stand-in for tensorrt_llm wrote down of its requests."""
    path = server.repository / "tensorrt_llm/1/requests.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
