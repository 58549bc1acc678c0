"""Agent pools: which nodes there can be, what they are made of, and what the autoscaler is told of them."""

import re
from dataclasses import replace

import pytest

from components.clouds.azure.pools import TEMPLATE_TAG, agent_pool_name, scale_set_pattern
from components.platform.autoscaler import priorities
from planner.fleet import CloudPlan
from tests.components.azure.stacks import EXAMPLES, build, built, site, with_group, with_pool
from tests.components.world import Registered

RDMA, MIG = "azure-llama-405b", "azure-small-mig"
RESERVATION = "/subscriptions/s/resourceGroups/gpus/providers/Microsoft.Compute/capacityReservationGroups/h100"
SPOT_TAINT = "kubernetes.azure.com/scalesetpriority=spot:NoSchedule"


def pool(plan: CloudPlan) -> Registered:
    return build(plan).one("AgentPool", f"fleet-{plan.pools[0].name}-spot")


def reserved(stack: str) -> CloudPlan:
    name = f"{site(stack).pools[0].name}-reserved"
    return with_group(site(stack), name=name, capacity="reserved", reservation=RESERVATION, taints=())


@pytest.mark.parametrize("stack", EXAMPLES)
def test_every_planned_node_group_becomes_one_of_its_size_labels_and_taints(stack: str) -> None:
    recorded = built(stack)
    planned = [(pool, group) for pool in site(stack).pools for group in pool.node_groups]

    assert len(recorded.of("AgentPool")) == len(planned)
    for pool_, group in planned:
        nodes = recorded.one("AgentPool", f"fleet-{group.name}").inputs
        assert (nodes["mode"], nodes["type"], nodes["osType"]) == ("User", "VirtualMachineScaleSets", "Linux")
        assert nodes["orchestratorVersion"] == site(stack).cluster.kubernetes_version
        assert nodes["vmSize"] == group.instance_types[0]
        assert nodes["nodeLabels"] == group.labels
        assert nodes["nodeTaints"] == [f"{taint.key}={taint.value}:{taint.effect}" for taint in group.taints]
        assert nodes["availabilityZones"] == [zone[-1] for zone in group.zones]
        assert nodes["enableAutoScaling"] is True
        assert (nodes["count"], nodes["minCount"], nodes["maxCount"]) == (0, 0, group.max_nodes)
        assert nodes["vnetSubnetID"].endswith("/fleet-network-nodes")
        assert nodes["osDiskSizeGB"] == pool_.disk_gib
        assert nodes["resourceName"] == "fleet-cluster-aks-name"


@pytest.mark.parametrize("stack", EXAMPLES)
def test_no_label_has_a_prefix_that_aks_keeps_for_itself(stack: str) -> None:
    for nodes in built(stack).of("AgentPool"):
        prefixes = {label.partition("/")[0] for label in nodes.inputs["nodeLabels"]}
        assert not {prefix for prefix in prefixes if prefix.endswith(("kubernetes.azure.com", "kubernetes.io"))}


@pytest.mark.parametrize("stack", EXAMPLES)
def test_nodes_are_encrypted_without_ssh_and_without_public_addresses(stack: str) -> None:
    system = built(stack).one("ManagedCluster").inputs["agentPoolProfiles"][0]
    for nodes in built(stack).of("AgentPool"):
        assert nodes.inputs["enableEncryptionAtHost"] is True
        assert nodes.inputs["osDiskType"] == "Managed"
        assert nodes.inputs["enableNodePublicIP"] is False
        assert nodes.inputs["securityProfile"] == {"sshAccess": "Disabled"}
        # The GPU operator and InfiniBand's driver know one operating system per cluster.
        assert nodes.inputs["osSKU"] == system["osSKU"] == "Ubuntu"


def test_spot_nodes_are_deleted_when_reclaimed_and_cost_at_most_the_on_demand_price() -> None:
    spot, regular = (built(RDMA).one("AgentPool", f"fleet-h100-{kind}").inputs for kind in ("spot", "on-demand"))

    assert spot["scaleSetPriority"] == "Spot"
    assert spot["scaleSetEvictionPolicy"] == "Delete"
    assert spot["spotMaxPrice"] == -1
    assert SPOT_TAINT in spot["nodeTaints"]
    assert "upgradeSettings" not in spot  # AKS refuses them
    assert regular["scaleSetPriority"] == "Regular"
    assert not {"scaleSetEvictionPolicy", "spotMaxPrice"} & set(regular)
    assert SPOT_TAINT not in regular["nodeTaints"]


def test_a_price_limit_is_of_spot_nodes_alone_and_has_five_decimals() -> None:
    limited = build(with_pool(site(RDMA), max_price_usd_h=31.2345678))

    assert limited.one("AgentPool", "fleet-h100-spot").inputs["spotMaxPrice"] == 31.23457
    assert "spotMaxPrice" not in limited.one("AgentPool", "fleet-h100-on-demand").inputs


