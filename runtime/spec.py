"""The engine spec as it travels between rooms: `{"engine": id, "key": {...}}`; the id is the key's content address.

Every reader of a spec (a build, the store, a group about to load) checks it here, so a spec that was edited by hand
or damaged on the way is refused before it costs anything.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from runtime.errors import Refusal

Spec = dict[str, Any]

RANK_FILE = {"cpu": "rank{}.safetensors", "tensorrt": "rank{}.engine"}
BACKENDS = ("cpu", "tensorrt", "pytorch")

_SHAPE: dict[str, dict[str, type | tuple[type, ...]]] = {
    "model": {"source": str, "revision": (str, type(None)), "architecture": str, "family": str},
    "quantization": {"weights": str, "kv_cache": str},
    "mapping": {"tensor_parallel": int, "pipeline_parallel": int, "gpus_per_node": int},
    "target": {"gpu": (str, type(None)), "compute_capability": (str, type(None)), "mig_profile": (str, type(None))},
    "versions": {},
    "build": {},
}


def engine_id(key: dict[str, Any]) -> str:
    """First 16 hexadecimal digits of the sha256 of the key's canonical JSON."""
    canonical = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def read_spec(path: Path) -> Spec:
    """The checked spec in a JSON file; raises Refusal."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal(
            f"engine spec {path} does not exist",
            "there is nothing to say what to build",
            "pass the JSON file that holds the plan's engine spec",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise Refusal(
            f"engine spec {path} cannot be read as JSON: {error}",
            "there is nothing to say what to build",
            "write it again from the plan",
        ) from None
    return check_spec(raw, f"engine spec {path}")


def check_spec(raw: object, origin: str) -> Spec:
    """`raw` itself once its shape is right and its id is the hash of its key; raises Refusal naming `origin`."""
    problem = _problem(raw)
    if problem:
        raise Refusal(
            f"{origin}: {problem}",
            "an engine stored under it could be taken for one that it is not",
            "take the spec from the plan again, unedited",
        )
    return cast(Spec, raw)


def world_size(key: dict[str, Any]) -> int:
    """Ranks of the engine: TP x PP."""
    return int(key["mapping"]["tensor_parallel"]) * int(key["mapping"]["pipeline_parallel"])


def rank_files(key: dict[str, Any]) -> list[str]:
    """One file name per rank in rank order; none for the LLM API, which loads the checkpoint itself."""
    name = RANK_FILE.get(key["backend"])
    return [name.format(rank) for rank in range(world_size(key))] if name else []


def _problem(raw: object) -> str | None:
    if not isinstance(raw, dict):
        return "is not a JSON object"
    spec = cast(dict[str, Any], raw)
    if not isinstance(spec.get("engine"), str) or not isinstance(spec.get("key"), dict):
        return "needs `engine` (an id) and `key` (an object)"
    key = cast(dict[str, Any], spec["key"])
    actual = engine_id(key)
    if spec["engine"] != actual:
        return f"its id {spec['engine']!r} is not the hash of its key ({actual})"
    if key.get("backend") not in BACKENDS:
        return f"key.backend is {key.get('backend')!r}, not one of {', '.join(BACKENDS)}"
    for section, fields in _SHAPE.items():
        value = key.get(section)
        if not isinstance(value, dict):
            return f"key.{section} is missing"
        values = cast(dict[str, Any], value)
        for field, kinds in fields.items():
            if field not in values or not isinstance(values[field], kinds) or isinstance(values[field], bool):
                return f"key.{section}.{field} is missing or of the wrong type"
    if not isinstance(key.get("dtype"), str):
        return "key.dtype is missing"
    sizes = cast(dict[str, int], key["mapping"])
    if min(sizes["tensor_parallel"], sizes["pipeline_parallel"], sizes["gpus_per_node"]) < 1:
        return "key.mapping has a size below 1"
    return None
