"""Ranges that are refused and why, and subnets that never overlap and never move."""

from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cloud_config import NetworkConfig
from planner.errors import Problem
from planner.fleet import NetworkPlan, NodeGroupPlan, PoolPlan
from planner.instances import regions, zones
from planner.network import ZONE_SLOTS, address_problems, plan_network, zone_slot

THREE = ["use1-az1", "use1-az2", "use1-az4"]
USABLE = ["use1-az1", "use1-az2", "use1-az4", "use1-az5", "use1-az6"]
EXISTING = {
    "id": "vpc-0123456789abcdef0",
    "private_subnets": {"use1-az1": "subnet-0000000a", "use1-az2": "subnet-0000000b"},
}


def network(**values: Any) -> NetworkConfig:
    return NetworkConfig.model_validate({"zones": THREE} | values)


def planned(config: NetworkConfig) -> NetworkPlan:
    plan, problems = plan_network(config, "aws", "us-east-1")
    assert problems == []
    assert plan is not None
    return plan


def refused(region: str = "us-east-1", **values: Any) -> list[Problem]:
    plan, problems = plan_network(network(**values), "aws", region)
    assert plan is None
    assert all(problem.what and problem.consequence and problem.fix for problem in problems)
    return problems


def test_the_default_network() -> None:
    plan = planned(network())
    assert (plan.cidr, plan.service_cidr, plan.existing_id) == ("10.40.0.0/16", "172.20.0.0/16", None)
    assert [(subnet.zone, subnet.private_cidr, subnet.public_cidr) for subnet in plan.subnets] == [
        ("use1-az1", "10.40.0.0/19", "10.40.224.0/22"),
        ("use1-az2", "10.40.32.0/19", "10.40.228.0/22"),
        ("use1-az4", "10.40.96.0/19", "10.40.236.0/22"),
    ]


@st.composite
def networks(draw: st.DrawFn) -> tuple[str, list[str]]:
    length = draw(st.integers(16, 21))
    block = draw(st.integers(0, (1 << (length - 8)) - 1))
    cidr = str(IPv4Network(((10 << 24) + (block << (32 - length)), length)))
    return cidr, draw(st.permutations(USABLE).flatmap(lambda order: st.integers(2, 5).map(lambda n: list(order[:n]))))


@given(networks())
@settings(max_examples=200, deadline=None)
def test_subnets_lie_inside_and_never_overlap(case: tuple[str, list[str]]) -> None:
    cidr, used = case
    plan = planned(network(cidr=cidr, zones=used))
    assert [subnet.zone for subnet in plan.subnets] == used
    private = [IPv4Network(subnet.private_cidr) for subnet in plan.subnets]
    public = [IPv4Network(subnet.public_cidr) for subnet in plan.subnets]
    ranges = private + public
    assert all(found.subnet_of(IPv4Network(cidr)) for found in ranges)
    assert not any(one.overlaps(other) for i, one in enumerate(ranges) for other in ranges[:i])
    assert all(found.prefixlen <= 24 for found in private)
    assert all(found.prefixlen <= 28 for found in public)
    assert min(private_.num_addresses for private_ in private) > max(public_.num_addresses for public_ in public)


@given(networks(), st.sampled_from(USABLE))
@settings(max_examples=200, deadline=None)
def test_no_subnet_moves_when_a_zone_comes_goes_or_changes_place(case: tuple[str, list[str]], other: str) -> None:
    cidr, used = case
    before = {subnet.zone: subnet for subnet in planned(network(cidr=cidr, zones=used)).subnets}
    for changed in ([*used, other], [other, *used], used[1:] + [zone for zone in USABLE if zone not in used][:1]):
        unique = list(dict.fromkeys(changed))
        if len(unique) > 1:
            after = {subnet.zone: subnet for subnet in planned(network(cidr=cidr, zones=unique)).subnets}
            assert all(before[zone] == after[zone] for zone in before.keys() & after.keys())


def test_every_zone_of_every_region_has_a_slot_of_its_own() -> None:
    for region in regions("aws"):
        slots = [zone_slot(zone) for zone in zones("aws", region)]
        assert len(set(slots)) == len(slots), region
        assert all(0 <= slot < ZONE_SLOTS for slot in slots), region