def test_an_upgrade_takes_one_node_after_another_and_wants_none_beside() -> None:
    settings = built(RDMA).one("AgentPool", "fleet-h100-on-demand").inputs["upgradeSettings"]
    assert settings == {"maxSurge": "0", "maxUnavailable": "1"}


def test_mig_is_divided_by_aks_which_takes_its_own_driver() -> None:
    mig, whole = (
        built(stack).one("AgentPool", name).inputs for stack, name in ((MIG, "mig-spot"), (RDMA, "h100-spot"))
    )

    assert mig["gpuInstanceProfile"] == "MIG2g"
    assert mig["gpuProfile"] == whole["gpuProfile"] == {"driver": "Install"}
    assert "gpuInstanceProfile" not in whole
    # Until the GPUs are divided there is no device plugin to ask.
    assert mig["nodeLabels"]["nvidia.com/gpu.deploy.device-plugin"] == "false"
    assert "nvidia.com/gpu.deploy.device-plugin" not in whole["nodeLabels"]


def test_the_autoscaler_is_told_of_slices_and_interfaces_that_no_node_has_shown_it() -> None:
    mig, rdma = (
        built(stack).one("AgentPool", name).inputs["tags"] for stack, name in ((MIG, "mig-spot"), (RDMA, "h100-spot"))
    )

    assert mig == {f"{TEMPLATE_TAG}nvidia.com_gpu": "3"}
    assert rdma == {f"{TEMPLATE_TAG}nvidia.com_gpu": "8", f"{TEMPLATE_TAG}rdma_ib": "8"}
    assert not [key for key in (mig | rdma) if re.search(r"[<>%&\\?/]", key)]  # Azure refuses these in tags


def test_nodes_with_infiniband_are_one_pool_in_one_zone_close_together() -> None:
    recorded = built(RDMA)
    for capacity in ("spot", "on-demand"):
        nodes = recorded.one("AgentPool", f"fleet-h100-{capacity}").inputs
        assert nodes["availabilityZones"] == ["1"]
        assert nodes["proximityPlacementGroupID"].endswith(f"/fleet-h100-{capacity}")
        assert recorded.one("ProximityPlacementGroup", f"fleet-h100-{capacity}").inputs["proximityPlacementGroupType"]
    assert not built(MIG).of("ProximityPlacementGroup")
    assert "proximityPlacementGroupID" not in built(MIG).one("AgentPool", "mig-spot").inputs


def test_reserved_nodes_use_the_reservation_and_no_placement_group() -> None:
    recorded = build(reserved(RDMA))
    nodes = recorded.one("AgentPool", "fleet-h100-reserved").inputs

    assert nodes["capacityReservationGroupID"] == RESERVATION
    assert nodes["scaleSetPriority"] == "Regular"
    assert "proximityPlacementGroupID" not in nodes
    assert not recorded.of("ProximityPlacementGroup")
    assert "capacityReservationGroupID" not in built(RDMA).one("AgentPool", "fleet-h100-spot").inputs


def test_what_aks_cannot_change_would_replace_the_pool_and_is_refused() -> None:
    nodes = built(MIG).one("AgentPool", "mig-spot")

    assert {
        "vmSize",
        "scaleSetPriority",
        "spotMaxPrice",
        "gpuInstanceProfile",
        "gpuProfile",
        "availabilityZones",
    } <= set(nodes.replace_on_changes)
    assert {"proximityPlacementGroupID", "capacityReservationGroupID", "osDiskType"} <= set(nodes.replace_on_changes)
    assert nodes.protect
    assert nodes.delete_before_replace  # the name cannot be given twice


def test_a_pool_that_the_stack_names_may_be_replaced() -> None:
    plan = site(MIG)
    allowed = pool(replace(plan, allow_replacement=("pools.mig",)))
    other = pool(replace(plan, allow_replacement=("cluster", "storage")))

    assert not allowed.protect
    assert other.protect


def test_an_edit_leaves_the_number_of_nodes_to_the_autoscaler() -> None:
    assert built(MIG).one("AgentPool", "mig-spot").ignore_changes == ("count",)


def test_names_fit_and_differ_by_capacity() -> None:
    names = {agent_pool_name("a123456789", capacity) for capacity in ("spot", "on-demand", "reserved")}

    assert names == {"a123456789sp", "a123456789od", "a123456789rs"}
    assert all(re.fullmatch(r"[a-z][a-z0-9]{0,11}", name) for name in names)


def test_the_priority_expander_tells_scale_sets_apart() -> None:
    spot, regular = site(RDMA).pools[0].node_groups

    assert re.search(scale_set_pattern(spot), "aks-h100sp-12345678-vmss")
    assert not re.search(scale_set_pattern(spot), "aks-h100od-12345678-vmss")
    assert not re.search(scale_set_pattern(spot), "aks-xh100sp-12345678-vmss")
    assert re.search(scale_set_pattern(regular), "aks-h100od-12345678-vmss")
    lines = priorities(site(RDMA), scale_set_pattern).splitlines()
    assert lines.index('  - "^aks-h100sp-[0-9]+-vmss$"') < lines.index('  - "^aks-h100od-[0-9]+-vmss$"')
