"""Triton's `postprocessing` model: each response's token ids to text by themselves, with upstream's tensors."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from model_tokenizer import ModelTokenizer, TokenizerError, parameters_of


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = parameters_of(args)
        try:
            self.tokenizer = ModelTokenizer(parameters["tokenizer_dir"], parameters["gpt_model_path"])
        except TokenizerError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.skip_special_tokens = parameters["skip_special_tokens"] == "true"

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        """TOKENS_BATCH [batch, beams, n] and SEQUENCE_LENGTH [batch, beams] to OUTPUT [batch, beams]."""
        tokens = _array(request, "TOKENS_BATCH")
        lengths = _array(request, "SEQUENCE_LENGTH")
        # -1 would not do: a response may have no tokens, where only an end token was drawn.
        beams = tokens.reshape(lengths.size, tokens.shape[-1])
        texts = [
            self.tokenizer.decode(ids[:length].tolist(), skip_special_tokens=self.skip_special_tokens).encode()
            for ids, length in zip(beams, lengths.reshape(-1), strict=True)
        ]
        output = np.array(texts, np.object_).reshape(lengths.shape)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", output)])


def _array(request: Any, name: str) -> Any:
    tensor: Any = pb_utils.get_input_tensor_by_name(request, name)
    return tensor.as_numpy()
