"""Triton's `preprocessing` model: text to token ids, with upstream's tensors. The text is the prompt, no template."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from model_tokenizer import ModelTokenizer, TokenizerError, parameters_of


class InvalidRequest(Exception):
    """One request that cannot be tokenised; the others of the same batch go on."""


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = parameters_of(args)
        try:
            self.tokenizer = ModelTokenizer(parameters["tokenizer_dir"], parameters["gpt_model_path"])
        except TokenizerError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.add_special_tokens = parameters["add_special_tokens"] == "true"
        self.max_seq_len = int(parameters["max_seq_len"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            outputs = self._tokenize(request)
        except InvalidRequest as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in outputs.items()])

    def _tokenize(self, request: Any) -> dict[str, Any]:
        texts = _values(request, "QUERY")
        if len(texts) != 1:
            raise InvalidRequest(f"{len(texts)} prompts in one request: send one each, the server batches requests")
        ids = self.tokenizer.encode(_text(texts[0], "the prompt"), add_special_tokens=self.add_special_tokens)
        max_tokens = int(_values(request, "REQUEST_OUTPUT_LEN")[0])
        if not ids:
            raise InvalidRequest("the prompt is empty: send at least one token of text")
        if len(ids) >= self.max_seq_len:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens and the context {self.max_seq_len}: no room for an answer; "
                f"shorten the prompt to {self.max_seq_len - 1} tokens or serve with a larger max_seq_len"
            )
        if max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {max_tokens}: ask for at least one token")
        return {
            "INPUT_ID": np.array([ids], np.int32),
            "REQUEST_INPUT_LEN": np.array([[len(ids)]], np.int32),
            # The answer ends where the context does; the tensorrt engine would shorten it the same way.
            "REQUEST_OUTPUT_LEN": np.array([[min(max_tokens, self.max_seq_len - len(ids))]], np.int32),
            "STOP_WORDS_IDS": self._word_list(request, "STOP_WORDS_DICT", "stop_words"),
            "BAD_WORDS_IDS": self._word_list(request, "BAD_WORDS_DICT", "bad_words"),
            "OUT_END_ID": np.array([[self._id(request, "END_ID", self.tokenizer.end_id)]], np.int32),
            "OUT_PAD_ID": np.array([[self._id(request, "PAD_ID", self.tokenizer.pad_id)]], np.int32),
        }

    def _word_list(self, request: Any, name: str, client_name: str) -> Any:
        """Upstream's [1, 2, n]: the ids of all words in a row, and where each word ends, padded with -1."""
        words = [_text(word, client_name) for word in _values(request, name)]
        ids = [self.tokenizer.encode(word, add_special_tokens=False) for word in words if word]
        flat = [token for word in ids for token in word]
        ends = np.cumsum([len(word) for word in ids if word]).astype(np.int32)
        lists = np.full((1, 2, len(flat)), -1, np.int32)
        lists[0, 0], lists[0, 1, : len(ends)] = flat, ends
        return lists

    def _id(self, request: Any, name: str, default: int) -> int:
        values = _values(request, name)
        return int(values[0]) if len(values) else default


def _values(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return [] if tensor is None else tensor.as_numpy().reshape(-1)


def _text(value: bytes, what: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what} is not valid UTF-8 (byte {error.start}): send text encoded as UTF-8") from None
