"""The control plane: who reaches it, who it is in Azure, what it scales by, and what its nodes are."""

from dataclasses import replace
from typing import Any

import pytest

from components.clouds.azure.cloud import cluster_name
from components.clouds.azure.cluster import zone_numbers
from planner.fleet import CloudPlan
from tests.components.azure.stacks import build, built, example, from_bucket, site, with_cluster, with_group
from tests.components.world import SUBSCRIPTION, Recorded, Registered

STACK, NFS = "azure-llama-405b", "azure-small-mig"
GROUP = "01234567-89ab-cdef-0123-456789abcdef"
RESERVATION = "/subscriptions/s/resourceGroups/gpus/providers/Microsoft.Compute/capacityReservationGroups/h100"
ROLES = "/providers/Microsoft.Authorization/roleDefinitions/"


@pytest.fixture(scope="module")
def world() -> Recorded:
    return built(STACK)


def cluster(plan: CloudPlan) -> dict[str, Any]:
    return build(plan).one("ManagedCluster").inputs


def role_of(assignment: Registered) -> str:
    return assignment.inputs["roleDefinitionId"].removeprefix(f"/subscriptions/{SUBSCRIPTION}{ROLES}")


def test_the_plan_says_name_version_and_ranges(world: Recorded) -> None:
    aks = world.one("ManagedCluster").inputs
    network = aks["networkProfile"]

    assert aks["resourceName"] == aks["dnsPrefix"] == "tritonfleet-stack"
    assert aks["nodeResourceGroup"] == "tritonfleet-stack-nodes"
    assert aks["kubernetesVersion"] == "1.35"
    assert aks["sku"] == {"name": "Base", "tier": "Standard"}
    assert network["podCidr"] == site(STACK).network.pod_cidr == "10.40.128.0/17"
    assert network["serviceCidr"] == "172.20.0.0/16"
    assert network["dnsServiceIP"] == "172.20.0.10"


def test_network_policies_are_enforced_by_cilium_over_an_overlay(world: Recorded) -> None:
    network = world.one("ManagedCluster").inputs["networkProfile"]

    assert (network["networkPlugin"], network["networkPluginMode"]) == ("azure", "overlay")
    assert (network["networkDataplane"], network["networkPolicy"]) == ("cilium", "cilium")
    assert network["outboundType"] == "userAssignedNATGateway"
    assert network["loadBalancerSku"] == "standard"


def test_service_accounts_can_become_identities(world: Recorded) -> None:
    aks = world.one("ManagedCluster").inputs

    assert aks["oidcIssuerProfile"] == {"enabled": True}
    assert aks["securityProfile"]["workloadIdentity"] == {"enabled": True}
    assert aks["securityProfile"]["imageCleaner"] == {"enabled": True, "intervalHours": 168}


def test_a_public_api_answers_the_named_ranges_and_the_nodes_own_way_out(world: Recorded) -> None:
    access = world.one("ManagedCluster").inputs["apiServerAccessProfile"]

    assert access["authorizedIPRanges"] == ["198.51.100.0/24", "fleet-network-nat-ipAddress/32"]
    assert access["disableRunCommand"] is True
    assert "enablePrivateCluster" not in access


def test_without_ranges_the_api_is_private() -> None:
    access = cluster(with_cluster(site(STACK), api_cidrs=()))["apiServerAccessProfile"]

    assert access["enablePrivateCluster"] is True
    assert access["privateDNSZone"] == "system"
    assert access["disableRunCommand"] is True
    assert "authorizedIPRanges" not in access


def test_administrators_are_entra_groups_and_end_local_accounts() -> None:
    aks = cluster(with_cluster(site(STACK), administrators=(GROUP,)))

    assert aks["aadProfile"] == {"managed": True, "enableAzureRBAC": False, "adminGroupObjectIDs": [GROUP]}
    assert aks["disableLocalAccounts"] is True
    assert aks["enableRBAC"] is True


def test_without_administrators_the_certificate_is_the_only_way_in(world: Recorded) -> None:
    aks = world.one("ManagedCluster").inputs

    assert "aadProfile" not in aks
    assert aks["disableLocalAccounts"] is False


