"""`postprocessing` as upstream arranges it: transformers' tokenizer decodes the tokens of a batch of responses.

Written from the published interface (tensors, parameters, library calls) of tensorrtllm_backend's inflight_batcher_llm,
for benchmarks only; what the repository serves is model_repo/postprocessing.
"""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from transformers import AutoTokenizer


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        library: Any = AutoTokenizer
        self.tokenizer = library.from_pretrained(parameters["tokenizer_dir"]["string_value"])
        self.skip_special_tokens = parameters["skip_special_tokens"]["string_value"] == "true"

    def execute(self, requests: list[Any]) -> list[Any]:
        beams, shapes = list[Any](), list[tuple[int, ...]]()
        for request in requests:
            given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            lengths = given["SEQUENCE_LENGTH"]
            tokens = given["TOKENS_BATCH"].reshape(lengths.size, -1)
            beams += [ids[:length] for ids, length in zip(tokens, lengths.reshape(-1), strict=True)]
            shapes.append(lengths.shape)
        texts = iter(self.tokenizer.batch_decode(beams, skip_special_tokens=self.skip_special_tokens))
        outputs = [np.array([next(texts).encode() for _ in range(np.prod(shape))], np.object_) for shape in shapes]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", output.reshape(shape))])
            for output, shape in zip(outputs, shapes, strict=True)
        ]
