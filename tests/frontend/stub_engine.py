"""A `tensorrt_llm` model for tests and benchmarks: the answer repeats the prompt's own tokens, at a pace of its own.

`min_tokens` is the pause before each token in milliseconds; without it tokens come as fast as the machine goes, one to
each running request in turn, as from a batching engine. Written down in requests.jsonl beside this file, by request:
when each token left (CLOCK_MONOTONIC, paced requests only), and how many did when it ended.

One thread sends for all requests, and what it sends is made beforehand: a token costs little more than Triton takes.
"""

import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
LOG = Path(__file__).with_name("requests.jsonl")
CHECK_SECONDS = 0.1
"""Between two looks at whether a request is cancelled; each look costs as much as a token."""


@dataclass(eq=False)
class Running:
    name: str
    sender: Any
    given: dict[str, Any]
    responses: list[Any]
    limit: int
    pause: float
    due: float
    stopped: bool = False
    checked: float = field(default_factory=time.monotonic)
    sent: int = 0
    times: list[float] = field(default_factory=list[float])


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        del args
        self.changed = threading.Condition()
        self.running: dict[str, Running] = {}
        threading.Thread(target=self.run, daemon=True).start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            given = {tensor.name(): tensor.as_numpy().reshape(-1).copy() for tensor in request.inputs()}
            sender, name = request.get_response_sender(), request.request_id() or secrets.token_hex(8)
            if "stop" in given:
                with self.changed:
                    if name in self.running:
                        self.running[name].stopped, self.running[name].due = True, 0
                        self.changed.notify()
                sender.send(flags=FINAL)
                continue
            limit, pause = int(given["request_output_len"][0]), float(given.get("min_tokens", [0])[0]) / 1000
            responses = [answer(token) for token in given["input_ids"][:limit]]
            with self.changed:
                due = time.monotonic() + pause
                self.running[name] = Running(name, sender, given, responses, limit, pause, due)
                self.changed.notify()

    def run(self) -> None:
        while True:
            with self.changed:
                while not (due := [running for running in self.running.values() if running.due <= time.monotonic()]):
                    next_due = min((running.due for running in self.running.values()), default=None)
                    self.changed.wait(None if next_due is None else next_due - time.monotonic())
            for running in due:
                self.step(running)

    def step(self, running: Running) -> None:
        now = time.monotonic()
        if running.stopped:
            self.end(running, "stopped")
            return
        if now - running.checked > CHECK_SECONDS:
            running.checked = now
            if running.sender.is_cancelled():
                self.end(running, "cancelled")
                return
        response = running.responses[running.sent % len(running.responses)]
        running.sent += 1
        if running.pause:
            running.due += running.pause
            running.times.append(now)
        if running.sent < running.limit:
            running.sender.send(response)
        else:
            self.end(running, "finished", response)

    def end(self, running: Running, how: str, response: Any = None) -> None:
        with self.changed:
            del self.running[running.name]
        given = {key: value.tolist() for key, value in running.given.items()}
        line = {"id": running.name, "how": how, "sent": running.sent, "times": running.times, "given": given}
        with LOG.open("a") as file:
            file.write(json.dumps(line) + "\n")
        running.sender.send(*([response] if response else []), flags=FINAL)


def answer(token: int) -> Any:
    """One token of one beam."""
    tensors = {"output_ids": np.full((1, 1, 1), token, np.int32), "sequence_length": np.ones((1, 1), np.int32)}
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in tensors.items()])
