"""Whatever sound pool on whatever cloud: what its pods select and tolerate is what its nodes have."""

import re
from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_sites import CLOUDS

from planner.cloud_config import CapacityType, PoolConfig
from planner.clouds import cloud_facts
from planner.fleet import PoolPlan
from planner.gpus import gpus
from planner.instances import instances, regions, zones
from planner.pool_labels import GPU_RESOURCE, NODE_GROUP_LABEL, ZONE_LABEL
from planner.pool_problems import PRIORITY
from planner.pools import check_pool, plan_pool

RESERVATIONS = {
    "aws": "cr-0123456789abcdef0",
    "gcp": "h200-december",
    "azure": "/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/gpus"
    "/providers/Microsoft.Compute/capacityReservationGroups/h100",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    cloud: str
    config: PoolConfig
    rdma: bool


@cache
def region_of(cloud: str, instance_type: str) -> tuple[str, tuple[str, ...]]:
    """A region with the type, and its zones there."""
    for region in regions(cloud):
        found = tuple(zone for zone, types in zones(cloud, region).items() if instance_type in types)
        if found:
            return region, found
    raise AssertionError(instance_type)


@st.composite
def pools(draw: st.DrawFn) -> Case:
    cloud = draw(st.sampled_from(CLOUDS))
    facts, name = cloud_facts(cloud), draw(st.sampled_from(sorted(instances(cloud))))
    known = instances(cloud)[name]
    sold = known.reservation_kinds
    kinds: list[CapacityType] = [
        kind
        for kind in PRIORITY
        if (kind != "spot" or known.spot_supported)
        and (kind != "on-demand" or not name.startswith(facts.no_on_demand))
        and (kind != "flex-start" or "flex-start" in (sold or ()))
        and (kind != "reserved" or sold is None or set(facts.reservation_kinds) & set(sold))
    ]
    capacity = draw(st.sets(st.sampled_from(kinds), min_size=1, max_size=3))
    profiles = sorted(facts.mig.profiles(gpus()[known.gpu])) if known.mig_capable else []
    # A divided GPU is not shared by time as well.
    profile, sharing = draw(
        st.one_of(
            st.just((None, None)),
            st.tuples(st.none(), st.integers(2, 48)),
            *([st.tuples(st.sampled_from(profiles), st.none())] if profiles else []),
        )
    )
    least, most = sorted(draw(st.tuples(st.integers(0, 1000), st.integers(1, 1000))))
    values = {
        "name": draw(st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True)),
        "instance_types": [name],
        "capacity": sorted(capacity, key=lambda kind: -PRIORITY[kind]),
        "zones": list(region_of(cloud, name)[1][:6]),
        "mig_profile": profile,
        "time_slicing": sharing,
        "min_nodes": least,
        "max_nodes": most,
        "reservation": RESERVATIONS[cloud] if "reserved" in capacity else None,
    }
    return Case(cloud=cloud, config=PoolConfig.model_validate(values), rdma=draw(st.booleans()))


def planned(case: Case) -> PoolPlan:
    facts = cloud_facts(case.cloud)
    region, used = region_of(case.cloud, case.config.instance_types[0])
    checked, problems = check_pool(case.config, cloud=facts, region=region, network_zones=used, key="pools[0]")
    assert checked is not None, problems
    return plan_pool(checked, facts, rdma=case.rdma)


@settings(max_examples=300, deadline=None)
@given(case=pools())
def test_pods_land_on_their_pool_and_on_no_other(case: Case) -> None:
    facts, pool = cloud_facts(case.cloud), planned(case)
    # What nodes of a divided pool only have once they are divided.
    later = dict(facts.mig.node_labels) if pool.mig_profile else {}
    for group in pool.node_groups:
        assert {key: value for key, value in pool.node_selector.items() if key not in later}.items() <= (
            group.labels.items()
        )
        assert set(group.taints) <= set(pool.tolerations)
        assert all(taint.effect == "NoSchedule" for taint in group.taints)
        assert (facts.spot_taint in group.taints) == (group.capacity == "spot")
        # One that pods tolerated would not keep them off undivided GPUs.
        assert not set(group.startup_taints) & set(pool.tolerations)
        assert bool(group.startup_taints) == (pool.mig_profile is not None and facts.mig.gate == "taint")
    assert later.keys() <= pool.node_selector.keys()
    assert any(group.capacity == "spot" for group in pool.node_groups) == (facts.spot_taint in pool.tolerations)
    # Every toleration is for a taint that some of its nodes have.
    assert set(pool.tolerations) == {taint for group in pool.node_groups for taint in group.taints}
    assert any(value == case.config.name for value in pool.node_selector.values())


