"""What both kinds of engine share: the client's inputs, stop words in text, and the stop request."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from model_tokenizer import ModelTokenizer


class InvalidRequest(Exception):
    """The request cannot be served as it is; the message says why and what to send instead."""


class Inputs:
    """The client's tensors of one request, copied: Triton may reuse their memory once `execute` has returned."""

    def __init__(self, request: Any) -> None:
        self.tensors = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
        if self.tensors["text_input"].size != 1:
            raise InvalidRequest("more than one prompt in one request: send one each, the server batches requests")

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
    """One request to `tensorrt_llm`. `responses` yields the output tensors of each response to the client."""

    def __init__(self, inputs: Inputs, request_id: str, tokenizer: ModelTokenizer, engine: str) -> None:
        self.inputs, self.request_id, self.tokenizer, self.engine = inputs, request_id, tokenizer, engine
        self.streams = bool(inputs.get("stream", False))
        self.cancelled = self.ended = False
        self.ending = threading.Lock()

    def responses(self) -> Iterator[list[Any]]:
        raise NotImplementedError

    def stop_inputs(self) -> list[Any]:
        """The tensors besides `stop` that the engine requires of a stop request."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ask the engine to end this request; nothing happens where it has ended already."""
        inputs = [*self.stop_inputs(), pb_utils.Tensor("stop", self.scalar(True, np.bool_))]
        # The answer is empty, or says that the request was cancelled.
        for _ in self.request(self.engine, inputs, []).exec(decoupled=True):
            pass

    def request(self, model: str, inputs: list[Any], outputs: list[str]) -> Any:
        return pb_utils.InferenceRequest(
            model_name=model, inputs=inputs, requested_output_names=outputs, request_id=self.request_id
        )

    def scalar(self, value: Any, dtype: Any) -> Any:
        return np.array([[value]], dtype)

    def prompt_text(self) -> bytes:
        """What a whole answer begins with: the prompt, if the client asks for it (upstream's default is not rendered)."""
        return b"" if self.inputs.get("exclude_input_in_output", True) else self.inputs.text()


class StopWords:
    """Finds stop words in streamed text: the engine finds them by tokens, and text has other tokens in other places."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._tail = ""
        self.found = False

    def cut(self, piece: str) -> str:
        """`piece`, ended after the first stop word that it completes."""
        text = self._tail + piece
        ends = [text.find(word) + len(word) for word in self._words if word in text]
        if ends:
            self.found = True
            return text[len(self._tail) : min(ends)]
        keep = max((len(word) for word in self._words), default=1) - 1
        self._tail = text[len(text) - keep :] if keep else ""
        return piece


def text_tensor(text: str | bytes) -> Any:
    return pb_utils.Tensor("text_output", np.array([[text.encode() if isinstance(text, str) else text]], np.object_))


def checked(response: Any) -> Any:
    """The response itself; raises what went wrong in the model that sent it."""
    if response.has_error():
        raise InvalidRequest(response.error().message())
    return response