def test_the_kubeconfig_logs_in_as_the_azure_cli_is(world: Recorded) -> None:
    assert "kubelogin" in world.outputs["kubeconfig"]
    assert "--login, azurecli" in world.outputs["kubeconfig"]
    assert "devicecode" not in world.outputs["kubeconfig"]


def test_a_preview_asks_azure_nothing() -> None:
    # The recorder refuses every question.
    assert built(STACK, preview=True).one("ManagedCluster")


def test_the_cluster_is_an_identity_with_rights_on_what_it_uses_and_nothing_else(world: Recorded) -> None:
    aks = world.one("ManagedCluster")
    found = {
        assignment.inputs["scope"].rpartition("/")[2]: (role_of(assignment), assignment)
        for assignment in world.of("RoleAssignment", "fleet-cluster-")
    }

    assert {scope: role for scope, (role, _) in found.items()} == {
        "fleet-network-vnet": "4d97b98b-1d4f-4787-a291-c67834d212e7",  # Network Contributor
        "fleet-cluster-kubelet": "f1a07417-d97a-45cb-824c-7a7467783830",  # Managed Identity Operator
        "fleet-keys-disks": "acdd72a7-3385-48ef-bd42-f606fba81ae7",  # Reader
    }
    for _, assignment in found.values():
        assert assignment.inputs["principalId"] == "fleet-cluster-cluster-principalId"
        assert assignment.inputs["principalType"] == "ServicePrincipal"
        assert assignment.urn in aks.depends_on
    assert aks.inputs["identity"]["type"] == "UserAssigned"
    (identity,) = aks.inputs["identity"]["userAssignedIdentities"]
    assert identity.endswith("/fleet-cluster-cluster")


def test_nodes_pull_images_as_an_identity_of_their_own(world: Recorded) -> None:
    kubelet = world.one("ManagedCluster").inputs["identityProfile"]["kubeletidentity"]

    assert kubelet["resourceId"].endswith("/fleet-cluster-kubelet")
    assert kubelet["clientId"] == "fleet-cluster-kubelet-clientId"
    assert kubelet["objectId"] == "fleet-cluster-kubelet-principalId"


def test_a_reservation_is_the_clusters_to_use() -> None:
    reserved = with_group(site(STACK), name="h100-reserved", capacity="reserved", reservation=RESERVATION, taints=())
    assignment = build(reserved).one("RoleAssignment", "fleet-cluster-reservation-h100")

    assert assignment.inputs["scope"] == RESERVATION
    assert role_of(assignment) == "b24988ac-6180-42a0-ab88-20f7382dd24c"  # Contributor


def test_reservations_of_one_name_in_two_groups_are_two() -> None:
    plan = with_group(site(STACK), name="h100-reserved", capacity="reserved", reservation=RESERVATION, taints=())
    other = RESERVATION.replace("/gpus/", "/more/")
    second = replace(
        plan.pools[0], name="more", node_groups=(replace(plan.pools[0].node_groups[0], reservation=other),)
    )
    rights = build(replace(plan, pools=(*plan.pools, second))).of("RoleAssignment", "fleet-cluster-reservation-")

    assert {right.inputs["scope"] for right in rights} == {RESERVATION, other}


def test_nodes_wait_for_the_way_out(world: Recorded) -> None:
    needed = {world.one("Subnet", f"fleet-network-{name}").urn for name in ("nodes", "endpoints", "lustre")}
    assert needed <= world.one("ManagedCluster").depends_on


def test_disks_are_encrypted_with_the_stacks_key(world: Recorded) -> None:
    aks = world.one("ManagedCluster")
    (system,) = aks.inputs["agentPoolProfiles"]

    assert aks.inputs["diskEncryptionSetID"].endswith("/fleet-keys-disks")
    assert "diskEncryptionSetID" in aks.replace_on_changes
    assert system["osDiskType"] == "Managed"
    assert system["enableEncryptionAtHost"] is True


def test_system_nodes_are_fixed_in_number_regular_and_in_every_zone(world: Recorded) -> None:
    (system,) = world.one("ManagedCluster").inputs["agentPoolProfiles"]

    assert (system["name"], system["mode"]) == ("system", "System")
    assert (system["vmSize"], system["count"]) == ("Standard_D4ds_v5", 2)
    assert system["availabilityZones"] == ["1", "2", "3"]
    assert system["vnetSubnetID"].endswith("/fleet-network-nodes")
    assert system["enableNodePublicIP"] is False
    assert system["securityProfile"] == {"sshAccess": "Disabled"}
    assert not {"scaleSetPriority", "enableAutoScaling", "nodeTaints"} & set(system)


