"""What the GPU nodes of a stack cost, and the account limits they reach."""

from collections.abc import Mapping, Sequence

from planner.cloud_config import CapacityType
from planner.clouds import cloud_facts
from planner.fleet import CostEstimate, CostLine, NodeGroupPlan, PoolPlan, QuotaNeed
from planner.instances import InstanceType, instances

HOURS_PER_MONTH = 730


def estimate_cost(cloud: str, region: str, pools: Sequence[PoolPlan], nodes_wanted: Mapping[str, int]) -> CostEstimate:
    """Cost of the nodes that the models' replicas need: `nodes_wanted` by pool, at least the pool's `min_nodes`.

    The preferred capacity of every pool comes first, then what stands in for it at the same number of nodes.
    """
    known = instances(cloud)
    nodes = {pool.name: max(nodes_wanted.get(pool.name, 0), pool.node_groups[0].min_nodes) for pool in pools}
    preferred = [_line(pool.node_groups[0], nodes[pool.name], known) for pool in pools]
    others = [_line(group, nodes[pool.name], known) for pool in pools for group in pool.node_groups[1:]]
    hourly = [line.usd_per_hour for line in preferred]
    total = None if None in hourly else round(sum(price or 0.0 for price in hourly) * HOURS_PER_MONTH, 2)
    return CostEstimate(
        lines=(*preferred, *others),
        usd_per_month=total,
        note=_note(region, pools, known),
    )


def quota_needs(cloud: str, pools: Sequence[PoolPlan]) -> tuple[QuotaNeed, ...]:
    """The account's limits by their own names, and what they must allow when every node group is at its largest.

    A node group of several instance types may be all of its largest. Reserved capacity was bought against a limit of
    its own and needs no other.
    """
    known, unit = instances(cloud), cloud_facts(cloud).quota_unit
    needed: dict[str, int] = {}
    for group in (group for pool in pools for group in pool.node_groups):
        most: dict[str, int] = {}
        for name in group.instance_types:
            quota = _quota(cloud, group, name)
            if quota is not None:
                count = known[name].gpu_count if unit == "GPU" else known[name].vcpus
                most[quota] = max(most.get(quota, 0), count)
        for quota, count in most.items():
            needed[quota] = needed.get(quota, 0) + count * group.max_nodes
    return tuple(QuotaNeed(name=name, needed=count, unit=unit) for name, count in sorted(needed.items()))


def _line(group: NodeGroupPlan, nodes: int, known: Mapping[str, InstanceType]) -> CostLine:
    instance = known[group.instance_types[0]]
    price, as_of = _price(group, instance)
    return CostLine(
        node_group=group.name,
        instance_type=instance.name,
        nodes=nodes,
        usd_per_hour=0.0 if nodes == 0 else None if price is None else round(price * nodes, 4),
        price_as_of=as_of,
    )


def most_usd_h(cloud: str, capacity: CapacityType, instance_types: Sequence[str]) -> float | None:
    """USD per hour of the dearest of some types; None where no price of any is known. What is no GPU type costs 0."""
    known = instances(cloud)
    found = [_price_of(capacity, known[name])[0] for name in instance_types if name in known]
    return max((price for price in found if price is not None), default=None if found else 0.0)


def _price(group: NodeGroupPlan, instance: InstanceType) -> tuple[float | None, str]:
    return _price_of(group.capacity, instance)


def _price_of(capacity: CapacityType, instance: InstanceType) -> tuple[float | None, str]:
    if capacity == "spot":
        return instance.spot_usd_h, instance.spot_as_of
    if capacity == "on-demand" and instance.on_demand_usd_h is not None:
        return instance.on_demand_usd_h, instance.price_as_of
    # What reserved capacity costs was agreed when it was bought.
    return None, ""


def _note(region: str, pools: Sequence[PoolPlan], known: Mapping[str, InstanceType]) -> str:
    groups = [(group, known[group.instance_types[0]]) for pool in pools for group in pool.node_groups]
    facts = ["Estimate: GPU nodes only, without control plane, system nodes, storage and traffic"]
    priced = {instance.price_region: "" for group, instance in groups if _price(group, instance)[0] is not None}
    if priced:
        dates = sorted({_price(group, instance)[1] for group, instance in groups} - {""})
        facts.append(f"prices of {', '.join(priced)} as of {', '.join(dates)}")
        if set(priced) != {region}:
            facts.append(f"those of {region} differ")
    if any(group.capacity == "spot" for group, _ in groups):
        facts.append("spot prices move")
    if any(group.capacity == "reserved" for group, _ in groups):
        facts.append("reserved capacity costs what was agreed when it was bought")
    if any(len(group.instance_types) > 1 for group, _ in groups):
        facts.append("each pool at its first instance type")
    unknown = [group.name for group, instance in groups if _price(group, instance)[0] is None]
    if unknown:
        facts.append(f"no price known for {', '.join(unknown)}")
    return "; ".join(facts) + "."


def _quota(cloud: str, group: NodeGroupPlan, instance_type: str) -> str | None:
    for beginnings, name in cloud_facts(cloud).quotas.get(group.capacity, ()):
        if instance_type.startswith(beginnings):
            return name
    return None
