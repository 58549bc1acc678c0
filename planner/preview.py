"""What a preview says of each model: fit, start, cost, engine, and how far its choice is from today's best."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planner.drift import Drift, drift, pinned_throughput
from planner.fleet import CloudPlan, PoolPlan, ServingPlan
from planner.instances import InstanceType, instances
from planner.memory import GIB, RankMemory
from planner.plan import FleetPlan, ModelPlan
from planner.pricing import HOURS_PER_MONTH
from planner.serving import INITIALISE_SECONDS, NODE_START_SECONDS, build_seconds
from planner.throughput import Throughput
from planner.versions import TRITON_IMAGE

IMAGE_GB = 18.5
"""Estimate: the serving image as it is pulled, compressed. NGC lists 16.2 GB for 25.09-trtllm-python-py3, and 18.5 GB
for that of 24.05 (NVIDIA/TensorRT-LLM#8270, #1704)."""

LOAD = "engine load"
"""The step of a start whose source is the stack's own storage."""

PULL_GB_S = 0.1
"""Assumption: what a node pulls and unpacks of an image that it does not have; layers are unpacked one by one."""


@dataclass(frozen=True, kw_only=True)
class RankFit:
    """Ranks `first` to `last`, which hold the same, in GiB: what one request of max_seq_len tokens needs, of what, and
    what then is left for more; None of a host's memory, which the planner does not look at."""

    first: int
    last: int
    needed_gib: float
    capacity_gib: float | None
    margin_gib: float | None


@dataclass(frozen=True, kw_only=True)
class Step:
    """A part of a start, in seconds, and what it rests on."""

    name: str
    seconds: int
    source: str


@dataclass(frozen=True, kw_only=True)
class MonthlyUsd:
    """USD per month of 730 hours; None where the catalogue has no price."""

    on_demand: float | None
    spot: float | None


@dataclass(frozen=True, kw_only=True)
class EngineUse:
    """An engine by its key. `shared_with` is a model before this one that has it too; `build_seconds` is an estimate of
    the work of a build, 0 where nothing is compiled."""

    key: str
    shared_with: str | None
    build_seconds: int


@dataclass(frozen=True, kw_only=True)
class ModelPreview:
    """Every figure is an estimate but the fit's weights and KV cache. `cost` is the model's share of its pool's nodes.

    What there is no catalogue for has no `cost`, `throughput` (a roofline, of one replica) or `drift`; time-sliced GPUs
    have only a cost.
    """

    name: str
    fit: tuple[RankFit, ...]
    start: tuple[Step, ...]
    engine: EngineUse
    cost: MonthlyUsd | None
    throughput: Throughput | None
    drift: Drift | None

    @property
    def start_seconds(self) -> int:
        return sum(step.seconds for step in self.start)


def previews(plan: FleetPlan) -> tuple[ModelPreview, ...]:
    """One for each model of a stack that is deployed, in the stack's order."""
    cloud = plan.infrastructure
    if cloud is None:
        return ()
    demand: dict[str, int] = {}
    for model in plan.models:
        serving = _serving(model)
        demand[serving.pool.name] = demand.get(serving.pool.name, 0) + _units(serving)
    owners: dict[str, str] = {}
    found: list[ModelPreview] = []
    for model in plan.models:
        found.append(_preview(model, cloud, demand, owners.get(model.engine.id)))
        owners.setdefault(model.engine.id, model.name)
    return tuple(found)


def total(plan: FleetPlan) -> MonthlyUsd | None:
    """The cost of all GPU nodes of the stack; None where it has no node that the catalogue knows."""
    cloud = plan.infrastructure
    if cloud is None or not any(pool.node_groups for pool in cloud.pools) or not instances(cloud.name):
        return None
    each = [_pool_cost(cloud, pool) for pool in cloud.pools]
    return MonthlyUsd(on_demand=_sum(cost.on_demand for cost in each), spot=_sum(cost.spot for cost in each))


def _preview(model: ModelPlan, cloud: CloudPlan, demand: Mapping[str, int], shared_with: str | None) -> ModelPreview:
    serving = _serving(model)
    instance = _instance(cloud, serving.pool)
    weights = sum(rank.weights_bytes for rank in model.memory)
    compiles = model.config.backend == "tensorrt"
    # What pods on one GPU leave each other, no data sheet says.
    alone = model.config.gpu and not serving.pool.time_slicing
    estimate = pinned_throughput(model, instance) if instance and alone else None
    cost = None
    if instance:
        cost = _share(_pool_cost(cloud, serving.pool), _units(serving) / demand[serving.pool.name])
    spot = serving.pool.node_groups and serving.pool.node_groups[0].capacity == "spot"
    paid = (cost.spot if spot else cost.on_demand) if cost else None
    return ModelPreview(
        name=model.name,
        fit=tuple(_fits(model.memory)),
        start=tuple(_start(serving, made=cloud.existing is None, image=model.config.gpu is not None)),
        engine=EngineUse(
            key=model.engine.id,
            shared_with=shared_with,
            build_seconds=round(build_seconds(weights, serving.load_seconds)) if compiles else 0,
        ),
        cost=cost,
        throughput=estimate,
        drift=drift(model, cloud, estimate, paid) if estimate else None,
    )


def _serving(model: ModelPlan) -> ServingPlan:
    if model.serving is None:
        raise ValueError(f"the plan does not say how {model.name} is served")
    return model.serving


def _instance(cloud: CloudPlan, pool: PoolPlan) -> InstanceType | None:
    """The pool's first instance type, for which prices are given; none in a cluster that is there."""
    types = pool.node_groups[0].instance_types if pool.node_groups else ()
    return instances(cloud.name)[types[0]] if types else None


def _units(serving: ServingPlan) -> int:
    """What all groups of a model ask for of their pool's GPU resource."""
    return serving.replicas * serving.group_size * max(1, serving.gpus_per_pod)


def _fits(memory: tuple[RankMemory, ...]) -> Iterator[RankFit]:
    alike: list[RankMemory] = []
    for rank in memory:
        if alike and (rank.capacity_bytes, rank.margin_bytes) != (alike[0].capacity_bytes, alike[0].margin_bytes):
            yield _fit(alike)
            alike = []
        alike.append(rank)
    if alike:
        yield _fit(alike)


def _fit(alike: list[RankMemory]) -> RankFit:
    rank = alike[0]
    last = alike[-1].rank
    if rank.capacity_bytes is None or rank.margin_bytes is None:
        needed = rank.total_bytes / GIB
        return RankFit(first=rank.rank, last=last, needed_gib=needed, capacity_gib=None, margin_gib=None)
    return RankFit(
        first=rank.rank,
        last=last,
        needed_gib=(rank.capacity_bytes - rank.margin_bytes) / GIB,
        capacity_gib=rank.capacity_bytes / GIB,
        margin_gib=rank.margin_bytes / GIB,
    )


def _start(serving: ServingPlan, *, made: bool, image: bool) -> Iterator[Step]:
    # The nodes of an existing cluster are there.
    if made:
        yield Step(name="node", seconds=NODE_START_SECONDS, source="an allowance for capacity, boot and drivers")
    if image:
        tag = TRITON_IMAGE.reference.rpartition(":")[2]
        source = f"{IMAGE_GB:g} GB (estimate for {tag}) at {PULL_GB_S:g} GB/s (assumption)"
        yield Step(name="image", seconds=round(IMAGE_GB / PULL_GB_S), source=source)
    yield Step(name=LOAD, seconds=serving.load_seconds, source=serving.load_source)
    yield Step(name="initialise", seconds=INITIALISE_SECONDS, source="an allowance for kernels and CUDA graphs")


def _pool_cost(cloud: CloudPlan, pool: PoolPlan) -> MonthlyUsd:
    instance = _instance(cloud, pool)
    nodes = next((line.nodes for line in cloud.cost.lines if line.node_group == pool.node_groups[0].name), 0)
    if instance is None:
        return MonthlyUsd(on_demand=None, spot=None)
    spot = instance.spot_usd_h if instance.spot_supported else None
    return MonthlyUsd(on_demand=_month(instance.on_demand_usd_h, nodes), spot=_month(spot, nodes))


def _month(usd_h: float | None, nodes: int) -> float | None:
    return None if usd_h is None else usd_h * nodes * HOURS_PER_MONTH


def _share(cost: MonthlyUsd, share: float) -> MonthlyUsd:
    on_demand, spot = (None if usd is None else usd * share for usd in (cost.on_demand, cost.spot))
    return MonthlyUsd(on_demand=on_demand, spot=spot)


def _sum(each: Iterator[float | None]) -> float | None:
    known = list(each)
    return None if None in known else sum(usd for usd in known if usd is not None)
