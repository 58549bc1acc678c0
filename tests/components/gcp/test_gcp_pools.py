"""Node pools: which nodes there can be, what they are made of, and in which order they are tried."""

from dataclasses import replace

import pytest

from components.clouds.gcp.pools import compact_placement, disk_type
from planner.errors import PlanError
from planner.fleet import SpotNotice
from planner.instances import instances
from planner.plan import plan_values
from planner.stack_file import read_stack_file
from tests.components.gcp.stacks import (
    EXAMPLES,
    MIG,
    RDMA,
    STACKS,
    build,
    built,
    over,
    site,
    with_cluster,
    with_group,
    with_pool,
)
from tests.components.world import Recorded, Registered

SPOT, ON_DEMAND = "fleet-h200-spot", "fleet-h200-on-demand"


@pytest.fixture(scope="module")
def world() -> Recorded:
    return built(RDMA)


def only_gpu_pool(recorded: Recorded) -> Registered:
    (pool,) = [pool for pool in recorded.of("NodePool") if pool.inputs["name"] != "system"]
    return pool


@pytest.mark.parametrize("stack", EXAMPLES)
def test_every_planned_node_group_becomes_a_pool_of_its_name_size_labels_and_taints(stack: str) -> None:
    recorded = built(stack)
    planned = [(pool, group) for pool in site(stack).pools for group in pool.node_groups]

    assert len(recorded.of("NodePool")) == 1 + len(planned)
    for pool, group in planned:
        made = recorded.one("NodePool", f"fleet-{group.name}")
        config = made.inputs["nodeConfig"]
        # Compute classes call it so.
        assert made.inputs["name"] == group.name
        assert made.delete_before_replace
        assert made.inputs["nodeLocations"] == sorted(group.zones)
        assert made.inputs["autoscaling"] == {
            "totalMinNodeCount": group.min_nodes,
            "totalMaxNodeCount": group.max_nodes,
            "locationPolicy": "ANY",
        }
        assert made.inputs["initialNodeCount"] == 0
        assert "nodeCount" not in made.inputs
        assert set(made.ignore_changes) == {"initialNodeCount", "nodeCount"}
        assert config["machineType"] == group.instance_types[0]
        assert config["labels"] == group.labels
        assert config["labels"]["cloud.google.com/compute-class"] == pool.name
        assert config["taints"] == [
            {"key": taint.key, "value": taint.value, "effect": "NO_SCHEDULE"} for taint in group.taints
        ]
        assert config["diskSizeGb"] == pool.disk_gib


@pytest.mark.parametrize("stack", EXAMPLES)
def test_nodes_are_shielded_encrypted_private_and_nobody_special(stack: str) -> None:
    recorded = built(stack)
    for pool in recorded.of("NodePool"):
        config = pool.inputs["nodeConfig"]
        assert config["imageType"] == "COS_CONTAINERD"
        assert config["shieldedInstanceConfig"] == {"enableSecureBoot": True, "enableIntegrityMonitoring": True}
        assert config["workloadMetadataConfig"] == {"mode": "GKE_METADATA"}
        assert config["metadata"] == {"disable-legacy-endpoints": "true"}
        assert config["gvnic"] == {"enabled": True}
        assert config["bootDiskKmsKey"] == "fleet-keys-disks-id"
        assert config["serviceAccount"] == "fleet-node-email"
        assert config["kubeletConfig"]["insecureKubeletReadonlyPortEnabled"] == "FALSE"
        assert recorded.one("CryptoKeyIAMMember", "fleet-keys-disks-compute").urn in pool.depends_on
        assert {right.urn for right in recorded.of("projects/iAMMember:IAMMember", "node")} <= pool.depends_on


def test_nodes_may_write_logs_and_metrics_and_pull_images(world: Recorded) -> None:
    rights = world.of("IAMMember", "fleet-node")

    assert {right.inputs["role"] for right in rights} == {
        "roles/container.defaultNodeServiceAccount",
        "roles/artifactregistry.reader",
    }
    assert {right.inputs["member"] for right in rights} == {"fleet-node-member"}
    account = world.one("gcp:serviceaccount/account:Account").inputs["accountId"]
    assert account == "tritonfleet-stack-nodes"


def test_gpus_come_with_a_driver(world: Recorded) -> None:
    (gpus,) = world.one("NodePool", SPOT).inputs["nodeConfig"]["guestAccelerators"]
    assert gpus == {
        "type": "nvidia-h200-141gb",
        "count": 8,
        "gpuDriverInstallationConfig": {"gpuDriverVersion": "LATEST"},
    }


@pytest.mark.parametrize(
    ("machine_type", "zone", "gpu"),
    [
        ("a3-highgpu-8g", "us-central1-a", "nvidia-h100-80gb"),
        ("a3-megagpu-8g", "us-central1-a", "nvidia-h100-mega-80gb"),
        ("a4-highgpu-8g", "us-central1-b", "nvidia-b200"),
    ],
)
def test_each_machine_has_its_gpus_by_googles_name(machine_type: str, zone: str, gpu: str) -> None:
    for pool in build(over(machine_type, zone)).of("NodePool", "fleet-h200-"):
        (gpus,) = pool.inputs["nodeConfig"]["guestAccelerators"]
        assert gpus["type"] == gpu


def test_every_machine_type_of_the_catalogue_has_a_name_for_its_gpus() -> None:
    for name, instance in instances("gcp").items():
        pool = with_group(with_pool(site(MIG), mig_name=None, gpus_per_node=instance.gpu_count), instance_types=(name,))
        (gpus,) = only_gpu_pool(build(pool)).inputs["nodeConfig"]["guestAccelerators"]
        memory, kind = f"{instance.gpu_memory_mib // 1024}gb", instance.gpu.partition("-")[0].lower()
        assert kind in gpus["type"]
        assert memory in gpus["type"] or gpus["type"] in ("nvidia-l4", "nvidia-tesla-a100", "nvidia-b200"), name


