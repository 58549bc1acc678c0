"""Generation over the LLM API model of the serving image, which takes and gives text (pytorch backend)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from generation import Generation, InvalidRequest, text_tensor
from model_tokenizer import REPLACEMENT

SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "presence_penalty", "frequency_penalty", "seed")
UNFINISHED = b"None"
# Client tensors without a counterpart there, and the value that changes nothing.
UNSUPPORTED = {
    "bad_words": None,
    "end_id": None,
    "pad_id": None,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "min_tokens": 0,
    "return_log_probs": False,
    "beam_width": 1,
}


class LlmApiGeneration(Generation):
    def responses(self) -> Iterator[list[Any]]:
        for name, neutral in UNSUPPORTED.items():
            if self.inputs.get(name, neutral) != neutral:
                raise InvalidRequest(f"{name} is not supported by the pytorch backend: leave it out")
        input_tokens = len(self.tokenizer.encode(self._prompt(), add_special_tokens=True))
        text, counts, output_tokens = "", self.counts(input_tokens, 0), 0
        for reply in self.replies(self._tensors(), ["text_output", "finish_reason"]):
            # Every response of the LLM API holds the whole answer so far.
            sent, text = text, reply["text_output"].reshape(-1)[0].decode("utf-8").rstrip(REPLACEMENT)
            piece, finish = text[len(sent) :], reply["finish_reason"].reshape(-1)[0]
            output_tokens = self._output_tokens(output_tokens, piece, finish)
            counts = self.counts(input_tokens, output_tokens)
            if self.streams and (piece or (counts and finish != UNFINISHED)):
                yield [text_tensor(piece), *counts]
        if not self.streams and not self.cancelled:
            yield [text_tensor(self.prompt_text() + text.encode()), *counts]

    def stop_inputs(self) -> dict[str, Any]:
        return {"text_input": np.array([b"-"], np.object_), "stop": np.array([True])}

    def _prompt(self) -> str:
        try:
            prompt = self.inputs.text().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"the prompt is not valid UTF-8 (byte {error.start}): send text encoded as UTF-8"
            ) from None
        if not prompt:
            raise InvalidRequest("the prompt is empty: send at least one token of text")
        return prompt

    def _tensors(self) -> dict[str, Any]:
        """The LLM API model has no batch dimension. Always streamed, so that a cancellation is seen between tokens."""
        given = {f"sampling_param_{name}": self.inputs.tensors.get(name) for name in SAMPLING}
        given |= {"text_input": self.inputs.tensors["text_input"], "sampling_param_stop": self._stop_words()}
        tensors = {name: value.reshape(-1) for name, value in given.items() if value is not None}
        always = ("streaming", "sampling_param_exclude_input_from_output", "return_finish_reason")
        return tensors | {name: np.array([True]) for name in always}

    def _stop_words(self) -> Any:
        words = [word.encode() for word in self.inputs.stop_words()]
        return np.array(words, np.object_) if words else None

    def _output_tokens(self, before: int, piece: str, finish: bytes) -> int:
        """The LLM API model gives no token ids, so the count is an estimate: each piece of text, tokenised again. It is
        max_tokens where the answer ended for that, and less where it did not."""
        if not self.inputs.get("return_num_output_tokens"):
            return 0
        most = self.inputs.get("max_tokens")
        if finish == b"length":
            return most
        return min(before + len(self.tokenizer.encode(piece, add_special_tokens=False)), most - 1)
