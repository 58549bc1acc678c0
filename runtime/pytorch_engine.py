"""The `pytorch` backend: TensorRT-LLM's LLM API loads the checkpoint itself, so an engine is only its arguments.

llm_args.yaml holds fields of TorchLlmArgs (TensorRT-LLM 1.2.1, tensorrt_llm/llmapi/llm_args.py), which refuses unknown
ones. The file is written as JSON, which is YAML.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.errors import Refusal
from runtime.hf_folder import copy_tokenizer, engine_mapping, read_config
from runtime.spec import Spec

# Quantised weights come from the checkpoint: TorchLlmArgs has no field for them (its quant_config is read from
# hf_quant_config.json, or from quantization_config in config.json). Algorithm names are TensorRT-LLM's QuantAlgo.
CHECKPOINT_ALGORITHMS = {
    "fp8": ("FP8", "FP8_BLOCK_SCALES", "FP8_PER_CHANNEL_PER_TOKEN"),
    "nvfp4": ("NVFP4",),
    "int4_awq": ("W4A16_AWQ",),
    "w4a8_awq": ("W4A8_AWQ",),
}
KV_DTYPES = {"none": "auto", "fp8": "fp8"}
LIMITS = ("max_batch_size", "max_seq_len", "max_num_tokens")


def build(checkpoint: Path, spec: Spec, out: Path, progress: Callable[[str], None]) -> None:
    """Write config.json, llm_args.yaml and tokenizer/ into `out`; raises Refusal for what the LLM API cannot load."""
    model = read_config(checkpoint)
    algorithm = _algorithm(checkpoint, model, spec["key"]["quantization"]["weights"])
    progress("writing the LLM API's arguments; the LLM API loads the checkpoint itself")
    _write_json(out / "config.json", _engine_config(model, spec, algorithm))
    _write_json(out / "llm_args.yaml", llm_args(checkpoint, spec))
    copy_tokenizer(checkpoint, out)


def llm_args(checkpoint: Path, spec: Spec) -> dict[str, Any]:
    """Arguments of `tensorrt_llm.LLM` that the engine key fixes; what is serving-only is added where it is served."""
    key = spec["key"]
    kv_dtype = KV_DTYPES.get(key["quantization"]["kv_cache"])
    if kv_dtype is None:
        raise Refusal(
            f"the pytorch backend has no {key['quantization']['kv_cache']} KV cache",
            "the LLM API would refuse its arguments at start, on every rank",
            "set quantization.kv_cache to none or fp8, or use backend: tensorrt",
        )
    build_flags = key["build"]
    kv_cache: dict[str, Any] = {"dtype": kv_dtype}
    if "tokens_per_block" in build_flags:
        kv_cache["tokens_per_block"] = build_flags["tokens_per_block"]
    return {
        "model": str(checkpoint.resolve()),
        "backend": "pytorch",
        "dtype": key["dtype"],
        "tensor_parallel_size": key["mapping"]["tensor_parallel"],
        "pipeline_parallel_size": key["mapping"]["pipeline_parallel"],
        "gpus_per_node": key["mapping"]["gpus_per_node"],
        **{name: build_flags[name] for name in LIMITS if name in build_flags},
        "kv_cache_config": kv_cache,
    }


def _algorithm(checkpoint: Path, model: dict[str, Any], weights: str) -> str | None:
    """The checkpoint's own quantisation, refused unless it is what the plan counts on."""
    found = _checkpoint_algorithm(checkpoint, model)
    if weights != "none" and found not in CHECKPOINT_ALGORITHMS.get(weights, ()):
        able = ", ".join(CHECKPOINT_ALGORITHMS)
        raise Refusal(
            f"the plan counts on {weights} weights, and checkpoint {checkpoint} holds {found or 'unquantised'} ones",
            "the LLM API does not quantise: it would load the weights as they are, of another size than planned",
            f"use a checkpoint already quantised to one of {able}; or quantization.weights: none; or backend: tensorrt",
        )
    return found


def _checkpoint_algorithm(checkpoint: Path, model: dict[str, Any]) -> str | None:
    try:
        text = (checkpoint / "hf_quant_config.json").read_text(encoding="utf-8")
        return str(json.loads(text)["quantization"]["quant_algo"])
    except (OSError, ValueError, KeyError, TypeError):
        quantization: dict[str, Any] = model.get("quantization_config") or {}
    if "quant_algo" in quantization:
        return str(quantization["quant_algo"])
    method = quantization.get("quant_method")
    if method == "fp8":
        return "FP8_BLOCK_SCALES" if quantization.get("weight_block_size") else "FP8"
    return str(method) if method else None


def _engine_config(model: dict[str, Any], spec: Spec, algorithm: str | None) -> dict[str, Any]:
    key = spec["key"]
    heads, width = model.get("num_attention_heads"), model.get("hidden_size")
    same_name = (
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("intermediate_size", "max_position_embeddings", "eos_token_id"),
    )
    pretrained: dict[str, Any] = {
        "architecture": key["model"]["architecture"],
        "dtype": key["dtype"],
        **{name: model.get(name) for name in same_name},
        "num_key_value_heads": model.get("num_key_value_heads", heads),
        "head_size": model.get("head_dim") or (width // heads if heads and width else None),
        "norm_epsilon": model.get("rms_norm_eps"),
        "rotary_base": model.get("rope_theta"),
        "quantization": {
            "quant_algo": algorithm,
            "kv_cache_quant_algo": key["quantization"]["kv_cache"].upper().replace("NONE", "") or None,
        },
        "mapping": engine_mapping(spec),
    }
    return {"version": key["versions"]["tensorrt_llm"], "pretrained_config": pretrained, "build_config": key["build"]}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
