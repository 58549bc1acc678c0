"""Generation over token ids: preprocessing, then the engine (tensorrt and cpu backends)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from detokenizer import Detokenizer, whole
from generation import Generation, InvalidRequest, StopWords, checked, text_tensor

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
TO_ENGINE = {
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "length_penalty": "len_penalty",
    **{
        name: name
        for name in (
            *("temperature", "repetition_penalty", "min_tokens", "presence_penalty", "frequency_penalty"),
            *("seed", "return_log_probs", "beam_width"),
        )
    },
}
LOG_PROBS = ("cum_log_probs", "output_log_probs")


class EngineGeneration(Generation):
    def responses(self) -> Iterator[list[Any]]:
        if self.streams and self.inputs.get("beam_width", 1) != 1:
            raise InvalidRequest("beams change until the search ends: leave stream out, or beam_width")
        tokens = self._preprocess()
        self.num_input_tokens = int(tokens["input_lengths"].reshape(-1)[0])
        stops = self.inputs.stop_words()
        # To see a stop word in the text the tokens must come one by one, also where the client wants them together.
        by_token = self.streams or (bool(stops) and self.inputs.get("beam_width", 1) == 1)
        replies = self._generate(tokens, by_token)
        return self._pieces(replies, StopWords(stops)) if by_token else self._beams(replies)

    def stop_inputs(self) -> list[Any]:
        return [
            pb_utils.Tensor(name, self.scalar(0, np.int32))
            for name in ("input_ids", "input_lengths", "request_output_len")
        ]

    def _preprocess(self) -> dict[str, Any]:
        inputs = [
            pb_utils.Tensor(name, self.inputs.tensors[client])
            for client, name in TO_PREPROCESSING.items()
            if client in self.inputs.tensors
        ]
        response = checked(self.request("preprocessing", inputs, list(FROM_PREPROCESSING)).exec())
        return {FROM_PREPROCESSING[tensor.name()]: tensor.as_numpy() for tensor in response.output_tensors()}

    def _generate(self, tokens: dict[str, Any], by_token: bool) -> Iterator[dict[str, Any]]:
        tensors = tokens | {
            name: self.inputs.tensors[client] for client, name in TO_ENGINE.items() if client in self.inputs.tensors
        }
        tensors |= {"streaming": self.scalar(by_token, np.bool_), "exclude_input_in_output": self.scalar(True, np.bool_)}
        outputs = ["output_ids", "sequence_length", *(LOG_PROBS if self.inputs.get("return_log_probs") else ())]
        inputs = [pb_utils.Tensor(name, value) for name, value in tensors.items()]
        for response in self.request(self.engine, inputs, outputs).exec(decoupled=True):
            reply = {tensor.name(): tensor.as_numpy() for tensor in checked(response).output_tensors()}
            if reply:
                yield reply

    def _pieces(self, replies: Iterator[dict[str, Any]], stops: StopWords) -> Iterator[list[Any]]:
        answer = Detokenizer(self.tokenizer)
        held: list[str] = []
        extras = self._counts(0)
        for reply in replies:
            if stops.found:
                continue
            piece = stops.cut(answer.push(_beams_of(reply)[0]))
            extras = [*_log_probs(reply), *self._counts(len(answer.ids))]
            if not self.streams:
                held.append(piece)
            elif piece or extras:
                yield [text_tensor(piece), *extras]
            if stops.found:
                # The rest of the tokens is not wanted: read on until the engine says that it has let go.
                self.stop()
        if not self.streams and not self.cancelled:
            yield [text_tensor(self.prompt_text() + "".join(held).encode()), *extras]

    def _beams(self, replies: Iterator[dict[str, Any]]) -> Iterator[list[Any]]:
        for reply in replies:
            beams = _beams_of(reply)
            texts = [self.prompt_text() + whole(self.tokenizer, ids).encode() for ids in beams]
            text = pb_utils.Tensor("text_output", np.array([texts], np.object_))
            yield [text, *_log_probs(reply), *self._counts(len(beams[0]))]

    def _counts(self, output_tokens: int) -> list[Any]:
        counts = {"num_input_tokens": self.num_input_tokens, "num_output_tokens": output_tokens}
        return [
            pb_utils.Tensor(name, self.scalar(value, np.int32))
            for name, value in counts.items()
            if self.inputs.get(f"return_{name}")
        ]


def _beams_of(reply: dict[str, Any]) -> list[list[int]]:
    """output_ids [1, beams, n], each beam as long as its sequence_length says."""
    lengths = reply["sequence_length"].reshape(-1)
    beams = reply["output_ids"].reshape(len(lengths), reply["output_ids"].shape[-1])
    return [ids[:length].tolist() for ids, length in zip(beams, lengths, strict=True)]


def _log_probs(reply: dict[str, Any]) -> list[Any]:
    return [pb_utils.Tensor(name, reply[name]) for name in LOG_PROBS if name in reply]
