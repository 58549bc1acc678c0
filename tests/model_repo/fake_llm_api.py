"""Stands in for the serving image's LLM API model, which needs a GPU: same tensors, same way to get its arguments.

Answers with the prompt, letter by letter; every response holds the whole text so far, as the real one's does.
`top_k` is the pause before each letter in milliseconds.
"""

# pyright: basic, reportMissingImports=false
import json
import os
import threading
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.log = Path(args["model_repository"]) / args["model_version"] / "requests.jsonl"
        self.record({"arguments": json.loads(Path(os.environ["LLM_CONFIG_PATH"]).read_text())})
        self.stopped: dict[str, threading.Event] = {}

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            given = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
            self.record({name: [str(item) for item in value.tolist()] for name, value in given.items()})
            sender, stopped = (
                request.get_response_sender(),
                self.stopped.setdefault(request.request_id(), threading.Event()),
            )
            if "stop" in given:
                stopped.set()
                error = pb_utils.TritonError("Request cancelled by client", pb_utils.TritonError.CANCELLED)
                sender.send(
                    pb_utils.InferenceResponse(error=error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
                )
            else:
                threading.Thread(target=self.answer, args=(given, sender, stopped), daemon=True).start()

    def answer(self, given: dict[str, Any], sender: Any, stopped: threading.Event) -> None:
        text = given["text_input"][0].decode()[: int(given["sampling_param_max_tokens"][0])]
        pause = float(given.get("sampling_param_top_k", np.zeros(1))[0]) / 1000
        finish = "length" if len(text) == given["sampling_param_max_tokens"][0] else "stop"
        for end in range(1, len(text) + 1):
            if stopped.wait(pause):
                break
            final = end == len(text)
            tensors = [pb_utils.Tensor("text_output", np.array([helpers.encode(text[:end])], np.object_))]
            if given.get("return_finish_reason"):
                reason = str(finish if final else None).encode()
                tensors.append(pb_utils.Tensor("finish_reason", np.array([reason], np.object_)))
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
            sender.send(pb_utils.InferenceResponse(tensors), flags=flags)
        else:
            return
        self.record({"ended": "stopped"})
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def record(self, line: dict[str, Any]) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