def test_mig_slices_are_made_as_the_node_starts_and_pods_select_them() -> None:
    (pool,) = site(MIG).pools
    for group in pool.node_groups:
        (gpus,) = built(MIG).one("NodePool", f"fleet-{group.name}").inputs["nodeConfig"]["guestAccelerators"]
        assert gpus["gpuPartitionSize"] == "2g.20gb"
        assert gpus["count"] == 1
        # GKE sets it itself, before the device plugin says a word.
        assert "cloud.google.com/gke-gpu-partition-size" not in group.labels
    assert pool.node_selector["cloud.google.com/gke-gpu-partition-size"] == "2g.20gb"
    assert (pool.gpu_resource, pool.units_per_node) == ("nvidia.com/gpu", 3)


def test_time_slicing_is_gkes_own() -> None:
    shared = with_pool(site(MIG), mig_name=None, mig_profile=None, time_slicing=4)
    for pool in build(shared).of("NodePool", "fleet-mig-"):
        (gpus,) = pool.inputs["nodeConfig"]["guestAccelerators"]
        assert gpus["gpuSharingConfig"] == {"gpuSharingStrategy": "TIME_SHARING", "maxSharedClientsPerGpu": 4}
        assert "gpuPartitionSize" not in gpus


def test_spot_nodes_are_tainted_and_give_the_longest_notice(world: Recorded) -> None:
    spot, other = (world.one("NodePool", name).inputs["nodeConfig"] for name in (SPOT, ON_DEMAND))
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


def test_nodes_whose_gpus_talk_to_each_other_lie_close_together(world: Recorded) -> None:
    for name in (SPOT, ON_DEMAND):
        assert world.one("NodePool", name).inputs["placementPolicy"] == {"type": "COMPACT"}
    for pool in built(MIG).of("NodePool"):
        assert "placementPolicy" not in pool.inputs


def test_flex_start_places_newer_machines_alone() -> None:
    roce = with_group(site(RDMA), capacity="flex-start").pools[0]
    tcpxo = with_group(over("a3-megagpu-8g", "us-central1-a"), capacity="flex-start").pools[0]

    assert compact_placement(roce, roce.node_groups[0])
    assert not compact_placement(tcpxo, tcpxo.node_groups[0])


def test_local_disks_hold_caches_unless_the_stack_wants_none() -> None:
    plan = over("a3-megagpu-8g", "us-central1-a")
    config = build(plan).one("NodePool", SPOT).inputs["nodeConfig"]
    assert config["ephemeralStorageLocalSsdConfig"] == {"localSsdCount": 16}

    without = build(replace(plan, storage=replace(plan.storage, node_cache=False)))
    assert "ephemeralStorageLocalSsdConfig" not in without.one("NodePool", SPOT).inputs["nodeConfig"]


@pytest.mark.parametrize(
    ("machine_type", "disk"),
    [
        ("a3-ultragpu-8g", "hyperdisk-balanced"),
        ("a4-highgpu-8g", "hyperdisk-balanced"),
        ("n4-standard-4", "hyperdisk-balanced"),
        ("a3-megagpu-8g", "pd-balanced"),
        ("a2-ultragpu-1g", "pd-balanced"),
        ("g2-standard-8", "pd-balanced"),
        ("e2-standard-4", "pd-balanced"),
    ],
)
def test_boot_disks_are_of_a_kind_that_the_machine_takes(machine_type: str, disk: str) -> None:
    assert disk_type(machine_type) == disk


def test_pools_are_protected_unless_the_stack_says_otherwise(world: Recorded) -> None:
    allowed = build(replace(site(RDMA), allow_replacement=("pools.h200",)))

    assert world.one("NodePool", SPOT).protect is True
    assert allowed.one("NodePool", SPOT).protect is False


@pytest.mark.parametrize(("nodes", "zones", "each"), [(2, 2, 1), (1, 1, 1), (3, 3, 1), (6, 3, 2), (4, 3, 2)])
def test_system_nodes_are_spread_over_zones(nodes: int, zones: int, each: int) -> None:
    system = build(with_cluster(site(MIG), system_nodes=nodes)).one("NodePool", "fleet-system").inputs

    assert system["name"] == "system"
    assert len(system["nodeLocations"]) == zones
    assert system["nodeCount"] == each
    assert "autoscaling" not in system
    config = system["nodeConfig"]
    assert config["machineType"] == "e2-standard-4"
    assert config["spot"] is False
    assert "guestAccelerators" not in config
    assert "taints" not in config
    assert system["upgradeSettings"]["maxSurge"] == 1


def test_small_machines_with_h100_are_never_on_demand() -> None:
    values = dict(read_stack_file(STACKS / f"Pulumi.{MIG}.yaml"))
    values["pools"] = [values["pools"][0] | {"capacity": ["spot", "on-demand"]}]

    with pytest.raises(PlanError) as refused:
        plan_values(values, base_dir=STACKS)
    assert [problem.key for problem in refused.value.problems] == ["pools[0].capacity"]


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


def test_least_nodes_are_there_from_the_beginning_where_they_divide_evenly() -> None:
    plan = with_group(site(MIG), min_nodes=3, max_nodes=3)
    pool = only_gpu_pool(build(plan)).inputs
    assert pool["initialNodeCount"] == 1  # in each of three zones
    assert pool["autoscaling"]["totalMinNodeCount"] == 3