@pytest.mark.parametrize(
    ("values", "key", "what", "fix"),
    [
        ({"cidr": "10.40.0.0"}, "network.cidr", "not an IPv4 range", "write one like 10.40.0.0/16"),
        ({"cidr": "10.40.0.0/33"}, "network.cidr", "not an IPv4 range", "write one like"),
        ({"cidr": "10.300.0.0/16"}, "network.cidr", "not an IPv4 range", "write one like"),
        ({"cidr": "fd00::/56"}, "network.cidr", "not an IPv4 range", "write one like"),
        ({"cidr": "10.40.1.0/16"}, "network.cidr", "does not begin where", "write 10.40.0.0/16"),
        ({"cidr": "10.0.0.0/15"}, "network.cidr", "larger than /16", "give a /16 to a /21"),
        ({"cidr": "10.40.0.0/22"}, "network.cidr", "smaller than /21", "give a /16 to a /21"),
        ({"cidr": "8.8.0.0/16"}, "network.cidr", "not a private range", "10.0.0.0/8"),
        ({"cidr": "169.254.0.0/16"}, "network.cidr", "not a private range", "10.0.0.0/8"),
        ({"service_cidr": "100.64.0.0/16"}, "network.service_cidr", "not a private range", "172.16.0.0/12"),
        ({"service_cidr": "172.20.0.0/25"}, "network.service_cidr", "not between /12 and /24", "give a /12"),
        (
            {"service_cidr": "10.40.128.0/20"},
            "network.service_cidr",
            "overlaps cidr, 10.40.0.0/16",
            "nothing in common",
        ),
        ({"peered_cidrs": ["10.0.0.0/8"]}, "network.cidr", "overlaps peered_cidrs[0], 10.0.0.0/8", "give cidr a range"),
        ({"peered_cidrs": ["10.1.0.0/16", "172.16.0.0/12"]}, "network.service_cidr", "peered_cidrs[1]", "give service"),
        ({"peered_cidrs": ["10.1.0.0/16", "ten"]}, "network.peered_cidrs[1]", "not an IPv4 range", "write one like"),
        ({"zones": ["use1-az1", "use1-az1"]}, "network.zones[1]", "is already zones[0]", "once"),
        ({"zones": ["use1-az1", "use1-az9"]}, "network.zones[1]", "not a zone of us-east-1", "did you mean use1-az"),
        (
            {"zones": ["use1-az1", "somewhere"]},
            "network.zones[1]",
            "not a zone of us-east-1",
            "use1-az1, use1-az2, use1",
        ),
        ({"zones": ["use1-az1", "use1-az3"]}, "network.zones[1]", "no control plane", "use1-az1, use1-az2, use1-az4"),
    ],
)
def test_each_fault_says_where_and_what_to_do(values: dict[str, Any], key: str, what: str, fix: str) -> None:
    (problem,) = refused(**values)
    assert problem.key == key
    assert what in problem.what
    assert fix in problem.fix


def test_a_zones_name_is_not_its_id() -> None:
    problems = refused(zones=["us-east-1a", "us-east-1b"])
    assert [problem.key for problem in problems] == ["network.zones[0]", "network.zones[1]"]
    assert "name, not its id" in problems[0].what
    assert "account" in problems[0].consequence
    assert "use1-az1, use1-az2, use1-az4, use1-az5, use1-az6" in problems[0].fix


def test_all_faults_are_said_at_once() -> None:
    problems = refused(cidr="10.0.0.0/8", service_cidr="10.9.0.0/16", peered_cidrs=["x"], zones=["us-east-1a", "q"])
    assert {problem.key for problem in problems} == {
        "network.cidr",
        "network.service_cidr",
        "network.peered_cidrs[0]",
        "network.zones[0]",
        "network.zones[1]",
    }


