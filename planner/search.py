"""Every way to serve a model that meets a target, by what a million output tokens cost, and the first limit if none."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from planner import roofline
from planner.candidate import Candidate
from planner.cloud_config import StorageConfig
from planner.config import ModelConfig
from planner.instances import InstanceType
from planner.limits import BOUNDS, BUSY, Infeasible, beyond, meets, nothing_fits, too_slow
from planner.model import ModelFacts
from planner.offers import Offer, offers_of
from planner.pricing import HOURS_PER_MONTH
from planner.running_cost import lost_share, monthly_cost, nodes_of, starting
from planner.shapes import Shape, shapes_of
from planner.target import Target
from planner.throughput import Interconnect, Steps, Throughput, Workload, interconnect, largest_batch, over_steps

SAME = 0.01
"""Share of the cost below which estimates tell no difference: then fewer nodes of a group are better, then speed."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """`ranked` by cost; `front` are the choices that none beats in both cost and inter-token latency, by latency.

    `refused` counts what each limit refused, `reasons` says it of formats and shardings in words. `unpriced` are
    instance types that the target allows and no price is known of.
    """

    target: Target
    ranked: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    refused: Mapping[str, int]
    reasons: tuple[str, ...]
    unpriced: tuple[str, ...]
    infeasible: Infeasible | None = None


SCALED = ", times "
"""What follows in the source of a scaled estimate."""

PointKey = tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Estimates from measurements: `points` by `point_key`, largest batch first, none where there is no data.

    `scale` says by GPU how much of its roofline's throughput its measured shapes reach; its other shapes are scaled so.
    """

    points: Mapping[PointKey, tuple[Throughput, ...]]
    scale: Mapping[str, float]


def search(
    model: ModelConfig,
    facts: ModelFacts,
    target: Target,
    *,
    storage: StorageConfig | None = None,
    measured: Measured | None = None,
) -> Result:
    """All choices for a model; `model` gives what the search does not vary. The target's context is `max_seq_len`."""
    return _Search(model, facts, target, storage, measured or Measured(points={}, scale={})).result()


def point_key(shape: Shape, links: Interconnect) -> PointKey:
    """What an estimate depends on."""
    model = shape.model
    sharded = (model.tensor_parallel, model.pipeline_parallel, model.gpus_per_node, shape.nodes)
    return (model.gpu, model.mig_profile, model.quantization.weights, model.quantization.kv_cache, *sharded, links)


def links_of(shape: Shape, instance: InstanceType) -> Interconnect:
    """What the shape's ranks speak over; inside one node its network does not matter."""
    links = interconnect(instance)
    return links if shape.nodes > 1 else replace(links, network_gbps=0.0, rdma=False)


def scaled(estimate: Throughput, scale: float) -> Throughput:
    """The estimate with `scale` of its throughput, and as much slower."""
    if scale == 1.0:
        return estimate
    return replace(
        estimate,
        output_tokens_per_s=estimate.output_tokens_per_s * scale,
        time_to_first_token_s=estimate.time_to_first_token_s / scale,
        inter_token_latency_s=estimate.inter_token_latency_s / scale,
        source=f"{estimate.source}{SCALED}{scale:.2f} as other shapes on this GPU measure",
    )


def workload(target: Target) -> Workload:
    return Workload(prompt_tokens=target.prompt_tokens, output_tokens=target.output_tokens)


