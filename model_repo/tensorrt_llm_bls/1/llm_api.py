"""Generation over the LLM API model of the serving image, which takes and gives text (pytorch backend)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from generation import Generation, InvalidRequest, checked, text_tensor
from model_tokenizer import REPLACEMENT

SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "presence_penalty", "frequency_penalty", "seed")
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
        prompt = self._prompt()
        sent, text = 0, ""
        for response in self.request(self.engine, self._tensors(), ["text_output"]).exec(decoupled=True):
            tensors = checked(response).output_tensors()
            if not tensors:
                continue
            # Every response of the LLM API holds the whole answer so far.
            text = tensors[0].as_numpy().reshape(-1)[0].decode("utf-8").rstrip(REPLACEMENT)
            if self.streams and len(text) > sent:
                yield [text_tensor(text[sent:]), *self._counts(prompt, text)]
                sent = len(text)
        if not self.streams and not self.cancelled:
            yield [text_tensor(self.prompt_text() + text.encode()), *self._counts(prompt, text)]

    def stop_inputs(self) -> list[Any]:
        return [pb_utils.Tensor("text_input", np.array([b"-"], np.object_))]

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

    def _tensors(self) -> list[Any]:
        """The LLM API model has no batch dimension."""
        tensors = {f"sampling_param_{name}": self.inputs.tensors.get(name) for name in SAMPLING}
        tensors |= {"text_input": self.inputs.tensors["text_input"], "sampling_param_stop": self._stop()}
        flat = {name: value.reshape(-1) for name, value in tensors.items() if value is not None}
        flat |= {"streaming": np.array([self.streams]), "sampling_param_exclude_input_from_output": np.array([True])}
        return [pb_utils.Tensor(name, value) for name, value in flat.items()]

    def _stop(self) -> Any:
        words = [word.encode() for word in self.inputs.stop_words()]
        return np.array(words, np.object_) if words else None

    def _counts(self, prompt: str, text: str) -> list[Any]:
        """Counted with the tokenizer: the LLM API model gives no ids, so the answer's count is an estimate."""
        texts = {"num_input_tokens": (prompt, True), "num_output_tokens": (text, False)}
        return [
            pb_utils.Tensor(name, self.scalar(len(self.tokenizer.encode(part, add_special_tokens=special)), np.int32))
            for name, (part, special) in texts.items()
            if self.inputs.get(f"return_{name}")
        ]
