"""What a stack's nodes cost by capacity type, and which account limits they reach."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from planner.cloud_config import CapacityType, PoolConfig
from planner.clouds import cloud_facts
from planner.fleet import PoolPlan
from planner.instances import instances
from planner.pools import check_pool, plan_pool
from planner.pricing import HOURS_PER_MONTH, estimate_cost, quota_needs

P5 = instances("aws")["p5.48xlarge"]
BLOCK = "cr-0123456789abcdef0"


def pool(
    name: str,
    types: Sequence[str],
    capacity: Sequence[CapacityType] = ("spot", "on-demand"),
    *,
    max_nodes: int = 3,
    min_nodes: int = 0,
) -> PoolPlan:
    config = PoolConfig.model_validate(
        {"name": name, "instance_types": list(types), "capacity": list(capacity), "max_nodes": max_nodes}
        | {"min_nodes": min_nodes, "reservation": BLOCK if "reserved" in capacity else None}
    )
    zones = ["use2-az1"] if "p5e.48xlarge" in types else ["use1-az6"]
    region = "us-east-2" if "p5e.48xlarge" in types else "us-east-1"
    aws = cloud_facts("aws")
    checked, problems = check_pool(config, cloud=aws, region=region, network_zones=zones, key="pools[0]")
    assert checked is not None, problems
    return plan_pool(checked, aws, rdma=False)


def test_preferred_capacity_comes_first_and_makes_the_month() -> None:
    pools = [pool("big", ["p5.48xlarge"]), pool("small", ["g6.xlarge"], ["on-demand"])]
    cost = estimate_cost("aws", "us-east-1", pools, {"big": 2, "small": 1})
    assert [(line.node_group, line.nodes, line.usd_per_hour, line.price_as_of) for line in cost.lines] == [
        ("big-spot", 2, 38.9866, "2026-08-06"),
        ("small-on-demand", 1, 0.8048, "2026-07-20"),
        ("big-on-demand", 2, 110.08, "2026-07-20"),
    ]
    assert cost.usd_per_month == pytest.approx((38.9866 + 0.8048) * HOURS_PER_MONTH, abs=0.01)
    assert "Estimate" in cost.note
    assert "us-east-1 as of 2026-07-20, 2026-08-06" in cost.note
    assert "spot prices move" in cost.note
    assert "differ" not in cost.note


def test_nodes_that_always_run_are_paid_even_if_no_model_needs_them() -> None:
    cost = estimate_cost("aws", "us-east-1", [pool("big", ["p5.48xlarge"], min_nodes=3)], {"big": 1})
    assert cost.lines[0].nodes == 3
    idle = estimate_cost("aws", "us-east-1", [pool("big", ["p5.48xlarge"])], {})
    assert (idle.lines[0].nodes, idle.lines[0].usd_per_hour, idle.usd_per_month) == (0, 0.0, 0.0)


def test_prices_of_another_region_are_said_to_be() -> None:
    cost = estimate_cost("aws", "eu-west-1", [pool("small", ["g6.xlarge"])], {"small": 1})
    assert "prices of us-east-1" in cost.note
    assert "those of eu-west-1 differ" in cost.note


def test_an_unknown_price_makes_no_sum_up() -> None:
    cost = estimate_cost(
        "aws", "us-east-2", [pool("h200", ["p5e.48xlarge"]), pool("big", ["p5.48xlarge"])], {"h200": 1, "big": 1}
    )
    assert cost.lines[0].usd_per_hour is None
    assert cost.lines[1].usd_per_hour == P5.spot_usd_h
    assert cost.usd_per_month is None
    assert "no price known for h200-spot, h200-on-demand" in cost.note


def test_a_capacity_block_has_the_price_of_its_purchase() -> None:
    cost = estimate_cost("aws", "us-east-1", [pool("big", ["p5.48xlarge"], ["reserved", "on-demand"])], {"big": 2})
    assert [line.usd_per_hour for line in cost.lines] == [None, 110.08]
    assert cost.usd_per_month is None
    assert "reserved capacity costs what was agreed" in cost.note


def test_the_first_of_several_instance_types_is_priced() -> None:
    cost = estimate_cost("aws", "us-east-1", [pool("l4", ["g6.12xlarge", "g6.24xlarge"])], {"l4": 1})
    assert cost.lines[0].instance_type == "g6.12xlarge"
    assert "first instance type" in cost.note


def test_limits_by_their_own_names_at_the_largest() -> None:
    pools = [
        pool("h100", ["p5.48xlarge"], max_nodes=3),
        pool("block", ["p5.48xlarge"], ["reserved"], max_nodes=4),
        pool("l4", ["g6.12xlarge", "g6.24xlarge"], max_nodes=2),
        pool("a100", ["p4d.24xlarge"], max_nodes=1),
    ]
    assert {need.name: (need.needed, need.unit) for need in quota_needs("aws", pools)} == {
        "All P5 Spot Instance Requests": (3 * 192, "vCPU"),
        "All P4, P3 and P2 Spot Instance Requests": (96, "vCPU"),
        "All G and VT Spot Instance Requests": (2 * 96, "vCPU"),
        "Running On-Demand P instances": (3 * 192 + 96, "vCPU"),
        "Running On-Demand G and VT instances": (2 * 96, "vCPU"),
    }


def test_every_known_instance_type_counts_to_a_limit() -> None:
    template = pool("l4", ["g6.xlarge"], max_nodes=1)
    for name, instance in instances("aws").items():
        groups = tuple(replace(group, instance_types=(name,)) for group in template.node_groups)
        needs = quota_needs("aws", [replace(template, node_groups=groups)])
        assert [need.needed for need in needs] == [instance.vcpus] * 2, name