class _Search:
    def __init__(
        self,
        model: ModelConfig,
        facts: ModelFacts,
        target: Target,
        storage: StorageConfig | None,
        measured: Measured,
    ) -> None:
        self.model, self.facts, self.target, self.storage, self.measured = model, facts, target, storage, measured
        self.refused: dict[str, int] = {}

    def result(self) -> Result:
        target = self.target
        offers = offers_of(target)
        unpriced = tuple(type_.name for type_, found in offers.items() if not found)
        shapes = shapes_of(self.model, self.facts, target, (type_ for type_, found in offers.items() if found))
        self.refused |= shapes.refused
        ranked: list[Candidate] = []
        front: list[Candidate] = []
        infeasible = nothing_fits(target, offers, shapes)
        if infeasible is None:
            points = {(shape, links): found for shape in shapes.found for links, found in self._points(shape)}
            every = [point for found in points.values() for point in found]
            infeasible = too_slow(every, target, len(shapes.found))
            if infeasible is None:
                ranked, front, infeasible = self._choices(points, offers)
        return Result(
            target=target,
            ranked=tuple(ranked),
            front=tuple(front),
            refused=self.refused,
            reasons=shapes.reasons,
            unpriced=unpriced,
            infeasible=infeasible,
        )

    def _points(self, shape: Shape) -> Iterator[tuple[Interconnect, list[Throughput]]]:
        """Estimates at batches from the largest that fits down to one, for each interconnect of its instance types."""
        load = workload(self.target)
        # TP peers hold the same, so the first rank of each stage stands for them.
        largest = largest_batch(shape.model, shape.memory, load)
        for links in dict.fromkeys(links_of(shape, type_) for type_ in shape.instances):
            measured = self.measured.points.get(point_key(shape, links))
            if measured:
                yield links, list(measured)
                continue

            steps = roofline.steps(shape.model, self.facts, shape.memory, load.prompt_tokens, links)

            def at(batch: int, steps: Steps = steps) -> Throughput:
                found = over_steps(steps, shape.model, shape.memory, load, batch=batch, source=roofline.SOURCE)
                return scaled(found, self.measured.scale.get(shape.model.gpu or "", 1.0))

            found = [at(batch) for batch in _quarters(largest)]
            quick = next((index for index, point in enumerate(found) if meets(point, self.target)), 0)
            if quick:
                found.insert(quick, _between(at, found[quick], found[quick - 1], self.target))
            yield links, found

    def _choices(
        self,
        points: Mapping[tuple[Shape, Interconnect], list[Throughput]],
        offers: Mapping[InstanceType, tuple[Offer, ...]],
    ) -> tuple[list[Candidate], list[Candidate], Infeasible | None]:
        target = self.target
        all_of_them: list[Candidate] = []
        others: list[tuple[Candidate, list[Throughput]]] = []
        for (shape, links), found in points.items():
            kept = [point for point in found if meets(point, target)]
            self._refuse("latency", not kept)
            if not kept:
                continue
            best = max(kept, key=lambda point: point.output_tokens_per_s)
            limited = best.batch < found[0].batch
            mine = [
                self._candidate(shape, offer, best, limited)
                for type_ in shape.instances
                if links_of(shape, type_) == links
                for offer in offers[type_]
            ]
            all_of_them += mine
            allowed = [each for each in mine if self._allowed(each)]
            if allowed:
                cheapest = min(allowed, key=lambda each: each.usd_per_million)
                others.append((cheapest, [point for point in kept if point is not best]))
        ranked = sorted(filter(self._allowed, all_of_them), key=_rank)
        infeasible = None if ranked else beyond(target, all_of_them)
        for name, within in BOUNDS.items():
            self._refuse(name, sum(not within(each, target) for each in all_of_them))
        slower = (
            self._candidate(each.shape, each.offer, point, limited=True) for each, left in others for point in left
        )
        return ranked, _front([*ranked, *filter(self._allowed, slower)]), infeasible

    def _candidate(self, shape: Shape, offer: Offer, point: Throughput, limited: bool) -> Candidate:
        target, start = self.target, starting(shape, offer.instance, self.storage)
        lost = lost_share(shape, offer.instance, start) if offer.capacity[0] == "spot" else 0.0
        # Without a rate to serve, a node is filled: its other GPUs are paid for as well.
        replicas, used = shape.per_node, 1.0
        rate = replicas * point.output_tokens_per_s
        if target.output_tokens_per_s:
            rate = target.output_tokens_per_s
            replicas = math.ceil(rate / (BUSY * point.output_tokens_per_s))
            used = rate / (replicas * point.output_tokens_per_s)
        cost = monthly_cost(
            shape,
            offer.instance,
            start,
            usd_h=offer.usd_h,
            lost=lost,
            replicas=replicas,
            used=used,
            output_tokens_per_s=rate,
        )
        return Candidate(
            shape=shape,
            offer=offer,
            estimate=point,
            limited=limited,
            replicas=replicas,
            nodes=nodes_of(shape, replicas),
            start=start,
            lost_share=lost,
            output_tokens_per_s=rate,
            cost=cost,
            usd_per_million=cost.total / (rate * 3600 * HOURS_PER_MONTH / 1e6),
        )

    def _allowed(self, candidate: Candidate) -> bool:
        return all(within(candidate, self.target) for within in BOUNDS.values())

    def _refuse(self, limit: str, count: int) -> None:
        if count:
            self.refused[limit] = self.refused.get(limit, 0) + count


def _rank(candidate: Candidate) -> tuple[int, int, float, str]:
    cost = round(math.log(candidate.usd_per_million) / math.log1p(SAME))
    return cost, candidate.shape.nodes, candidate.estimate.inter_token_latency_s, str(candidate)


def _front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """None of these costs more and is slower than another, quickest first."""
    found: list[Candidate] = []
    for each in sorted(candidates, key=lambda each: (each.estimate.inter_token_latency_s, each.usd_per_million)):
        if not found or each.usd_per_million < found[-1].usd_per_million:
            found.append(each)
    return found


def _quarters(largest: int) -> list[int]:
    """Batches from the largest down to a few sequences."""
    return [largest >> power for power in range(0, largest.bit_length(), 2)]


def _between(at: Callable[[int], Throughput], quick: Throughput, slow: Throughput, target: Target) -> Throughput:
    """The largest batch that is still quick enough, to about 1/16."""
    low, high, best = quick.batch, slow.batch, quick
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        found = at(middle)
        if meets(found, target):
            low, best = middle, found
        else:
            high = middle
    return best
