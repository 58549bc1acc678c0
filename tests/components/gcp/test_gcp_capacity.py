"""Ways to nodes: spot, flex-start, on-demand and reserved, what each asks of a pool, and their order."""

from dataclasses import replace

import pytest

from components.clouds.gcp.pools import compact_placement
from planner.errors import PlanError
from planner.fleet import SpotNotice
from planner.plan import plan_values
from planner.stack_file import read_stack_file
from tests.components.gcp.stacks import EXAMPLES, MIG, RDMA, STACKS, build, built, only_gpu_pool, over, site, with_group
from tests.components.world import Recorded

SPOT, FLEX = "fleet-h200-spot", "fleet-h200-flex-start"
MEGA = ("a3-megagpu-8g", "us-central1-a")


@pytest.fixture(scope="module")
def world() -> Recorded:
    return built(RDMA)


def test_spot_nodes_are_tainted_and_give_the_longest_notice(world: Recorded) -> None:
    spot, other = (world.one("NodePool", name).inputs["nodeConfig"] for name in (SPOT, FLEX))
    taint = {"key": "cloud.google.com/gke-spot", "value": "true", "effect": "NO_SCHEDULE"}

    assert (spot["spot"], other["spot"]) == (True, False)
    assert taint in spot["taints"]
    assert taint not in other["taints"]
    assert spot["kubeletConfig"]["shutdownGracePeriodSeconds"] == 120
    # The rest is the pods', as the plan counts on it.
    assert spot["kubeletConfig"]["shutdownGracePeriodCriticalPodsSeconds"] == 30
    assert site(RDMA).spot_notice.pod_seconds == 120 - 30
    # GKE takes it for spot nodes alone.
    assert "shutdownGracePeriodSeconds" not in other["kubeletConfig"]


def test_the_usual_notice_is_not_asked_for() -> None:
    plan = site(RDMA)
    usual = replace(plan, spot_notice=SpotNotice(seconds=30, pod_seconds=15))
    config = build(usual).one("NodePool", SPOT).inputs["nodeConfig"]
    assert config["kubeletConfig"] == {"insecureKubeletReadonlyPortEnabled": "FALSE"}


def test_only_flex_start_nodes_are_queued_for_and_not_repaired() -> None:
    flex, spot = (built(MIG).one("NodePool", f"fleet-mig-{capacity}").inputs for capacity in ("flex-start", "spot"))

    assert flex["nodeConfig"]["flexStart"] is True
    assert flex["nodeConfig"]["spot"] is False
    assert "flexStart" not in spot["nodeConfig"]
    assert flex["management"] == {"autoRepair": False, "autoUpgrade": True}
    assert spot["management"] == {"autoRepair": True, "autoUpgrade": True}
    assert "upgradeSettings" not in flex
    assert spot["upgradeSettings"] == {"strategy": "SURGE", "maxSurge": 0, "maxUnavailable": 1}
    assert flex["nodeConfig"]["reservationAffinity"] == {"consumeReservationType": "NO_RESERVATION"}


def test_reserved_nodes_take_their_reservation_and_others_none(world: Recorded) -> None:
    plan = with_group(site(RDMA), capacity="reserved", name="h200-reserved", reservation="h200-december")
    reserved = only_gpu_pool(build(plan)).inputs

    assert reserved["nodeConfig"]["reservationAffinity"] == {
        "consumeReservationType": "SPECIFIC_RESERVATION",
        "key": "compute.googleapis.com/reservation-name",
        "values": ["h200-december"],
    }
    assert reserved["nodeConfig"]["spot"] is False
    assert "placementPolicy" not in reserved
    for pool in world.of("NodePool"):
        affinity = pool.inputs["nodeConfig"]["reservationAffinity"]
        assert affinity == {"consumeReservationType": "NO_RESERVATION"}


def test_nodes_whose_gpus_talk_to_each_other_lie_close_together_in_one_zone(world: Recorded) -> None:
    on_demand = build(over(*MEGA, capacity=("spot", "on-demand")))
    for pool in (*world.of("NodePool", "fleet-h200-"), *on_demand.of("NodePool", "fleet-h200-")):
        assert pool.inputs["placementPolicy"] == {"type": "COMPACT"}
        assert len(pool.inputs["nodeLocations"]) == 1
    for pool in built(MIG).of("NodePool"):
        assert "placementPolicy" not in pool.inputs


def test_flex_start_places_newer_machines_alone() -> None:
    roce = with_group(site(RDMA), capacity="flex-start").pools[0]
    tcpxo = with_group(over(*MEGA), capacity="flex-start").pools[0]

    assert compact_placement(roce, roce.node_groups[0])
    assert not compact_placement(tcpxo, tcpxo.node_groups[0])


@pytest.mark.parametrize("stack", EXAMPLES)
def test_google_sells_small_machines_with_h100_and_all_with_h200_or_b200_in_other_ways_than_on_demand(
    stack: str,
) -> None:
    values = dict(read_stack_file(STACKS / f"Pulumi.{stack}.yaml"))
    values["pools"] = [values["pools"][0] | {"capacity": ["spot", "on-demand"]}]

    with pytest.raises(PlanError) as refused:
        plan_values(values, base_dir=STACKS)
    assert [problem.key for problem in refused.value.problems] == ["pools[0].capacity"]


@pytest.mark.parametrize("name", ["autopilot", "autopilot-spot"])
def test_a_pool_cannot_have_the_name_of_a_compute_class_that_gke_brings(name: str) -> None:
    values = dict(read_stack_file(STACKS / f"Pulumi.{MIG}.yaml"))
    values["pools"] = [values["pools"][0] | {"name": name}]
    values["models"] = [model | {"pool": name} for model in values["models"]]

    with pytest.raises(PlanError) as refused:
        plan_values(values, base_dir=STACKS)
    assert [problem.key for problem in refused.value.problems] == ["pools[0].name"]


@pytest.mark.parametrize("stack", EXAMPLES)
def test_a_compute_class_has_each_pools_node_pools_in_the_plans_order(stack: str) -> None:
    recorded = built(stack)
    classes = recorded.of("kubernetes:cloud.google.com/v1:ComputeClass")

    assert len(classes) == len(site(stack).pools)
    for pool, made in zip(site(stack).pools, classes, strict=True):
        spec = made.inputs["spec"]
        ordered = sorted(pool.node_groups, key=lambda group: -group.priority)
        assert made.inputs["metadata"]["name"] == pool.name
        assert spec["priorities"] == [{"nodepools": [group.name]} for group in ordered]
        assert spec["nodePoolAutoCreation"] == {"enabled": False}
        assert spec["whenUnsatisfiable"] == "DoNotScaleUp"
        # A class without its pools would be refused.
        assert {recorded.one("NodePool", f"fleet-{group.name}").urn for group in ordered} <= made.depends_on
        # The class's own label and nothing that a class says better.
        assert pool.node_selector["cloud.google.com/compute-class"] == pool.name
        assert not {"cloud.google.com/gke-spot", "cloud.google.com/machine-family"} & set(pool.node_selector)
