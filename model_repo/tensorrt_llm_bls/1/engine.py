"""Generation over token ids: preprocessing, then the engine (tensorrt and cpu backends)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from detokenizer import Detokenizer, StopWords, whole
from generation import Generation, InvalidRequest, scalar, text_tensor

TO_PREPROCESSING = {
    "text_input": "QUERY",
    "max_tokens": "REQUEST_OUTPUT_LEN",
    "bad_words": "BAD_WORDS_DICT",
    "stop_words": "STOP_WORDS_DICT",
    "end_id": "END_ID",
    "pad_id": "PAD_ID",
}
FROM_PREPROCESSING = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "STOP_WORDS_IDS": "stop_words_list",
    "BAD_WORDS_IDS": "bad_words_list",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
}
SAME_NAME = (
    *("temperature", "repetition_penalty", "min_tokens", "presence_penalty", "frequency_penalty"),
    *("seed", "return_log_probs", "beam_width"),
)
OTHER_NAME = {"top_k": "runtime_top_k", "top_p": "runtime_top_p", "length_penalty": "len_penalty"}
TO_ENGINE = OTHER_NAME | {name: name for name in SAME_NAME}
LOG_PROBS = ("cum_log_probs", "output_log_probs")


class EngineGeneration(Generation):
    def responses(self) -> Iterator[list[Any]]:
        beams = self.inputs.get("beam_width", 1)
        if self.streams and beams != 1:
            raise InvalidRequest("beams change until the search ends: leave stream out, or beam_width")
        preprocessed = self.call("preprocessing", self._given(TO_PREPROCESSING), list(FROM_PREPROCESSING))
        self._input_tokens = int(preprocessed["REQUEST_INPUT_LEN"].reshape(-1)[0])
        inputs = {FROM_PREPROCESSING[name]: value for name, value in preprocessed.items()} | self._given(TO_ENGINE)
        # Token by token also for a client that wants the answer whole: only so is a stop word or a cancellation seen.
        inputs |= {"streaming": scalar(beams == 1, np.bool_), "exclude_input_in_output": scalar(True, np.bool_)}
        outputs = ["output_ids", "sequence_length", *(LOG_PROBS if self.inputs.get("return_log_probs") else ())]
        replies = self.replies(inputs, outputs)
        if beams != 1:
            yield from self._search(replies)
        elif self.streams:
            yield from self._stream(replies)
        else:
            yield from self._collect(replies)

    def stop_inputs(self) -> dict[str, Any]:
        required = {name: scalar(0, np.int32) for name in ("input_ids", "input_lengths", "request_output_len")}
        return required | {"stop": scalar(True, np.bool_)}

    def _given(self, names: dict[str, str]) -> dict[str, Any]:
        tensors = self.inputs.tensors
        return {name: tensors[client] for client, name in names.items() if client in tensors}

    def _stream(self, replies: Iterator[dict[str, Any]]) -> Iterator[list[Any]]:
        for piece, extras in self._pieces(replies):
            if piece or extras:
                yield [text_tensor(piece), *extras]

    def _collect(self, replies: Iterator[dict[str, Any]]) -> Iterator[list[Any]]:
        pieces: list[str] = []
        log_probs: list[dict[str, Any]] = []
        extras = self.counts(self._input_tokens, 0)
        for piece, extras in self._pieces(replies, log_probs):  # noqa: B007 the last ones are wanted
            pieces.append(piece)
        if not self.cancelled:
            yield [text_tensor(self.prompt_text() + "".join(pieces).encode()), *extras, *_joined(log_probs)]

    def _pieces(
        self, replies: Iterator[dict[str, Any]], log_probs: list[dict[str, Any]] | None = None
    ) -> Iterator[tuple[str, list[Any]]]:
        """The text that each reply completes, and the other tensors that go with it."""
        answer, stops = Detokenizer(self.tokenizer), StopWords(self.inputs.stop_words())
        for reply in replies:
            if stops.found:
                continue
            piece = stops.cut(answer.push(_beams_of(reply)[0]))
            extras = self.counts(self._input_tokens, len(answer.ids))
            if log_probs is None:
                extras += _log_probs(reply)
            else:
                log_probs.append(reply)
            yield piece, extras
            if stops.found:
                self.stop()

    def _search(self, replies: Iterator[dict[str, Any]]) -> Iterator[list[Any]]:
        for reply in replies:
            beams = _beams_of(reply)
            texts = [self.prompt_text() + whole(self.tokenizer, ids).encode() for ids in beams]
            yield [text_tensor(*texts), *_log_probs(reply), *self.counts(self._input_tokens, len(beams[0]))]


def _beams_of(reply: dict[str, Any]) -> list[list[int]]:
    """output_ids [1, beams, n], each beam as long as its sequence_length says."""
    lengths = reply["sequence_length"].reshape(-1)
    beams = reply["output_ids"].reshape(len(lengths), reply["output_ids"].shape[-1])
    return [ids[:length].tolist() for ids, length in zip(beams, lengths, strict=True)]


def _log_probs(reply: dict[str, Any]) -> list[Any]:
    return [pb_utils.Tensor(name, reply[name]) for name in LOG_PROBS if name in reply]


def _joined(replies: list[dict[str, Any]]) -> list[Any]:
    """Log probabilities of a whole answer: cum_log_probs is a running sum, output_log_probs has each token's own."""
    with_probs = [reply for reply in replies if all(name in reply for name in LOG_PROBS)]
    if not with_probs:
        return []
    each = np.concatenate([reply["output_log_probs"] for reply in with_probs], axis=-1)
    return _log_probs({"cum_log_probs": with_probs[-1]["cum_log_probs"], "output_log_probs": each})