@given(
    st.text(max_size=64),
    st.from_regex(r"[0-9.]{1,15}/[0-9]{1,2}", fullmatch=True),
    st.lists(st.text(), min_size=2, max_size=6),
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_written_is_refused_in_words(text: str, cidr: str, used: list[str]) -> None:
    existing = {"id": text or "-", "private_subnets": dict.fromkeys(used, text)}
    problems = refused(cidr=cidr, service_cidr=text, peered_cidrs=[cidr, text], zones=used, existing=existing)
    assert {"network.service_cidr", "network.zones[0]", "network.existing.id"} <= {problem.key for problem in problems}
    assert all(line.isprintable() and line.isascii() for problem in problems for line in str(problem).splitlines())


def test_shared_address_space_is_fine_for_nodes() -> None:
    assert planned(network(cidr="100.64.0.0/16")).subnets[0].private_cidr == "100.64.0.0/19"


def test_an_unknown_region_is_left_to_the_caller() -> None:
    assert refused("us-east-9") == []
    assert [problem.key for problem in refused("us-east-9", cidr="10.0.0.0/8")] == ["network.cidr"]


def test_an_existing_network_is_used_as_it_is() -> None:
    plan = planned(network(cidr="10.9.0.0/24", zones=["use1-az2", "use1-az1"], existing=EXISTING))
    assert plan.existing_id == "vpc-0123456789abcdef0"
    assert [(subnet.zone, subnet.existing_id) for subnet in plan.subnets] == [
        ("use1-az2", "subnet-0000000b"),
        ("use1-az1", "subnet-0000000a"),
    ]
    assert all(subnet.private_cidr == subnet.public_cidr == "" for subnet in plan.subnets)


def test_what_an_existing_network_must_say() -> None:
    existing = {
        "id": "my-vpc",
        "private_subnets": {"use1-az1": "subnet-0000000a", "use1-az2": "subnet-0000000a", "use1-az9": "private-b"},
    }
    found = {problem.key: problem.what for problem in refused(existing=existing, nat_per_zone=True)}
    assert set(found) == {
        "network.cidr",
        "network.nat_per_zone",
        "network.existing.id",
        "network.existing.private_subnets",
        "network.existing.private_subnets.use1-az1",
        "network.existing.private_subnets.use1-az2",
        "network.existing.private_subnets.use1-az9",
    }
    assert found["network.cidr"] == "is missing, for an existing network"
    assert found["network.existing.private_subnets"] == "has none for 'use1-az4'"


def pool(max_nodes: int, used: Sequence[str], rdma_interfaces: int = 0) -> PoolPlan:
    groups = tuple(
        NodeGroupPlan(
            name=f"p-{capacity}",
            capacity=capacity,
            priority=1,
            instance_types=("p5.48xlarge",),
            zones=tuple(used),
            min_nodes=0,
            max_nodes=max_nodes,
            reservation=None,
            labels={},
            taints=(),
            startup_taints=(),
            allocatable={},
        )
        for capacity in ("spot", "on-demand")
    )
    return PoolPlan(
        name="p",
        gpu="H100-80GB",
        gpus_per_node=8,
        gpu_resource="nvidia.com/gpu",
        units_per_node=8,
        mig_profile=None,
        mig_name=None,
        time_slicing=None,
        vcpus=192,
        memory_gib=2048,
        local_nvme_gb=0,
        disk_gib=200,
        rdma_interfaces=rdma_interfaces,
        fabric=None,
        max_price_usd_h=None,
        node_selector={},
        tolerations=(),
        together=(),
        node_groups=groups,
    )


def test_nodes_at_their_most_must_find_addresses() -> None:
    plan = planned(network(cidr="10.40.0.0/21"))  # 251 addresses for a zone
    assert address_problems(plan, [pool(6, THREE)], "aws") == []
    assert address_problems(plan, [pool(1, ["use1-az1"], rdma_interfaces=32)], "aws") == []
    (problem,) = address_problems(plan, [pool(2, ["use1-az1"], rdma_interfaces=32)], "aws")
    assert problem.key == "network.cidr"
    assert problem.what == "251 addresses in use1-az1, and the GPU nodes at their most hold 264"
    assert len(address_problems(plan, [pool(9, THREE)], "aws")) == 3
