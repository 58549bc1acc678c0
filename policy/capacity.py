"""Node groups: spot has something to fall back on, and their cost is held to a ceiling."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planner.cloud_config import CapacityType
from planner.errors import Problem
from planner.pool_labels import CAPACITY_LABEL, POOL_LABEL
from planner.pricing import HOURS_PER_MONTH, most_usd_h
from policy.settings import Ceilings, NoSettings, Production
from policy.stack import Resource, Stack, at, is_true, items, mapping, matches


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """A node group as its cloud is asked for it; `pool` is its own name where no label names one."""

    resource: Resource
    cloud: str
    pool: str
    capacity: CapacityType
    instance_types: tuple[str, ...]
    max_nodes: int


def spot_alone(stack: Stack, settings: Production) -> Iterator[tuple[Resource, Problem]]:
    """Pools in production that have nothing but spot."""
    for pool, groups in _pools(stack).items():
        if all(group.capacity == "spot" for group in groups) and matches(groups[0].resource.stack, settings.production):
            first = groups[0].resource
            yield (
                first,
                Problem(
                    key=first.name,
                    what=f"pool {pool} has spot capacity alone",
                    consequence="when the cloud has no spot nodes, nothing serves its models",
                    fix="give the pool on-demand, reserved or flex-start beside spot",
                ),
            )


def above_ceiling(stack: Stack, settings: Ceilings) -> Iterator[tuple[Resource | None, Problem]]:
    """A stack that could cost more than its ceiling: every pool at its largest, on the dearest of its capacity types
    and instance types, all month. GPU nodes alone, at the catalogue's prices: an estimate.
    """
    pools = _pools(stack)
    ceiling = next((one for one in settings.ceilings if pools and matches(stack[0].stack, (one.stacks,))), None)
    costs = {pool: max(_usd_per_month(group) or 0 for group in groups) for pool, groups in pools.items()}
    if ceiling and sum(costs.values()) > ceiling.usd_per_month:
        listed = ", ".join(f"{pool} {cost:,.0f}" for pool, cost in costs.items() if cost)
        most = f"${sum(costs.values()):,.0f}/month at its largest (estimate: {listed}; GPU nodes only)"
        yield (
            None,
            Problem(
                key="cost",
                what=f"{most} is above the ceiling of ${ceiling.usd_per_month:,.0f}",
                consequence="scaled out, the stack would cost more than was agreed",
                fix="lower pools[].max_nodes, take cheaper types, or agree on another ceiling (docs/policy.md)",
            ),
        )


def unpriced(stack: Stack, _: NoSettings) -> Iterator[tuple[Resource, Problem]]:
    """Node groups that the ceiling cannot count, since the catalogue has no price."""
    for group in (group for groups in _pools(stack).values() for group in groups):
        # What reserved capacity costs was agreed when it was bought.
        if group.capacity != "reserved" and _usd_per_month(group) is None:
            yield (
                group.resource,
                Problem(
                    key=group.resource.name,
                    what=f"no {group.capacity} price is known of {', '.join(group.instance_types)}",
                    consequence="the cost ceiling counts these nodes as 0",
                    fix="look it up, or refresh the catalogue",
                ),
            )


def _usd_per_month(group: NodeGroup) -> float | None:
    price = most_usd_h(group.cloud, group.capacity, group.instance_types)
    return None if price is None else price * group.max_nodes * HOURS_PER_MONTH


def _pools(stack: Stack) -> Mapping[str, list[NodeGroup]]:
    pools: dict[str, list[NodeGroup]] = {}
    for resource in stack:
        if group := _node_group(resource):
            pools.setdefault(group.pool, []).append(group)
    return pools


def _node_group(resource: Resource) -> NodeGroup | None:
    inputs = resource.inputs
    if resource.type == "aws:eks/nodeGroup:NodeGroup":
        cloud, labels, types = "aws", mapping(inputs, "labels"), items(inputs, "instanceTypes")
        spot, nodes = at(inputs, "capacityType") == "SPOT", at(inputs, "scalingConfig.maxSize")
    elif resource.type == "gcp:container/nodePool:NodePool":
        config = mapping(inputs, "nodeConfig")
        cloud, labels, types = "gcp", mapping(config, "labels"), [at(config, "machineType")]
        spot = is_true(at(config, "spot")) or is_true(at(config, "preemptible"))
        nodes = at(inputs, "autoscaling.totalMaxNodeCount")
        if nodes is None:
            per_zone = at(inputs, "autoscaling.maxNodeCount") or at(inputs, "nodeCount") or 0
            nodes = per_zone * max(1, len(items(inputs, "nodeLocations")))
    elif resource.type == "azure-native:containerservice:AgentPool":
        cloud, labels, types = "azure", mapping(inputs, "nodeLabels"), [at(inputs, "vmSize")]
        spot, nodes = at(inputs, "scaleSetPriority") == "Spot", at(inputs, "maxCount") or at(inputs, "count")
    else:
        return None
    said: CapacityType = labels.get(CAPACITY_LABEL, "on-demand")
    return NodeGroup(
        resource=resource,
        cloud=cloud,
        pool=labels.get(POOL_LABEL, resource.name),
        # The cloud's own word counts; only what it has no word for is the label's.
        capacity="spot" if spot else said if said != "spot" else "on-demand",
        instance_types=tuple(name for name in types if isinstance(name, str)),
        max_nodes=int(nodes) if isinstance(nodes, int | float | str) else 0,
    )
