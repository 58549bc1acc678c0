"""Triton's `tensorrt_llm_bls` model: text to text over the engine, streamed, with cancellation that frees its slot.

One instance serves every request, each in a thread of its own: a python instance takes the next request as soon as
`execute` returns, and a process for each request (upstream's bls_instance_count) would cost far more memory.
"""

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb_utils
from engine import EngineGeneration
from generation import Generation, InvalidRequest, Inputs
from llm_api import LlmApiGeneration
from model_tokenizer import ModelTokenizer, TokenizerError, parameters_of

CANCEL_POLL_SECONDS = 0.1


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = parameters_of(args)
        try:
            self._tokenizer = ModelTokenizer(parameters["tokenizer_dir"], parameters["gpt_model_path"])
        except TokenizerError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self._engine_name = parameters["tensorrt_llm_model_name"]
        self._generation = LlmApiGeneration if parameters["tensorrt_llm_backend"] == "pytorch" else EngineGeneration
        self._max_requests = int(parameters["max_requests"])
        self._pool = ThreadPoolExecutor(self._max_requests, thread_name_prefix="request")
        self._running: dict[Generation, Any] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch_cancellation, name="cancellation", daemon=True)
        self._watcher.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._start(Inputs(request), sender)
            except InvalidRequest as error:
                _finish(sender, pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))

    def finalize(self) -> None:
        self._stopping.set()
        self._watcher.join()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, inputs: Inputs, sender: Any) -> None:
        # A number: the C++ backend reads a request id with stoul, so two ids like "12ab…" and "12cd…" would be one to it.
        request_id = str(1 + secrets.randbelow(2**63))
        generation = self._generation(inputs, request_id, self._tokenizer, self._engine_name)
        with self._lock:
            full = len(self._running) >= self._max_requests
            if not full:
                self._running[generation] = sender
        if full:
            message = f"{self._max_requests} requests are already running or queued: send the request again in a moment"
            _finish(sender, pb_utils.TritonError(message, pb_utils.TritonError.UNAVAILABLE))
        else:
            self._pool.submit(self._run, generation, sender)

    def _run(self, generation: Generation, sender: Any) -> None:
        error = None
        try:
            for tensors in generation.responses():
                sender.send(pb_utils.InferenceResponse(tensors))
        except InvalidRequest as refusal:
            error = pb_utils.TritonError(str(refusal), pb_utils.TritonError.INVALID_ARG)
        except Exception as failure:
            error = pb_utils.TritonError(str(failure))
        if generation.cancelled:
            error = pb_utils.TritonError("the client cancelled the request", pb_utils.TritonError.CANCELLED)
        with self._lock:
            del self._running[generation]
        with generation.ending:
            generation.ended = True
            _finish(sender, error)

    def _watch_cancellation(self) -> None:
        # A thread that waits for its next token cannot look; a queued request may wait long for its first.
        while not self._stopping.wait(CANCEL_POLL_SECONDS):
            with self._lock:
                running = list(self._running.items())
            for generation, sender in running:
                with generation.ending:
                    # Asking after the final response, or while it is sent, crashes the whole server (Triton 2.51).
                    found = not (generation.ended or generation.cancelled) and sender.is_cancelled()
                    generation.cancelled |= found
                if found:
                    generation.stop()


def _finish(sender: Any, error: Any) -> None:
    if error is not None:
        sender.send(pb_utils.InferenceResponse(error=error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    else:
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
