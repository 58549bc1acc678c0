"""A `tensorrt_llm` model for tests and benchmarks: the answer repeats the prompt's own tokens, at a pace of its own.

`min_tokens` is the pause before each token in milliseconds; without it tokens come as fast as the machine goes, one to
each running request in turn, as from a batching engine. Written down in requests.jsonl beside this file, by request:
when each token left (CLOCK_MONOTONIC, paced requests only), and how many did when it ended.
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
ONE = np.array([[1]], np.int32)


@dataclass(eq=False)
class Running:
    sender: Any
    given: dict[str, Any]
    tokens: Any
    pause: float
    due: float
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
            with self.changed:
                if "stop" in given:
                    if name in self.running:
                        self.end(name, "stopped")
                    sender.send(flags=FINAL)
                    continue
                tokens = np.resize(given["input_ids"], given["request_output_len"][0]).reshape(-1, 1, 1, 1)
                pause = float(given.get("min_tokens", [0])[0]) / 1000
                self.running[name] = Running(sender, given, tokens, pause, time.monotonic() + pause)
                self.changed.notify()

    def run(self) -> None:
        while True:
            with self.changed:
                while not self.running:
                    self.changed.wait()
                now = time.monotonic()
                early = min(running.due for running in self.running.values()) - now
                if early > 0:
                    self.changed.wait(early)
                    continue
                batch = [name for name, running in self.running.items() if running.due <= now]
            for name in batch:
                with self.changed:
                    if name in self.running:
                        self.step(name, self.running[name])

    def step(self, name: str, running: Running) -> None:
        if running.sender.is_cancelled():
            self.end(name, "cancelled")
            return
        tokens = pb_utils.Tensor("output_ids", running.tokens[running.sent])
        response = pb_utils.InferenceResponse([tokens, pb_utils.Tensor("sequence_length", ONE)])
        running.sent += 1
        running.due += running.pause
        if running.pause:
            running.times.append(time.monotonic())
        if running.sent < len(running.tokens):
            running.sender.send(response)
        else:
            self.end(name, "finished", response)

    def end(self, name: str, how: str, response: Any = None) -> None:
        running = self.running.pop(name)
        given = {key: value.tolist() for key, value in running.given.items()}
        line = {"id": name, "how": how, "sent": running.sent, "times": running.times, "given": given}
        with LOG.open("a") as file:
            file.write(json.dumps(line) + "\n")
        running.sender.send(*([response] if response else []), flags=FINAL)
