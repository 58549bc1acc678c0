"""Node pools: which nodes there can be, and what they are made of."""

from dataclasses import replace

import pytest

from components.clouds.gcp.pools import disk_type
from planner.instances import instances
from tests.components.gcp.stacks import (
    EXAMPLES,
    MIG,
    RDMA,
    build,
    built,
    only_gpu_pool,
    over,
    site,
    with_cluster,
    with_group,
    with_pool,
)
from tests.components.world import Recorded

SPOT = "fleet-h200-spot"
MEGA = ("a3-megagpu-8g", "us-central1-a")


@pytest.fixture(scope="module")
def world() -> Recorded:
    return built(RDMA)


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
        assert set(made.ignore_changes) == {"initialNodeCount", "nodeCount"}  # the autoscaler's
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


def test_local_disks_hold_caches_unless_the_stack_wants_none() -> None:
    plan = over(*MEGA)
    config = build(plan).one("NodePool", SPOT).inputs["nodeConfig"]
    assert config["ephemeralStorageLocalSsdConfig"] == {"localSsdCount": 16}

    without = build(replace(plan, storage=replace(plan.storage, node_cache=False))).one("NodePool", SPOT)
    assert "ephemeralStorageLocalSsdConfig" not in without.inputs["nodeConfig"]
    # The machine has them all the same: what GKE says of them must not look like another pool.
    assert "nodeConfig.ephemeralStorageLocalSsdConfig" in without.ignore_changes


# Cluster Toolkit, gke-node-pool: what the largest machines bring; Compute Engine documentation, "A2 Ultra": one a GPU.
@pytest.mark.parametrize(
    ("machine_type", "disks"),
    [
        ("a3-highgpu-8g", 16),
        ("a3-megagpu-8g", 16),
        ("a3-ultragpu-8g", 32),
        ("a4-highgpu-8g", 32),
        ("a3-highgpu-1g", 2),
        ("a2-ultragpu-1g", 1),
        ("a2-ultragpu-8g", 8),
    ],
)
def test_every_local_disk_of_a_machine_is_used(machine_type: str, disks: int) -> None:
    instance = instances("gcp")[machine_type]
    plan = with_pool(site(RDMA), local_nvme_gb=instance.local_nvme_gb)
    config = build(plan).one("NodePool", SPOT).inputs["nodeConfig"]
    assert config["ephemeralStorageLocalSsdConfig"] == {"localSsdCount": disks}


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


def test_least_nodes_are_there_from_the_beginning_where_they_divide_evenly() -> None:
    plan = with_group(site(MIG), min_nodes=3, max_nodes=3)
    pool = only_gpu_pool(build(plan)).inputs
    assert pool["initialNodeCount"] == 1  # in each of three zones
    assert pool["autoscaling"]["totalMinNodeCount"] == 3