def test_what_aks_cannot_change_would_replace_the_cluster_and_is_refused(world: Recorded) -> None:
    aks = world.one("ManagedCluster")

    assert {"diskEncryptionSetID", "networkProfile.serviceCidr", "apiServerAccessProfile.enablePrivateCluster"} <= set(
        aks.replace_on_changes
    )
    assert aks.protect
    assert aks.delete_before_replace


def test_gpu_pools_of_the_cluster_are_no_edit_of_it(world: Recorded) -> None:
    assert world.one("ManagedCluster").ignore_changes == ("agentPoolProfiles",)


def test_only_drivers_of_what_is_mounted_run() -> None:
    lustre = built(STACK).one("ManagedCluster").inputs["storageProfile"]
    files = built(NFS).one("ManagedCluster").inputs["storageProfile"]
    models = (from_bucket(example(STACK).models[0], "llama"),)
    blobs = build(site(STACK), models).one("ManagedCluster").inputs["storageProfile"]

    def enabled(profile: dict[str, dict[str, bool]]) -> set[str]:
        assert len(profile) == 4
        return {driver for driver, setting in profile.items() if setting["enabled"]}

    assert enabled(lustre) == set()
    assert enabled(files) == {"fileCSIDriver"}
    assert enabled(blobs) == {"blobCSIDriver"}


def test_the_autoscaler_is_the_one_of_other_clouds(world: Recorded) -> None:
    profile = world.one("ManagedCluster").inputs["autoScalerProfile"]

    assert profile["expander"] == "priority"
    assert profile["balanceSimilarNodeGroups"] == "false"
    assert profile["skipNodesWithLocalStorage"] == "false"
    assert profile["scaleDownUtilizationThreshold"] == "0"
    assert profile["ignoreDaemonsetsUtilization"] is True
    assert profile["scaleDownUnneededTime"] == profile["scaleDownDelayAfterAdd"] == "10m"
    assert profile["maxNodeProvisionTime"] == "25m"


def test_the_version_is_the_stacks_alone_and_images_come_in_a_weekly_window(world: Recorded) -> None:
    """AKS's own upgrades take control plane and nodes at once, which a cluster with spot pools cannot."""
    assert world.one("ManagedCluster").inputs["autoUpgradeProfile"] == {
        "upgradeChannel": "none",
        "nodeOSUpgradeChannel": "NodeImage",
    }
    window = world.one("MaintenanceConfiguration").inputs
    assert window["configName"] == "aksManagedNodeOSUpgradeSchedule"
    assert window["maintenanceWindow"]["schedule"] == {"weekly": {"dayOfWeek": "Sunday", "intervalWeeks": 1}}
    assert window["maintenanceWindow"]["durationHours"] == 6


def test_an_edit_of_the_version_takes_the_control_plane_first_and_every_pool(world: Recorded) -> None:
    aks, pools = world.one("ManagedCluster"), world.of("AgentPool")
    (system,) = aks.inputs["agentPoolProfiles"]

    # AKS wants versions of all pools or of none.
    assert {nodes.inputs["orchestratorVersion"] for nodes in pools} == {system["orchestratorVersion"]} == {"1.35"}
    assert pools
    assert all(aks.urn in nodes.depends_on for nodes in pools)


def test_a_region_without_zones_gives_none() -> None:
    plan = replace(site(NFS), network=replace(site(NFS).network, zones=("westus-0",)))

    assert zone_numbers(("eastus-2", "eastus-3")) == ["2", "3"]
    assert zone_numbers(("westus-0",)) is None
    assert "availabilityZones" not in cluster(plan)["agentPoolProfiles"][0]


def test_a_clusters_name_fits_in_that_of_its_group() -> None:
    assert cluster_name("tritonfleet", "Prod.EU") == "tritonfleet-prod-eu"
    assert len("azure-" + cluster_name("tritonfleet", "x" * 80)) + 8 <= 63
