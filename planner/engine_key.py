"""The content address of an engine: two models share an engine exactly when their keys are equal."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from planner import versions
from planner.config import ModelConfig
from planner.gpus import gpus
from planner.model import ModelFacts


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """`id` is the first 16 hex digits of the SHA-256 of `key` in canonical JSON."""

    id: str
    key: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """The JSON form that the engine build reads."""
        return {"engine": self.id, "key": self.key}


def engine_spec(model: ModelConfig, facts: ModelFacts) -> EngineSpec:
    """The engine of a resolved model (planner.plan): every input of the build, and nothing that only serving reads."""
    cpu = model.backend == "cpu"
    gpu = gpus()[model.gpu] if model.gpu else None
    key: dict[str, Any] = {
        "backend": model.backend,
        "model": {
            "source": model.source,
            "revision": model.revision,
            "architecture": facts.architecture,
            "family": facts.family.name,
        },
        "dtype": model.dtype,
        "quantization": model.quantization.model_dump(),
        "mapping": {
            "tensor_parallel": model.tensor_parallel,
            "pipeline_parallel": model.pipeline_parallel,
            "gpus_per_node": model.world_size if cpu else model.gpus_per_node,
        },
        # An engine's own config.json records neither of these two, yet TensorRT refuses another device or version.
        "target": {
            "gpu": gpu.name if gpu else None,
            "compute_capability": gpu.compute_capability if gpu else None,
            "mig_profile": model.mig_profile,
        },
        "versions": _versions(cpu),
        "build": _build(model),
    }
    return EngineSpec(id=key_id(key), key=key)


def key_id(key: dict[str, Any]) -> str:
    """The id of a key: canonical JSON has sorted names and no spaces."""
    canonical = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _versions(cpu: bool) -> dict[str, str]:
    if cpu:
        return {"cpu_engine": versions.CPU_ENGINE}
    return {"tensorrt_llm": versions.TENSORRT_LLM, "tensorrt": versions.TENSORRT}


def _build(model: ModelConfig) -> dict[str, Any]:
    if model.backend == "cpu":
        return {}
    limits = {name: getattr(model, name) for name in ("max_batch_size", "max_seq_len", "max_num_tokens")}
    return limits | (model.build.model_dump() if model.backend == "tensorrt" else {})
