"""What is asked of Triton's models, as its gRPC messages."""

import struct
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

pb: Any = service_pb2  # protobuf makes its classes at import, where no type checker sees them


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What is asked of the engine. Greedy where top_k is 1; top_k 0 and top_p 1 draw from all tokens.

    `text` is the prompt before it was tokenised; None: the client sent token ids.
    """

    prompt: list[int]
    text: str | None = None
    max_tokens: int
    end_id: int
    pad_id: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    log_probs: bool = False


def message(model: str, request_id: str, generation: Generation) -> Any:
    """A request of tokens to `tensorrt_llm`."""
    g = generation
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    add_tensor(request, "input_ids", "INT32", struct.pack(f"<{len(g.prompt)}i", *g.prompt), len(g.prompt))
    integers = {
        "input_lengths": len(g.prompt),
        "request_output_len": g.max_tokens,
        "end_id": g.end_id,
        "pad_id": g.pad_id,
        "runtime_top_k": g.top_k,
    }
    add_numbers(request, g, integers, {"runtime_top_p": g.top_p})
    for name in ("streaming", "exclude_input_in_output", *(["return_log_probs"] if g.log_probs else [])):
        add_tensor(request, name, "BOOL", b"\1")
    for name in ("output_ids", *(["output_log_probs"] if g.log_probs else [])):
        request.outputs.add(name=name)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def add_numbers(request: Any, g: Generation, integers: dict[str, int], floats: dict[str, float]) -> None:
    """Those, and the tensors of `g` that have one name for every model."""
    penalties = {
        "presence_penalty": (g.presence_penalty, 0),
        "frequency_penalty": (g.frequency_penalty, 0),
        "repetition_penalty": (g.repetition_penalty, 1),
    }
    floats = {"temperature": g.temperature, **floats}
    floats |= {name: given for name, (given, neutral) in penalties.items() if given != neutral}
    if g.min_tokens:
        integers = {**integers, "min_tokens": g.min_tokens}
    for name, number in integers.items():
        add_tensor(request, name, "INT32", struct.pack("<i", number))
    for name, number in floats.items():
        add_tensor(request, name, "FP32", struct.pack("<f", number))
    add_tensor(request, "seed", "UINT64", struct.pack("<Q", g.seed))


def stop_message(model: str, request_id: str) -> Any:
    """A stop, with the tensors that the engine requires of every request."""
    stop = pb.ModelInferRequest(model_name=model, id=request_id)
    for name in ("input_ids", "input_lengths", "request_output_len"):
        add_tensor(stop, name, "INT32", b"\0\0\0\0")
    add_tensor(stop, "stop", "BOOL", b"\1")
    stop.parameters["triton_enable_empty_final_response"].bool_param = True
    return stop


def add_tensor(request: Any, name: str, datatype: str, raw: bytes, count: int = 1) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=(1, count))
    request.raw_input_contents.append(raw)
