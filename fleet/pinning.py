"""A choice of the search as explicit settings of a stack file, checked as the stack's own plan is."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.stack_edit import REMOVE, Place, edited
from planner.candidate import Candidate
from planner.config import NAMESPACE, ModelConfig
from planner.errors import PlanError
from planner.instances import zones
from planner.plan import plan_values
from planner.stack_file import read_stack_file
from planner.untyped import as_list, as_mapping


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """The stack file's text with a choice in it, and the settings that it changes, by their keys."""

    text: str
    settings: dict[str, object]


def pinned(text: str, base_dir: Path, index: int, model: ModelConfig, choice: Candidate) -> Pinned:
    """The text with the choice written into model `index` and its pool. Raises PlanError where the stack could not be
    deployed so, Refusal where the text cannot be edited."""
    values = _values(text)
    changes = {
        place: value
        for place, value in _changes(values, index, model, choice).items()
        if _differs(values, place, value)
    }
    new = edited(text, {("config", f"{NAMESPACE}:{place[0]}", *place[1:]): value for place, value in changes.items()})
    plan_values(_values(new), base_dir=base_dir)
    return Pinned(
        text=new, settings={_key(place): None if value is REMOVE else value for place, value in changes.items()}
    )


def _values(text: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stack.yaml"
        path.write_text(text, encoding="utf-8", newline="")
        return read_stack_file(path)


def _changes(values: Mapping[str, Any], index: int, model: ModelConfig, choice: Candidate) -> dict[Place, object]:
    entry, chosen = as_mapping(as_list(values["models"])[index]), choice.shape.model
    place: Place = ("models", index)
    quantization = chosen.quantization.model_dump()
    found: dict[Place, object] = {
        (*place, "tensor_parallel"): chosen.tensor_parallel,
        (*place, "pipeline_parallel"): chosen.pipeline_parallel,
        (*place, "max_batch_size"): _batch(choice),
        (*place, "max_seq_len"): chosen.max_seq_len,
        (*place, "max_num_tokens"): chosen.max_num_tokens,
    }
    if "quantization" in entry:
        found |= {(*place, "quantization", name): value for name, value in quantization.items()}
    elif chosen.quantization != model.quantization:
        found[*place, "quantization"] = quantization
    if "serving" in entry:
        found[*place, "serving", "replicas"] = choice.replicas
    elif choice.replicas != model.serving.replicas:
        found[*place, "serving"] = {"replicas": choice.replicas}
    # The pool decides these.
    found |= {(*place, name): REMOVE for name in ("gpu", "gpus_per_node", "mig_profile") if name in entry}
    return found | _pool_changes(values, index, choice)


def _batch(choice: Candidate) -> int:
    """The engine's limit that holds the latency; with PP it is of a micro-batch."""
    model = choice.shape.model
    return -(-choice.estimate.batch // model.pipeline_parallel) if choice.limited else model.max_batch_size


def _pool_changes(values: Mapping[str, Any], index: int, choice: Candidate) -> dict[Place, object]:
    pools = [as_mapping(pool) for pool in as_list(values.get("pools"))]
    models = [as_mapping(model) for model in as_list(values["models"])]
    name = models[index].get("pool")
    own = next((number for number, pool in enumerate(pools) if pool.get("name") == name), None)
    settings = _pool_settings(values, pools[own] if own is not None else {}, choice)
    if own is not None and sum(model.get("pool") == name for model in models) == 1:
        return {("pools", own, key): value for key, value in settings.items()}
    # Others live on its pool: it gets one of its own.
    taken = {pool.get("name") for pool in pools}
    base = str(models[index].get("name", "model"))[:16].rstrip("-")
    fresh = next(each for each in (base, *(f"{base}-{n}" for n in range(2, 100))) if each not in taken)
    pool = {key: value for key, value in settings.items() if value is not REMOVE}
    return {("pools", len(pools)): {"name": fresh} | pool, ("models", index, "pool"): fresh}


def _pool_settings(values: Mapping[str, Any], pool: Mapping[Any, Any], choice: Candidate) -> dict[str, object]:
    instance, chosen = choice.offer.instance, choice.shape.model
    types = as_list(pool.get("instance_types"))
    settings: dict[str, object] = {
        "instance_types": types if types[:1] == [instance.name] else [instance.name],
        "capacity": list(choice.offer.capacity),
        "mig_profile": chosen.mig_profile or REMOVE,
        "time_slicing": REMOVE,
        # Those that serve, and one more to build the next engine beside them.
        "max_nodes": choice.nodes + 1,
    }
    settings |= {"reservation": REMOVE, "zones": _zones(values, pool, choice)}
    least = pool.get("min_nodes", 0)
    if isinstance(least, int) and least > choice.nodes + 1:
        settings["min_nodes"] = choice.nodes
    return settings


def _zones(values: Mapping[str, Any], pool: Mapping[Any, Any], choice: Candidate) -> object:
    """The pool's zones that offer the type, one of them for groups over several nodes: that of the storage first."""
    offered = zones(choice.offer.instance.cloud, choice.offer.region)
    of_network = as_list(as_mapping(values.get("network")).get("zones"))
    storage = as_mapping(values.get("storage")).get("zone")
    able = [zone for zone in of_network if choice.offer.instance.name in offered.get(zone, ())]
    mine = [zone for zone in as_list(pool.get("zones")) if zone in able] or able
    if choice.shape.nodes > 1:
        return [storage] if storage in able else mine[:1]
    return REMOVE if "zones" not in pool and able == of_network else mine


def _differs(values: Mapping[str, Any], place: Place, value: object) -> bool:
    """Whether the setting is not there already, or not by default."""
    found: Any = values
    for key in place:
        if isinstance(key, int):
            items = as_list(found)
            found = items[key] if key < len(items) else None
        else:
            found = as_mapping(found).get(key)
    if found is None:
        return value is not REMOVE and value != _DEFAULTS.get(place[-1])
    return value is REMOVE or found != value


_DEFAULTS: dict[str | int, object] = {
    "tensor_parallel": 1,
    "pipeline_parallel": 1,
    "max_seq_len": ModelConfig.model_fields["max_seq_len"].default,
    "max_num_tokens": ModelConfig.model_fields["max_num_tokens"].default,
    "weights": "none",
    "kv_cache": "none",
    "replicas": 1,
    "capacity": ["spot", "on-demand"],
    "max_nodes": 1,
}


def _key(place: Place) -> str:
    text = ""
    for key in place:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def first_that_plans(
    text: str, base_dir: Path, index: int, model: ModelConfig, ranked: tuple[Candidate, ...]
) -> tuple[Candidate, Pinned, tuple[str, ...]]:
    """The best choice that the stack can be deployed with as the rest of it is, and why better ones cannot.

    Raises PlanError of the best where none of the first ones can.
    """
    skipped: list[str] = []
    refused: PlanError | None = None
    for choice in ranked[:_TRIED]:
        try:
            return choice, pinned(text, base_dir, index, model, choice), tuple(skipped)
        except PlanError as error:
            refused = refused or error
            skipped.append(f"{choice}: {error.problems[0].key}: {error.problems[0].what}; {error.problems[0].fix}")
    assert refused is not None
    raise refused


_TRIED = 25
"""Choices that are planned in full; each takes some 20 ms."""
