"""Spot on each cloud, by the real scheduler: a group of two nodes lies in one node group and one zone, or waits."""

from collections.abc import Callable
from typing import Any

import pytest

from planner.fleet import NodeGroupPlan
from planner.pool_problems import PRIORITY
from tests.cluster.fleets import Node, born, members, pool_of
from tests.cluster.scheduling import Scheduler
from tests.contract.programs import plan_of, site, whole

CASES = ("aws-llama-405b", "gcp-llama-405b", "azure-llama-405b")
NOTICES = {"aws": (120, 110), "gcp": (120, 90), "azure": (30, 20)}


def ready(case: str, group: NodeGroupPlan) -> Node:
    """A node of the group with all its devices."""
    node = born(case, group)
    return Node(labels=node.labels, taints=node.taints, allocatable=node.allocatable | group.allocatable)


@pytest.mark.parametrize("case", CASES)
def test_a_group_spans_neither_capacity_types_nor_zones(place: Callable[[str], Scheduler], case: str) -> None:
    scheduler, pool = place(case), pool_of(case)
    spot, *others = pool.node_groups
    assert spot.capacity == "spot"
    leader, worker = members(case, plan_of(case).models[0].name)
    ready(case, spot).put(scheduler, "spot-1")
    assert scheduler.placed(leader).node == "spot-1"

    for other in others:
        ready(case, other).put(scheduler, other.capacity)
    assert scheduler.placed(worker).node is None, "half of the group would outlive a reclaim of the other half"
    ready(case, spot).put(scheduler, "spot-elsewhere", zone="elsewhere")
    assert scheduler.placed(worker).node is None, "the network between ranks ends at the zone"

    ready(case, spot).put(scheduler, "spot-2")
    assert scheduler.placed(worker).node == "spot-2"


@pytest.mark.parametrize("case", CASES)
def test_a_group_takes_whole_nodes_of_any_one_capacity_type(place: Callable[[str], Scheduler], case: str) -> None:
    scheduler, pool = place(case), pool_of(case)
    last = pool.node_groups[-1]
    assert last.capacity in ("on-demand", "flex-start")
    pods = members(case, plan_of(case).models[0].name)
    ready(case, last).put(scheduler, "first")
    assert scheduler.placed(pods[0]).node == "first"
    assert scheduler.placed(pods[1]).node is None, "two ranks of a group on one node would leave a node's GPUs idle"
    ready(case, last).put(scheduler, "second")
    assert scheduler.placed(pods[1]).node == "second"


@pytest.mark.parametrize("case", CASES)
def test_a_node_group_without_what_pods_tolerate_stays_empty(place: Callable[[str], Scheduler], case: str) -> None:
    scheduler, pool = place(case), pool_of(case)
    spot = pool.node_groups[0]
    (leader, _) = members(case, plan_of(case).models[0].name)
    intolerant: dict[str, Any] = {**leader, "spec": {**leader["spec"], "tolerations": []}}
    ready(case, spot).put(scheduler, "spot-1")

    refused = scheduler.placed(intolerant)
    assert refused.node is None
    assert "untolerated taint" in refused.reason
    assert scheduler.placed(leader).node == "spot-1"


@pytest.mark.parametrize("case", CASES)
def test_pods_end_within_the_notice(case: str) -> None:
    plan = site(plan_of(case))
    cloud = case.partition("-")[0]
    assert (plan.spot_notice.seconds, plan.spot_notice.pod_seconds) == NOTICES[cloud]
    for pod in members(case, plan_of(case).models[0].name):
        assert pod["spec"]["terminationGracePeriodSeconds"] <= plan.spot_notice.pod_seconds
    if cloud == "gcp":
        pools = whole(case).of("gcp:container/nodePool:NodePool")
        configs = [pool.inputs["nodeConfig"] for pool in pools if pool.inputs["nodeConfig"].get("spot")]
        assert configs
        for config in configs:
            kubelet = config["kubeletConfig"]
            assert kubelet["shutdownGracePeriodSeconds"] == plan.spot_notice.seconds
            critical = kubelet["shutdownGracePeriodCriticalPodsSeconds"]
            assert plan.spot_notice.seconds - critical == plan.spot_notice.pod_seconds


@pytest.mark.parametrize("case", CASES)
def test_what_is_paid_for_anyway_and_what_is_cheaper_is_tried_first(case: str) -> None:
    (pool,) = site(plan_of(case)).pools
    said = _order(case)
    assert said == [group.name for group in pool.node_groups]
    assert [PRIORITY[c] for c in ("reserved", "spot", "flex-start", "on-demand")] == sorted(
        PRIORITY.values(), reverse=True
    )


def _order(case: str) -> list[str]:
    """Names of the pool's node groups, in the order in which the cloud is told to try them."""
    recorded, (pool,) = whole(case), site(plan_of(case)).pools
    classes = recorded.of("ComputeClass")
    if classes:
        (only,) = classes
        return [name for step in only.inputs["spec"]["priorities"] for name in step["nodepools"]]
    (expander,) = (
        one for one in recorded.of("ConfigMap") if one.inputs["metadata"]["name"].endswith("priority-expander")
    )
    assert expander.inputs["metadata"]["namespace"] == "kube-system"
    text: str = expander.inputs["data"]["priorities"]
    numbers = [int(line.rstrip(":")) for line in text.splitlines() if not line.startswith(" ")]
    assert numbers == sorted(numbers, reverse=True)
    patterns = [line.strip() for line in text.splitlines() if line.startswith(" ")]
    suffixes = {"spot": ("-spot", "sp-"), "on-demand": ("-on-demand", r"\-on\-demand", "od-")}
    return [
        next(
            group.name
            for group in pool.node_groups
            if any(suffix in pattern.replace("\\", "") for suffix in suffixes[group.capacity])
        )
        for pattern in patterns
    ]
