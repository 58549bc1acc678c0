"""What a target bounds, and which of its limits is the first that nothing is within."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planner.candidate import Candidate
from planner.instances import InstanceType
from planner.offers import Offer
from planner.shapes import Shapes
from planner.target import Target
from planner.throughput import Throughput

BUSY = 0.8
"""Share of what a replica can do that is planned on: requests come unevenly, and a lost replica's go to the others."""

MAX_REPLICAS = 1000
"""What a stack file can ask for."""


@dataclass(frozen=True, kw_only=True)
class Infeasible:
    """The first limit that nothing is within; `reached` is the best that there is, in the target's unit."""

    limit: str
    what: str
    reached: float = 0.0


def meets(estimate: Throughput, target: Target) -> bool:
    """Whether one replica answers quickly enough."""
    return within(estimate.time_to_first_token_s, target.time_to_first_token_s) and within(
        estimate.inter_token_latency_s, target.inter_token_latency_s
    )


def within(value: float, limit: float | None) -> bool:
    """Whether a value keeps a limit, where there is one."""
    return limit is None or value <= limit


BOUNDS: dict[str, Callable[[Candidate, Target], bool]] = {
    "spot_tolerance": lambda each, target: each.lost_share <= target.spot_tolerance,
    "replicas": lambda each, _target: each.replicas <= MAX_REPLICAS,
    "budget": lambda each, target: within(each.cost.total, target.usd_per_month),
}
"""Limits of a priced choice, in the order they are explained."""


def nothing_fits(
    target: Target,
    offers: Mapping[InstanceType, tuple[Offer, ...]],
    shapes: Shapes,
) -> Infeasible | None:
    """The first limit before any estimate."""
    if not offers:
        return Infeasible(limit="offer", what="no instance type of the catalogue is offered where the target allows")
    if not any(offers.values()):
        names = ", ".join(type_.name for type_ in offers)
        spot = "" if target.spot_tolerance else " that is not spot's"
        return Infeasible(limit="price", what=f"no price is known{spot} of {names}")
    if shapes.found:
        return None
    return Infeasible(limit=_reached(shapes), what=_unfit(target, shapes))


def _reached(shapes: Shapes) -> str:
    """How far the best of them came."""
    return next((limit for limit in ("memory", "sharding", "network") if shapes.refused[limit]), "format")


def _unfit(target: Target, shapes: Shapes) -> str:
    if shapes.refused["memory"] and shapes.miss:
        count = shapes.refused["memory"]
        what = f"one request of {target.context_tokens:,} tokens fits none of {count} legal shardings; {shapes.miss}"
    else:
        what = "no GPU and sharding that the target allows can run the model"
        what += f": {shapes.reasons[0]}" if shapes.reasons else ""
    return what


def too_slow(points: list[Throughput], target: Target, shapes: int) -> Infeasible | None:
    """The first latency that nothing keeps."""
    quick = [point for point in points if within(point.time_to_first_token_s, target.time_to_first_token_s)]
    if not quick:
        best = min(points, key=lambda point: point.time_to_first_token_s)
        return _too_slow("ttft", target.time_to_first_token_s or 0, best.time_to_first_token_s, best, shapes)
    if not any(within(point.inter_token_latency_s, target.inter_token_latency_s) for point in quick):
        best = min(quick, key=lambda point: point.inter_token_latency_s)
        return _too_slow("itl", target.inter_token_latency_s or 0, best.inter_token_latency_s, best, shapes)
    return None


def _too_slow(limit: str, asked: float, reached: float, best: Throughput, shapes: int) -> Infeasible:
    name = {"ttft": "time to first token (p95)", "itl": "inter-token latency"}[limit]
    what = (
        f"{name}: {1000 * asked:,.4g} ms asked, and the quickest of {shapes} shapes that fit takes "
        f"{1000 * reached:,.4g} ms (estimate: {best.source})"
    )
    return Infeasible(limit=limit, what=what, reached=reached)


def beyond(target: Target, candidates: list[Candidate]) -> Infeasible:
    left = candidates
    for name, within in BOUNDS.items():
        kept = [each for each in left if within(each, target)]
        if not kept:
            what, reached = _bound_words(name, target, left)
            return Infeasible(limit=name, what=what, reached=reached)
        left = kept
    raise AssertionError("some candidate is within every bound")


def _bound_words(name: str, target: Target, left: list[Candidate]) -> tuple[str, float]:
    if name == "budget":
        best = min(left, key=lambda each: each.cost.total)
        asked, total = f"{target.usd_per_month or 0:,.0f} USD per month", best.cost.total
        return f"{asked} are not enough: the cheapest, {best}, costs about {total:,.0f} (estimate)", total
    if name == "replicas":
        best = min(left, key=lambda each: each.replicas)
        what = f"{best.replicas:,} replicas would be needed at least, and a stack has at most {MAX_REPLICAS:,}"
        return what, best.estimate.output_tokens_per_s * BUSY * MAX_REPLICAS
    best = min(left, key=lambda each: each.lost_share)
    what = (
        f"a replica on spot loses {best.lost_share:.3%} of the time at least (estimate), and on-demand is not for sale"
    )
    return what, best.lost_share