@settings(max_examples=300, deadline=None)
@given(case=pools())
def test_groups_are_tried_in_the_order_of_the_file_and_offer_what_pods_ask_for(case: Case) -> None:
    pool, known = planned(case), instances(case.cloud)[case.config.instance_types[0]]
    groups = pool.node_groups
    priorities = [group.priority for group in groups]
    assert [group.capacity for group in groups] == list(case.config.capacity)
    assert priorities == sorted(set(priorities), reverse=True)
    assert len({group.name for group in groups}) == len(groups)
    # Nodes that always run are of the first kind, and are counted once.
    assert [group.min_nodes for group in groups] == [case.config.min_nodes, *[0] * (len(groups) - 1)]
    assert {group.capacity for group in groups if group.reservation} == {"reserved"} & set(case.config.capacity)
    for group in groups:
        assert group.labels[NODE_GROUP_LABEL] == group.name
        assert pool.together == (NODE_GROUP_LABEL, ZONE_LABEL)
        assert pool.gpu_resource is not None
        assert group.allocatable[pool.gpu_resource] == str(pool.units_per_node)
        assert pool.units_per_node % known.gpu_count == 0
        for value in group.labels.values():
            assert re.fullmatch(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", value), value
        for taint in (*group.taints, *group.startup_taints):
            assert re.fullmatch(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", taint.value), taint


@pytest.mark.parametrize("rdma", [True, False])
@pytest.mark.parametrize(("cloud", "name"), [(cloud, name) for cloud in CLOUDS for name in instances(cloud)])
def test_a_pool_has_a_fabric_or_no_interfaces(cloud: str, name: str, rdma: bool) -> None:
    zone = region_of(cloud, name)[1][0]
    capacity = "spot" if instances(cloud)[name].spot_supported else "on-demand"
    values = {"name": "gpu", "instance_types": [name], "capacity": [capacity], "zones": [zone]}
    case = Case(cloud=cloud, config=PoolConfig.model_validate(values), rdma=rdma)
    pool = planned(case)
    assert (pool.fabric is None) == (pool.rdma_interfaces == 0)
    extended = {name for group in pool.node_groups for name in group.allocatable} - {pool.gpu_resource}
    if pool.fabric is None:
        assert extended == set()
    else:
        assert case.rdma
        assert extended - {"hugepages-2Mi"} == {pool.fabric.resource} - {None}
        assert pool.fabric.hugepages_pod_mib <= pool.fabric.hugepages_mib
        assert (pool.fabric.exception != "") == bool(pool.fabric.host_paths or pool.fabric.sidecar)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_rdma_that_is_counted_on_is_set_up(cloud: str) -> None:
    """Tensor parallel over nodes is planned for types with RDMA: none may be without a fabric of its cloud."""
    kinds = {known.rdma for known in instances(cloud).values() if known.rdma_interfaces}
    assert kinds <= cloud_facts(cloud).fabrics.keys()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_slice_is_asked_for_by_a_name_that_is_no_whole_gpus_or_kept_off_until_it_is_one(cloud: str) -> None:
    mig = cloud_facts(cloud).mig
    if mig.whole_resource:
        # The cloud's own plugin waits for the division, and its label says which; or our gate waits.
        assert mig.gate == "device-plugin" or mig.node_labels
    else:
        assert mig.gate == "taint"
        for gpu in gpus().values():
            assert GPU_RESOURCE not in {gpu.mig_resource[profile] for profile in mig.profiles(gpu)}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_spot_taint_is_no_other_taint_of_the_pool(cloud: str) -> None:
    facts = cloud_facts(cloud)
    assert facts.spot_taint.key not in {GPU_RESOURCE, facts.pool_label}
