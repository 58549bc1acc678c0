"""Specs and small engines that the tests of this folder publish."""

import copy
import json
from pathlib import Path
from typing import Any

from runtime.host import Gpu, HostFacts
from runtime.spec import Spec, engine_id, rank_files, world_size

CPU_KEY: dict[str, Any] = {
    "backend": "cpu",
    "model": {
        "source": "file:///models/tiny",
        "revision": None,
        "architecture": "LlamaForCausalLM",
        "family": "llama",
    },
    "dtype": "float32",
    "quantization": {"weights": "none", "kv_cache": "none"},
    "mapping": {"tensor_parallel": 3, "pipeline_parallel": 1, "gpus_per_node": 3},
    "target": {"gpu": None, "compute_capability": None, "mig_profile": None},
    "versions": {"cpu_engine": "1"},
    "build": {},
}

GPU_KEY: dict[str, Any] = CPU_KEY | {
    "backend": "tensorrt",
    "model": {
        "source": "hf://meta-llama/Llama-3.1-8B",
        "revision": "d04e592",
        "architecture": "LlamaForCausalLM",
        "family": "llama",
    },
    "dtype": "bfloat16",
    "mapping": {"tensor_parallel": 2, "pipeline_parallel": 1, "gpus_per_node": 4},
    "target": {"gpu": "H100-80GB", "compute_capability": "9.0", "mig_profile": None},
    "versions": {"tensorrt_llm": "1.2.1", "tensorrt": "10.14.1.48"},
    "build": {
        "max_batch_size": 64,
        "max_seq_len": 4096,
        "max_num_tokens": 8192,
        "gemm_plugin": "auto",
        "gpt_attention_plugin": "auto",
        "max_beam_width": 1,
        "tokens_per_block": 32,
        "use_paged_context_fmha": True,
        "use_fp8_context_fmha": True,
        "multiple_profiles": False,
        "reduce_fusion": False,
    },
}

CPU_HOST = HostFacts(gpus=[], tensorrt_llm=None, tensorrt=None, cpu_engine="1")


def spec_of(key: dict[str, Any], **changes: Any) -> Spec:
    """The spec of `key` with `changes`, each a new value or an update of a section."""
    changed = copy.deepcopy(key)
    for name, value in changes.items():
        changed[name] = changed[name] | value if isinstance(value, dict) else value
    return {"engine": engine_id(changed), "key": changed}


def h100_host(count: int = 2, **versions: str | None) -> HostFacts:
    """A host with `count` H100s and the versions of GPU_KEY."""
    gpu = Gpu(
        gpu="H100-80GB",
        product="NVIDIA H100 80GB HBM3",
        compute_capability="9.0",
        memory_mib=81559,
        mig_profile=None,
    )
    host = HostFacts(gpus=[gpu] * count, tensorrt_llm="1.2.1", tensorrt="10.14.1.48", cpu_engine=None)
    return HostFacts(**(host | versions))  # type: ignore[typeddict-item]


def write_engine(out: Path, spec: Spec, rank_bytes: int = 3000) -> None:
    """A folder of the shape of an engine, its rank files filled with a pattern."""
    key = spec["key"]
    mapping = {"world_size": world_size(key), "tp_size": key["mapping"]["tensor_parallel"], "pp_size": 1}
    config = {"version": "1", "pretrained_config": {"mapping": mapping}}
    (out / "config.json").write_text(json.dumps(config))
    for rank, name in enumerate(rank_files(key)):
        (out / name).write_bytes(bytes([rank + 1]) * rank_bytes)
    (out / "tokenizer").mkdir()
    (out / "tokenizer" / "tokenizer.json").write_text("{}")
