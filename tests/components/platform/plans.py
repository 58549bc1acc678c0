"""Plans for these tests: the example stacks, and one with a pool of every kind."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from planner.fleet import CloudPlan, NodeGroupPlan, PoolPlan
from planner.plan import FleetPlan, plan_file
from planner.pool_labels import DEVICE_PLUGIN_CONFIG_LABEL

STACKS = Path(__file__).parents[3] / "stacks"
EXAMPLES = sorted(path.name.removeprefix("Pulumi.").removesuffix(".yaml") for path in STACKS.glob("Pulumi.aws-*.yaml"))


@cache
def fleet_of(stack: str) -> FleetPlan:
    """The plan of an example stack, models included."""
    return plan_file(STACKS / f"Pulumi.{stack}.yaml")


def plan_of(stack: str) -> CloudPlan:
    """The plan of an example stack's cluster."""
    plan = fleet_of(stack).infrastructure
    assert plan
    return plan


def mixed_plan() -> CloudPlan:
    """Whole GPUs with RDMA, reserved first; MIG slices; and a GPU shared four ways by time."""
    large, (mig,) = plan_of("aws-llama-405b"), plan_of("aws-small-mig").pools
    (whole,), (small,) = large.pools, plan_of("aws-dev").pools
    spot = whole.node_groups[0]
    reserved = replace(
        spot, name="h100-reserved", capacity="reserved", priority=30, max_nodes=2, taints=spot.taints[:1]
    )
    shared = replace(small, name="l4", time_slicing=4, units_per_node=4, node_groups=_labelled(small))
    whole = replace(whole, node_groups=(reserved, *whole.node_groups))
    return replace(large, pools=(whole, mig, shared))


def _labelled(pool: PoolPlan) -> tuple[NodeGroupPlan, ...]:
    config = {DEVICE_PLUGIN_CONFIG_LABEL: "shared-4"}
    return tuple(replace(group, labels=group.labels | config) for group in pool.node_groups)
