"""Triton's `tensorrt_llm` model on the CPU backend: upstream's tensors in front of the sharded numpy engine.

Every MPI rank loads this model in its own tritonserver. Rank 0 serves; the others never return from `initialize`,
as with the upstream backend in leader mode.
"""

# Triton adds its classes to triton_python_backend_utils only after this module is loaded.
from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from batcher import Batcher, Output, Request
from llama import ShardedLlama
from mpi4py import MPI
from sampling import SamplingParameters

METRICS_PERIOD_SECONDS = 0.25


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self._lifeline = _connect_lifeline()
        model = ShardedLlama(Path(parameters["gpt_model_path"]), MPI.COMM_WORLD)
        MPI.COMM_WORLD.Barrier()
        if MPI.COMM_WORLD.rank:
            model.follow()
            os._exit(0)
        self.batcher = Batcher(
            model,
            max_batch_size=int(parameters["max_batch_size"]),
            max_queue_size=int(parameters["max_queue_size"]),
            kv_cache_tokens=int(parameters["cpu_kv_cache_tokens"]),
            max_seq_len=int(parameters["max_seq_len"]),
            on_failure=_end_rank,
        )
        _export_metrics(self.batcher, {"model": args["model_name"], "version": args["model_version"]})

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                refusal = self._start(request, sender)
            except ValueError as error:
                refusal = str(error)
            if refusal:
                _send_error(sender, refusal)

    def finalize(self) -> None:
        self.batcher.stop()

    def _start(self, request: pb_utils.InferenceRequest, sender: pb_utils.ResponseSender) -> str | None:
        if _scalar(request, "stop", False):
            self.batcher.cancel(request.request_id())
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return None
        if int(_scalar(request, "beam_width", 1)) != 1:
            return "beam_width above 1 is not supported by the CPU backend: leave it out"
        prompt = _values(request, "input_ids")
        if prompt is None:
            return "input_ids is missing: send the prompt's token ids"
        prompt = prompt.astype(np.int32)
        end_id = _scalar(request, "end_id", None)
        sampling = SamplingParameters(
            temperature=float(_scalar(request, "temperature", 1.0)),
            top_k=int(_scalar(request, "runtime_top_k", 0)),
            top_p=float(_scalar(request, "runtime_top_p", 0.0)),
            repetition_penalty=float(_scalar(request, "repetition_penalty", 1.0)),
            presence_penalty=float(_scalar(request, "presence_penalty", 0.0)),
            frequency_penalty=float(_scalar(request, "frequency_penalty", 0.0)),
            seed=int(_scalar(request, "seed", 0)),
            end_id=None if end_id is None or end_id < 0 else int(end_id),
            min_tokens=int(_scalar(request, "min_tokens", 0)),
            bad_words=tuple(tuple(word) for word in _words(request, "bad_words_list") if word),
        )
        # The prompt comes back before the first tokens where the caller asks for it, as upstream.
        echo: list[int] = [] if _scalar(request, "exclude_input_in_output", True) else prompt.tolist()

        def emit(output: Output) -> None:
            if output.error:
                _send_error(sender, output.error)
                return
            response = pb_utils.InferenceResponse(_tensors([*echo, *output.tokens], output, len(prompt)))
            echo.clear()
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if output.final else 0
            sender.send(response, flags=flags)

        return self.batcher.submit(
            Request(
                id=request.request_id() or secrets.token_hex(8),
                prompt=prompt,
                max_tokens=int(_scalar(request, "request_output_len", 0)),
                sampling=sampling,
                emit=emit,
                is_cancelled=sender.is_cancelled,
                streaming=bool(_scalar(request, "streaming", False)),
                wants_log_probs=bool(_scalar(request, "return_log_probs", False)),
                stop_words=_words(request, "stop_words_list"),
            )
        )


def _tensors(tokens: list[int], output: Output, prompt_length: int) -> list[pb_utils.Tensor]:
    """Upstream's outputs, with a batch and, where upstream has it, a beam dimension of one."""
    log_probs = output.log_probs or [0.0] * len(output.tokens)
    return [
        pb_utils.Tensor("output_ids", np.array([[tokens]], np.int32)),
        pb_utils.Tensor("sequence_length", np.array([[len(tokens)]], np.int32)),
        pb_utils.Tensor("cum_log_probs", np.array([[output.cum_log_prob]], np.float32)),
        pb_utils.Tensor("output_log_probs", np.array([[log_probs]], np.float32)),
        pb_utils.Tensor("num_input_tokens", np.array([[prompt_length]], np.int32)),
        pb_utils.Tensor("num_output_tokens", np.array([[output.generated]], np.int32)),
    ]


def _values(request: pb_utils.InferenceRequest, name: str) -> npt.NDArray[Any] | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().reshape(-1)


def _scalar(request: pb_utils.InferenceRequest, name: str, default: Any) -> Any:
    values = _values(request, name)
    return default if values is None else values[0]


def _words(request: pb_utils.InferenceRequest, name: str) -> list[list[int]]:
    """Upstream's word list [2, n]: token ids, and where each word ends, padded with -1."""
    values = _values(request, name)
    if values is None:
        return []
    ids, ends = (row.tolist() for row in values.reshape(2, -1))
    ends = [end for end in ends if end > 0]
    return [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _send_error(sender: pb_utils.ResponseSender, message: str) -> None:
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message))
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _connect_lifeline() -> socket.socket | None:
    """A connection that the rank's launcher watches: it breaks when this process ends, however it ends."""
    path = os.environ.get("TRITONFLEET_LIFELINE")
    if not path:
        return None
    lifeline = socket.socket(socket.AF_UNIX)
    lifeline.connect(path)
    return lifeline


def _end_rank(error: Exception) -> None:
    print(f"error: the CPU engine failed: {type(error).__name__}: {error}", flush=True)
    time.sleep(0.2)  # lets the error responses leave before the group goes down
    os._exit(1)


def _export_metrics(batcher: Batcher, labels: dict[str, str]) -> None:
    # Triton deletes a family, and with it its metrics, when nothing refers to the family any more.
    metrics: dict[tuple[str, str], tuple[pb_utils.MetricFamily, pb_utils.Metric]] = {}
    families: dict[str, pb_utils.MetricFamily] = {}
    for family, kind in batcher.gauges():
        if family not in families:
            families[family] = pb_utils.MetricFamily(
                name=f"nv_trt_llm_{family}_metrics",
                description=f"TRT LLM {family.replace('_', ' ')} metrics",
                kind=pb_utils.MetricFamily.GAUGE,
            )
        label = "inflight_batcher_specific_metric" if family == "inflight_batcher" else f"{family}_type"
        metrics[family, kind] = families[family], families[family].Metric(labels={**labels, label: kind})

    def refresh() -> None:
        shown: dict[tuple[str, str], float] = {}
        while True:
            for key, value in batcher.gauges().items():
                if shown.get(key) != value:
                    metrics[key][1].set(value)
                    shown[key] = value
            time.sleep(METRICS_PERIOD_SECONDS)

    threading.Thread(target=refresh, name="metrics", daemon=True).start()
