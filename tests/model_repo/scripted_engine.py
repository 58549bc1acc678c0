"""A `tensorrt_llm` model for tests: answers with the prompt's own tokens, so that the prompt scripts the answer.

`min_tokens` is the pause before each token in milliseconds. At most `max_batch_size` requests run at once; the others
wait for their first token, as in an engine. What each request asked for is appended to requests.jsonl beside this file.
"""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

LOG = Path(__file__).with_name("requests.jsonl")


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.slots = threading.Semaphore(int(parameters["max_batch_size"]["string_value"]))
        self.stopped: dict[str, threading.Event] = {}
        self.lock = threading.Lock()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            given = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
            self.record({"id": request.request_id(), **{name: value.tolist() for name, value in given.items()}})
            sender = request.get_response_sender()
            if given.get("stop", np.array(False)).any():
                with self.lock:
                    self.stopped.setdefault(request.request_id(), threading.Event()).set()
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                threading.Thread(target=self.answer, args=(request.request_id(), given, sender), daemon=True).start()

    def answer(self, request_id: str, given: dict[str, Any], sender: Any) -> None:
        with self.lock:
            stopped = self.stopped.setdefault(request_id, threading.Event())
        ids = given["input_ids"].reshape(-1)[: int(given["request_output_len"].reshape(-1)[0])]
        pause = float(given.get("min_tokens", np.zeros(1)).reshape(-1)[0]) / 1000
        while not self.slots.acquire(timeout=0.02):
            if stopped.is_set():
                break
        else:
            streaming = given.get("streaming", np.array(False)).any()
            for chunk in ids.reshape(-1, 1) if streaming else [ids]:
                if stopped.wait(pause) or sender.is_cancelled():
                    break
                output = chunk.reshape(1, 1, -1).astype(np.int32)
                length = np.array([[output.shape[-1]]], np.int32)
                tensors = [pb_utils.Tensor("output_ids", output), pb_utils.Tensor("sequence_length", length)]
                sender.send(pb_utils.InferenceResponse(tensors))
            self.slots.release()
        self.record({"id": request_id, "ended": time.time(), "stopped": stopped.is_set()})
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def record(self, line: dict[str, Any]) -> None:
        with self.lock, LOG.open("a") as file:
            file.write(json.dumps(line) + "\n")
