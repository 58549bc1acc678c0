"""`tensorrt_llm_bls` as upstream arranges it: a call of `preprocessing`, and one of `postprocessing` for each response.

Written from the published interface (tensors, parameters, order of calls) of tensorrtllm_backend's
inflight_batcher_llm, for benchmarks only; what the repository serves is model_repo/tensorrt_llm_bls.
"""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

TO_PREPROCESSING = {"text_input": "QUERY", "max_tokens": "REQUEST_OUTPUT_LEN"}
FROM_PREPROCESSING = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "STOP_WORDS_IDS": "stop_words_list",
    "BAD_WORDS_IDS": "bad_words_list",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
}


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            for text in self.texts(request):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("text_output", text)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def texts(self, request: Any) -> Any:
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        query = {name: given[client] for client, name in TO_PREPROCESSING.items()}
        prepared = self.call("preprocessing", query, list(FROM_PREPROCESSING))
        inputs = {FROM_PREPROCESSING[name]: value for name, value in prepared.items()}
        inputs |= {name: given[name] for name in ("seed", "min_tokens")} | {"streaming": np.array([[True]])}
        engine = self.request("tensorrt_llm", inputs, ["output_ids", "sequence_length"])
        for response in engine.exec(decoupled=True):
            reply = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            if reply:
                tokens = {"TOKENS_BATCH": reply["output_ids"], "SEQUENCE_LENGTH": reply["sequence_length"]}
                yield self.call("postprocessing", tokens, ["OUTPUT"])["OUTPUT"]

    def call(self, model: str, inputs: dict[str, Any], outputs: list[str]) -> dict[str, Any]:
        response = self.request(model, inputs, outputs).exec()
        assert not response.has_error(), response.error().message()
        return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}

    def request(self, model: str, inputs: dict[str, Any], outputs: list[str]) -> Any:
        tensors = [pb_utils.Tensor(name, value) for name, value in inputs.items()]
        return pb_utils.InferenceRequest(model_name=model, inputs=tensors, requested_output_names=outputs)
