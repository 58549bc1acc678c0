"""The whole cloud: its providers, keys and names, what is kept, and that a preview sees what an update makes."""

from dataclasses import replace

import pytest

from components.clouds.azure.cloud import Azure
from components.clouds.base import Identity
from planner.fleet import CloudPlan
from tests.components.azure.stacks import EXAMPLES, build, built, site, without_kept_data
from tests.components.world import SUBSCRIPTION, UNKNOWN

STACK, NFS = "azure-llama-405b", "azure-small-mig"


@pytest.mark.parametrize("stack", EXAMPLES)
def test_a_preview_registers_what_an_update_does(stack: str) -> None:
    update, preview = built(stack), built(stack, preview=True)

    assert set(preview.resources) == set(update.resources)
    for urn, resource in preview.resources.items():
        other = update.resources[urn]
        assert set(resource.inputs) == set(other.inputs), urn
        assert (resource.protect, resource.retain_on_delete) == (other.protect, other.retain_on_delete), urn
        for key, value in resource.inputs.items():
            if UNKNOWN not in str(value):
                assert value == other.inputs[key], (urn, key)


@pytest.mark.parametrize("stack", EXAMPLES)
def test_every_resource_has_an_explicit_provider_and_a_parent(stack: str) -> None:
    recorded = built(stack)
    providers = {r.type.rpartition(":")[2]: r.urn for r in recorded if r.type.startswith("pulumi:providers:")}

    assert set(providers) == {"azure-native", "kubernetes"}
    for resource in recorded:
        package = resource.type.split(":")[0]
        if package in providers:
            assert resource.provider == providers[package], resource.urn
            assert "tritonfleet:clouds:" in resource.parent, resource.urn


@pytest.mark.parametrize("stack", EXAMPLES)
def test_everything_is_in_the_region_and_the_group_of_the_stack(stack: str) -> None:
    for resource in built(stack):
        assert resource.inputs.get("location", "eastus") in ("eastus", "Global"), resource.urn
        group = resource.inputs.get("resourceGroupName", "fleet-tritonfleet-stack-name")
        assert group == "fleet-tritonfleet-stack-name", resource.urn


def test_a_stack_can_name_its_subscription() -> None:
    plan = site(STACK)
    named = build(replace(plan, azure=plan.azure.model_copy(update={"subscription": SUBSCRIPTION})))

    assert named.one("pulumi:providers:azure-native").inputs["subscriptionId"] == SUBSCRIPTION
    assert "subscriptionId" not in built(STACK).one("pulumi:providers:azure-native").inputs


def test_the_kubeconfig_is_secret_everywhere() -> None:
    provider = built(STACK).one("pulumi:providers:kubernetes")

    assert "kubeconfig" in built(STACK).secrets
    assert "kubeconfig" in provider.secrets
    assert provider.inputs["clusterIdentifier"] == "tritonfleet-stack"


def test_keys_cannot_vanish_and_their_vault_answers_azure_alone() -> None:
    vault = built(STACK).one("Vault").inputs["properties"]

    assert vault["enablePurgeProtection"] is vault["enableSoftDelete"] is vault["enableRbacAuthorization"] is True
    assert vault["networkAcls"] == {"bypass": "AzureServices", "defaultAction": "Deny"}
    assert len("azure-keys-vault") + 8 <= 24  # Pulumi's suffix, and all that Azure allows


def test_the_vaults_public_endpoint_is_on_for_lustre_alone_which_wants_it() -> None:
    access = {stack: built(stack).one("Vault").inputs["properties"]["publicNetworkAccess"] for stack in (STACK, NFS)}

    assert access == {STACK: "Enabled", NFS: "Disabled"}
    assert {stack: site(stack).storage.kind for stack in access} == {STACK: "lustre", NFS: "nfs"}


def test_the_bucket_is_told_by_where_to_upload() -> None:
    found: list[object] = []
    build(site(STACK), (), lambda cloud: cloud.bucket and cloud.bucket.apply(found.append))

    assert found == ["https://fleetmodels-name.blob.core.windows.net/fleet-storage-models-name"]


def test_keys_rotate_and_no_version_ends() -> None:
    for name in ("disks", "data"):
        key = built(STACK).one("azure-native:keyvault:Key", f"fleet-keys-{name}").inputs["properties"]
        (action,) = key["rotationPolicy"]["lifetimeActions"]
        assert (key["kty"], key["keySize"]) == ("RSA", 2048)
        assert action == {"action": {"type": "rotate"}, "trigger": {"timeAfterCreate": "P1Y"}}
        # A Lustre file system stays with the version that it was made with.
        assert "attributes" not in key["rotationPolicy"]


