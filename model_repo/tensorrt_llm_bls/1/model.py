"""Triton's `tensorrt_llm_bls` model: text to text over the engine, streamed, with cancellation that frees its slot.

One request at a time in one thread, as many as there are instances: in Triton 2.51 `exec` makes numpy arrays of a
response without holding Python's lock, so a second Python thread in the same process corrupts memory.
"""

from typing import Any

import triton_python_backend_utils as pb_utils
from engine import EngineGeneration
from generation import Inputs, InvalidRequest
from llm_api import LlmApiGeneration
from model_tokenizer import ModelTokenizer, TokenizerError, parameters_of


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = parameters_of(args)
        try:
            self._tokenizer = ModelTokenizer(parameters["tokenizer_dir"], parameters["gpt_model_path"])
        except TokenizerError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self._engine_name = parameters["tensorrt_llm_model_name"]
        self._generation = LlmApiGeneration if parameters["tensorrt_llm_backend"] == "pytorch" else EngineGeneration

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self._serve(request, request.get_response_sender())

    def _serve(self, request: Any, sender: Any) -> None:
        error = None
        try:
            # A request may have waited for this instance longer than its client did.
            cancelled = sender.is_cancelled()
            if not cancelled:
                generation = self._generation(Inputs(request), self._tokenizer, self._engine_name, sender.is_cancelled)
                for tensors in generation.responses():
                    sender.send(pb_utils.InferenceResponse(tensors))
                cancelled = generation.cancelled
            if cancelled:
                error = pb_utils.TritonError("the client cancelled the request", pb_utils.TritonError.CANCELLED)
        except InvalidRequest as refusal:
            error = pb_utils.TritonError(str(refusal), pb_utils.TritonError.INVALID_ARG)
        except Exception as failure:
            error = pb_utils.TritonError(str(failure))
        # Nothing may ask the sender after this: is_cancelled() on an ended request crashes the server (Triton 2.51).
        response = None if error is None else pb_utils.InferenceResponse(error=error)
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
