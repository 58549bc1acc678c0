"""Triton's `tensorrt_llm_bls` model over gRPC: text in, text out, where `tensorrt_llm` takes no token ids (pytorch)."""

import struct
from collections.abc import Callable
from typing import Any

from frontend.engine import Answer, Engine, Metadata, Tokens
from frontend.errors import ApiError
from frontend.messages import Generation, add_numbers, add_tensor, pb
from frontend.tokenizer import ModelTokenizer

LENGTH = 4
"""Bytes that say how long a BYTES element is, before it."""
UNKNOWN = -1
"""The id of a token that only its text tells of."""


class TextEngine(Engine):
    """Its answers have a count of tokens and no ids; log probabilities and prompts of token ids are refused."""

    def __init__(self, address: str, model: str, silence_seconds: float, tokenizer: ModelTokenizer) -> None:
        super().__init__(address, model, silence_seconds)
        self.tokenizer = tokenizer

    def answer(self, generation: Generation, metadata: Metadata = ()) -> Answer:
        """As of `Engine`. Raises ApiError for what text cannot carry."""
        if generation.log_probs:
            raise _unsupported("logprobs", "the engine gives text, and no log probabilities: leave it out")
        if generation.text is None:
            raise _unsupported("prompt", "the engine takes text, not token ids: send the prompt as text")
        self._last_id += 1
        prompt = self.tokenizer.without_bos(generation.text)
        return TextAnswer(self, _message(self.model, str(self._last_id), prompt, generation), metadata)


class TextAnswer(Answer):
    """Has no stop request: its stream is cancelled, after which `tensorrt_llm_bls` stops the engine. That never crashed
    Triton 2.51, unlike cancelling a stream of `tensorrt_llm` itself."""

    _piece, _told = "", 0

    def text_of(self, decode: Callable[[list[int]], str]) -> Callable[[list[int]], str]:
        del decode
        return lambda _: self._piece

    def stop(self) -> None:
        self.stopped = True
        if self._call is not None:
            self._call.cancel()

    async def _finish(self, call: Any) -> None:
        call.cancel()

    def _tokens(self, response: Any, final: bool) -> Tokens:
        self._piece, before = "", self._told
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            if output.name == "text_output":
                self._piece = raw[LENGTH:].decode()
            elif output.name == "num_output_tokens":
                self._told = int.from_bytes(raw, "little")
        return Tokens([UNKNOWN] * (self._told - before), [], final)


def _message(model: str, request_id: str, prompt: str, generation: Generation) -> Any:
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    text = prompt.encode()
    add_tensor(request, "text_input", "BYTES", struct.pack("<I", len(text)) + text)
    for name in ("stream", "return_num_output_tokens"):
        add_tensor(request, name, "BOOL", b"\1")
    integers = {"max_tokens": generation.max_tokens, "top_k": generation.top_k}
    add_numbers(request, generation, integers, {"top_p": generation.top_p})
    for name in ("text_output", "num_output_tokens"):
        request.outputs.add(name=name)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def _unsupported(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="unsupported_parameter")