def test_each_key_has_one_user_who_may_wrap_with_it_before_anything_is_encrypted() -> None:
    recorded = built(STACK)
    users = {"disks": "fleet-keys-disks-principalId", "data": "fleet-keys-data-principalId"}
    granted = {name: recorded.one("RoleAssignment", f"fleet-keys-{name}") for name in users}

    for name, user in users.items():
        inputs = granted[name].inputs
        assert inputs["scope"].endswith(f"/fleet-keys-{name}")
        assert inputs["principalId"] == user
        # Key Vault Crypto Service Encryption User
        assert inputs["roleDefinitionId"].endswith("/e147488a-f6f5-4113-8e2d-b22465e65bf6")
    assert granted["disks"].urn in recorded.one("ManagedCluster").depends_on
    files, account = recorded.one("AmlFilesystem"), recorded.one("StorageAccount")
    for user in (files, account):
        assert granted["data"].urn in user.depends_on
        # A new right is known everywhere after minutes, which making the cluster takes.
        assert recorded.one("ManagedCluster").urn in user.depends_on


def test_disks_follow_their_keys_rotation() -> None:
    disks = built(STACK).one("DiskEncryptionSet")

    assert disks.inputs["rotationToLatestKeyVersionEnabled"] is True
    assert disks.inputs["encryptionType"] == "EncryptionAtRestWithCustomerKey"
    assert disks.inputs["identity"] == {"type": "SystemAssigned"}
    assert disks.ignore_changes == ("activeKey.keyUrl",)


def protected(plan: CloudPlan) -> set[str]:
    recorded = build(plan, (), lambda cloud: cloud.volumes("serving", ()))
    return {resource.name for resource in recorded if resource.protect}


def test_cluster_pools_keys_group_and_storage_are_protected() -> None:
    names = protected(site(STACK))

    assert names >= {"fleet-cluster-aks", "fleet-h100-spot", "fleet-h100-on-demand", "fleet-tritonfleet-stack"}
    assert names >= {"fleet-keys-vault", "fleet-keys-disks", "fleet-keys-data", "fleet-storage-files"}
    assert names >= {"serving-engines", "serving-engines-readonly"}
    assert protected(without_kept_data(site(STACK))) == set()


@pytest.mark.parametrize(
    ("thing", "freed"),
    [("cluster", "fleet-cluster-aks"), ("pools.h100", "fleet-h100-spot"), ("storage", "fleet-storage-files")],
)
def test_a_replacement_that_is_meant_frees_that_alone(thing: str, freed: str) -> None:
    everything, left = protected(site(STACK)), protected(replace(site(STACK), allow_replacement=(thing,)))

    assert freed in everything - left
    others = {"fleet-cluster-aks", "fleet-h100-spot", "fleet-storage-files"} - {freed}
    assert others <= left


def test_the_group_outlives_the_stack_with_the_data_in_it() -> None:
    assert built(STACK).one("ResourceGroup").retain_on_delete
    assert not build(without_kept_data(site(STACK))).one("ResourceGroup").retain_on_delete


def test_autoscaler_and_metrics_are_aks_own() -> None:
    found: list[object] = []

    def use(cloud: Azure) -> None:
        found.extend([cloud.autoscaling().chart, tuple(cloud.charts()), cloud.mirrors, cloud.context])

    build(site(STACK), (), use)
    assert found == [None, (), {}, None]
    assert site(STACK).brings == {"cluster-autoscaler", "metrics-server"}


def test_who_reads_nothing_is_nobody() -> None:
    found: list[Identity] = []
    build(
        site(STACK),
        (),
        lambda cloud: found.append(cloud.identity("m", namespace="n", service_account="s", bucket_prefix=None)),
    )
    assert found == [Identity()]


def test_who_reads_a_prefix_is_trusted_by_the_clusters_issuer() -> None:
    recorded = build(
        site(STACK),
        (),
        lambda cloud: cloud.identity("m", namespace="serving", service_account="m", bucket_prefix="llama"),
    )
    credential = recorded.one("FederatedIdentityCredential").inputs

    assert credential["issuer"] == "fleet-cluster-aks-issuerURL"
    assert credential["subject"] == "system:serviceaccount:serving:m"


def test_nothing_has_to_be_there_before() -> None:
    assert Azure.unreachable(site(NFS)) == []
