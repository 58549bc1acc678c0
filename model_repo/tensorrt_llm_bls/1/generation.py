"""What both kinds of engine share: the client's inputs, the engine's replies, and the stop request."""

import secrets
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import triton_python_backend_utils as pb_utils
from model_tokenizer import ModelTokenizer


class InvalidRequest(Exception):
    """The request cannot be served as it is; the message says why and what to send instead."""


class Inputs:
    """The client's tensors of one request."""

    def __init__(self, request: Any) -> None:
        self.tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}

    def get(self, name: str, default: Any = None) -> Any:
        """The scalar of that name, or `default` where the client left it out."""
        tensor = self.tensors.get(name)
        return default if tensor is None or not tensor.size else tensor.reshape(-1)[0].item()

    def text(self) -> bytes:
        return self.tensors["text_input"].reshape(-1)[0]

    def stop_words(self) -> list[str]:
        words = self.tensors.get("stop_words", np.empty(0, np.object_)).reshape(-1)
        # What is not UTF-8 is refused by preprocessing, with the reason.
        return [word.decode("utf-8", "replace") for word in words if word]


class Generation:
    """One request to `tensorrt_llm`. `is_cancelled` asks whether the client left; `cancelled`: it did, engine told."""

    def __init__(
        self, inputs: Inputs, tokenizer: ModelTokenizer, engine: str, is_cancelled: Callable[[], bool]
    ) -> None:
        self.inputs, self.tokenizer, self.engine, self._is_cancelled = inputs, tokenizer, engine, is_cancelled
        # A number: the C++ backend reads a request id with stoul, and "12ab" and "12cd" would be one request to it.
        self.request_id = str(1 + secrets.randbelow(2**63))
        self.streams = bool(inputs.get("stream", False))
        self.cancelled = False

    def responses(self) -> Iterator[list[Any]]:
        """The output tensors of each response to the client."""
        raise NotImplementedError

    def stop_inputs(self) -> dict[str, Any]:
        """A stop request: `stop`, and the tensors that the engine requires of every request."""
        raise NotImplementedError

    def replies(self, inputs: dict[str, Any], outputs: list[str]) -> Iterator[dict[str, Any]]:
        """The engine's responses by tensor name, until it ends or the client leaves; then the engine is stopped."""
        for response in self._request(self.engine, inputs, outputs).exec(decoupled=True):
            if not self.cancelled and self._is_cancelled():
                self.cancelled = True
                self.stop()
            # After a stop the engine's last responses are read all the same: it frees the slot when it says so.
            if not self.cancelled:
                reply = _tensors(response)
                if reply:
                    yield reply

    def call(self, model: str, inputs: dict[str, Any], outputs: list[str]) -> dict[str, Any]:
        """One response of a model that always gives one."""
        return _tensors(self._request(model, inputs, outputs).exec())

    def stop(self) -> None:
        """Ask the engine to end this request; nothing happens where it has ended already."""
        for response in self._request(self.engine, self.stop_inputs(), []).exec(decoupled=True):
            # The cpu engine answers with nothing, the LLM API with an error that says CANCELLED.
            if response.has_error() and response.error().code() != pb_utils.TritonError.CANCELLED:
                cast(Any, pb_utils).Logger.log_warn(f"stopping request {self.request_id}: {response.error().message()}")

    def prompt_text(self) -> bytes:
        """What a whole answer begins with: the prompt, where the client asks for it."""
        return b"" if self.inputs.get("exclude_input_in_output", True) else self.inputs.text()

    def counts(self, input_tokens: int, output_tokens: int) -> list[Any]:
        """The token counts so far that the client asked for."""
        counts = {"num_input_tokens": input_tokens, "num_output_tokens": output_tokens}
        return [
            pb_utils.Tensor(name, scalar(value, np.int32))
            for name, value in counts.items()
            if self.inputs.get(f"return_{name}")
        ]

    def _request(self, model: str, inputs: dict[str, Any], outputs: list[str]) -> Any:
        return pb_utils.InferenceRequest(
            model_name=model,
            inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
            requested_output_names=outputs,
            request_id=self.request_id,
        )


def scalar(value: Any, dtype: Any) -> Any:
    return np.array([[value]], dtype)


def text_tensor(*beams: str | bytes) -> Any:
    texts = [text.encode() if isinstance(text, str) else text for text in beams]
    return pb_utils.Tensor("text_output", np.array([texts], np.object_))


def _tensors(response: Any) -> dict[str, Any]:
    if response.has_error():
        raise InvalidRequest(response.error().message())
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
