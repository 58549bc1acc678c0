"""What comes nearest to a target that nothing meets: one limit after the other relaxed by as little as it takes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

from planner.candidate import Candidate
from planner.cloud_config import StorageConfig
from planner.clouds import CLOUDS
from planner.config import ModelConfig, WeightQuantization
from planner.instances import instances
from planner.limits import Infeasible
from planner.model import ModelFacts
from planner.search import Measured, Result, search
from planner.shapes import shapes_of
from planner.target import FLAGS, Target

FORMATS = tuple(name for name in get_args(WeightQuantization))

_ORDER = (
    *("offer", "price", "format", "network", "sharding", "memory", "ttft", "itl"),
    *("spot_tolerance", "replicas", "budget"),
)
"""Limits as they are met: what relaxes one must lead to a later one."""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """A feasible choice for the target with `relaxed` in place of what was asked, as flags."""

    relaxed: tuple[str, ...]
    target: Target
    candidate: Candidate


def nearest(
    model: ModelConfig,
    facts: ModelFacts,
    result: Result,
    *,
    storage: StorageConfig | None = None,
    measured: Measured | None = None,
) -> Nearest | None:
    """The nearest feasible choice to a result without any; None where nothing runs the model anywhere."""
    target, stopped = result.target, result.infeasible
    relaxed: dict[str, str] = {}
    while stopped:
        for flag, text, wider in _relaxations(stopped, target, model, facts):
            found = search(model, facts, wider, storage=storage, measured=measured)
            if found.infeasible is None:
                relaxed[flag] = text
                return Nearest(relaxed=tuple(relaxed.values()), target=wider, candidate=found.ranked[0])
            if _ORDER.index(found.infeasible.limit) > _ORDER.index(stopped.limit):
                relaxed[flag] = text
                target, stopped = wider, found.infeasible
                break
        else:
            return None
    return None


def _relaxations(
    stopped: Infeasible, target: Target, model: ModelConfig, facts: ModelFacts
) -> Iterator[tuple[str, str, Target]]:
    """Flag, how it would be given, and the target with it; what changes least first."""
    reached = stopped.reached
    match stopped.limit:
        case "ttft" | "itl":
            flag, milliseconds = FLAGS[stopped.limit], _up(1000 * reached)
            name = {"ttft": "time_to_first_token_s", "itl": "inter_token_latency_s"}[stopped.limit]
            yield flag, f"{flag} {milliseconds:g}", replace(target, **{name: milliseconds / 1000})
        case "budget":
            usd = math.ceil(reached)
            yield "--budget", f"--budget {usd}", replace(target, usd_per_month=float(usd))
        case "replicas":
            rate = math.floor(reached)
            yield "--tokens-per-second", f"--tokens-per-second {rate}", replace(target, output_tokens_per_s=float(rate))
        case "spot_tolerance":
            share = math.ceil(reached * 1e4) / 1e4
            yield "--spot-tolerance", f"--spot-tolerance {share:g}", replace(target, spot_tolerance=share)
        case "price":
            if not target.spot_tolerance:
                yield "--spot-tolerance", "--spot-tolerance 0.01", replace(target, spot_tolerance=0.01)
            yield from _elsewhere(target)
        case "offer":
            yield from _elsewhere(target)
        case _:
            yield from _smaller(target, model, facts)
            yield from _elsewhere(target)


def _smaller(target: Target, model: ModelConfig, facts: ModelFacts) -> Iterator[tuple[str, str, Target]]:
    """Fewer bits, then a shorter context."""
    if not facts.checkpoint_quantization and model.backend == "tensorrt":
        for name in FORMATS:
            if name not in target.formats:
                yield "--quantization", f"--quantization {name}", replace(target, formats=(name,))
    least = target.prompt_tokens + target.output_tokens
    low, high = least, min(target.context_tokens, facts.max_position_embeddings + 1)
    if not _fits(model, facts, replace(target, context_tokens=low)):
        return
    while high - low > max(1, low // 64):
        middle = (low + high) // 2
        if _fits(model, facts, replace(target, context_tokens=middle)):
            low = middle
        else:
            high = middle
    yield "--context", f"--context {low}", replace(target, context_tokens=low)


def _fits(model: ModelConfig, facts: ModelFacts, target: Target) -> bool:
    types = [type_ for cloud in target.clouds or CLOUDS for type_ in instances(cloud).values()]
    types = [type_ for type_ in types if not target.gpus or type_.gpu in target.gpus]
    return bool(shapes_of(model, facts, target, types).found)


def _elsewhere(target: Target) -> Iterator[tuple[str, str, Target]]:
    if target.gpus:
        yield "--gpu", "without --gpu", replace(target, gpus=())
    if target.regions or target.zones:
        yield "--region", "in any region", replace(target, regions=(), zones=())
    if target.clouds:
        anywhere = replace(target, clouds=(), regions=(), zones=())
        yield "--cloud", "on any cloud", anywhere
        if target.gpus:
            yield "--cloud", "on any cloud, without --gpu", replace(anywhere, gpus=())


def _up(number: float) -> float:
    """Rounded up to three figures."""
    digits = 2 - math.floor(math.log10(number))
    return round(math.ceil(number * 10**digits) / 10**digits, max(digits, 0))
