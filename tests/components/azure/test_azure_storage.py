"""Bucket and file system: encrypted by our key, closed, reached from inside, kept."""

from dataclasses import replace

import pytest

from planner.fleet import StoragePlan
from tests.components.azure.storage_world import LUSTRE, NFS, build
from tests.components.world import Recorded, Registered

ACCOUNTS = ("fleetmodels", "fleetfiles")


def account(recorded: Recorded, name: str) -> Registered:
    return recorded.one("StorageAccount", name)


@pytest.mark.parametrize("name", ACCOUNTS)
def test_accounts_know_no_keys_no_anonymous_readers_and_no_plain_text(name: str) -> None:
    inputs = account(build(NFS), name).inputs

    assert inputs["allowSharedKeyAccess"] is False
    assert inputs["allowBlobPublicAccess"] is False
    assert inputs["allowCrossTenantReplication"] is False
    # Of Azure Files too, where this is what refuses NFS without TLS.
    assert inputs["enableHttpsTrafficOnly"] is True
    assert inputs["minimumTlsVersion"] == "TLS1_2"


@pytest.mark.parametrize("name", ACCOUNTS)
def test_accounts_are_encrypted_by_our_key_and_follow_its_rotation(name: str) -> None:
    recorded = build(NFS)
    found = account(recorded, name)

    assert found.inputs["encryption"] == {
        "keySource": "Microsoft.Keyvault",
        "keyVaultProperties": {"keyVaultUri": "https://vault/", "keyName": "data"},
        "encryptionIdentity": {"encryptionUserAssignedIdentity": "keeper-id"},
    }
    assert found.inputs["identity"] == {"type": "UserAssigned", "userAssignedIdentities": ["keeper-id"]}
    assert recorded.one("test:index:Granted").urn in found.depends_on


@pytest.mark.parametrize("name", ACCOUNTS)
def test_accounts_of_a_private_cluster_are_reached_from_inside_only(name: str) -> None:
    inputs = account(build(NFS), name).inputs

    assert inputs["publicNetworkAccess"] == "Disabled"
    assert inputs["networkRuleSet"] == {"defaultAction": "Deny", "bypass": "None", "ipRules": []}


def test_who_may_reach_the_api_may_fill_the_bucket_and_reach_no_files() -> None:
    recorded = build(NFS, api_cidrs=("198.51.100.0/24", "203.0.113.7/32", "203.0.113.8/31"))
    inputs = account(recorded, "fleetmodels").inputs

    assert inputs["publicNetworkAccess"] == "Enabled"
    assert inputs["networkRuleSet"]["defaultAction"] == "Deny"
    # Single addresses must be written as such.
    assert [rule["iPAddressOrRange"] for rule in inputs["networkRuleSet"]["ipRules"]] == [
        "198.51.100.0/24",
        "203.0.113.7",
        "203.0.113.8",
        "203.0.113.9",
    ]
    assert account(recorded, "fleetfiles").inputs["publicNetworkAccess"] == "Disabled"


@pytest.mark.parametrize("plan", [NFS, LUSTRE], ids=["nfs", "lustre"])
def test_account_names_leave_room_for_pulumis_eight_characters(plan: StoragePlan) -> None:
    """Pulumi takes no care of it (pulumi-azure-native#4294)."""
    names = [found.name for found in build(plan).of("StorageAccount")]

    assert names
    assert all(name.isalnum() and name.islower() and len(name) <= 24 - 8 for name in names)


def test_the_bucket_is_versioned_and_gives_back_what_was_deleted() -> None:
    recorded = build(LUSTRE)
    settings = recorded.one("BlobServiceProperties").inputs

    assert settings["isVersioningEnabled"] is True
    assert (
        settings["deleteRetentionPolicy"]
        == settings["containerDeleteRetentionPolicy"]
        == {
            "enabled": True,
            "days": 7,
        }
    )
    assert settings["accountName"] == recorded.one("BlobContainer").inputs["accountName"] == "fleetmodels-name"
    assert recorded.one("BlobContainer").inputs["publicAccess"] == "None"


@pytest.mark.parametrize(
    ("zones", "redundancy"), [(("eastus-1",), "ZRS"), (("eastus-1", "eastus-2"), "ZRS"), (("westus-0",), "LRS")]
)
def test_accounts_are_in_all_zones_of_a_region_that_has_some(zones: tuple[str, ...], redundancy: str) -> None:
    """Whichever of them the stack uses, for another one later must not change the account."""
    recorded = build(NFS, zones=zones)

    assert account(recorded, "fleetmodels").inputs["sku"] == {"name": f"Standard_{redundancy}"}
    assert account(recorded, "fleetfiles").inputs["sku"] == {"name": f"Premium_{redundancy}"}


def test_files_are_an_nfs_share_of_the_planned_size() -> None:
    recorded = build(NFS)
    share = recorded.one("FileShare").inputs

    assert account(recorded, "fleetfiles").inputs["kind"] == "FileStorage"
    assert share["accountName"] == "fleetfiles-name"
    assert share["enabledProtocols"] == "NFS"
    assert share["shareQuota"] == 5120
    assert share["rootSquash"] == "NoRootSquash"
    assert not recorded.of("AmlFilesystem")


@pytest.mark.parametrize(
    ("name", "service", "of"), [("models", "blob", "fleetmodels"), ("files", "file", "fleetfiles")]
)
def test_nodes_find_each_account_at_its_private_address(name: str, service: str, of: str) -> None:
    recorded = build(NFS)
    endpoint = recorded.one("PrivateEndpoint", name).inputs
    zone = recorded.one("PrivateZone", name)
    record = recorded.one("PrivateDnsZoneGroup", name).inputs
    link = recorded.one("VirtualNetworkLink", name).inputs

    assert endpoint["subnet"]["id"] == "endpoints-id"
    (connection,) = endpoint["privateLinkServiceConnections"]
    assert connection["groupIds"] == [service]
    assert connection["privateLinkServiceId"].endswith(f"/{of}")
    assert zone.inputs["privateZoneName"] == f"privatelink.{service}.core.windows.net"
    assert record["privateEndpointName"] == f"fleet-storage-{name}-name"
    assert record["privateDnsZoneConfigs"][0]["privateDnsZoneId"].endswith(f"/{zone.name}")
    assert link["virtualNetwork"] == {"id": "vnet-id"}
    assert link["privateZoneName"] == f"{zone.name}-name"
    # Names of other accounts with private endpoints elsewhere must stay reachable.
    assert (link["registrationEnabled"], link["resolutionPolicy"]) == (False, "NxDomainRedirect")


def test_lustre_is_as_large_and_fast_as_planned_and_where_the_gpus_are() -> None:
    recorded = build(LUSTRE)
    files = recorded.one("AmlFilesystem").inputs

    assert files["sku"] == {"name": "AMLFS-Durable-Premium-500"}
    assert files["storageCapacityTiB"] == 8
    assert files["zones"] == ["2"]
    assert files["filesystemSubnet"] == "lustre-id"
    assert not recorded.of("FileShare")
    assert [found.name for found in recorded.of("StorageAccount")] == ["fleetmodels"]


def test_lustre_in_a_region_without_zones_is_in_none() -> None:
    assert "zones" not in build(replace(LUSTRE, zone="westus-0"), zones=("westus-0",)).one("AmlFilesystem").inputs


def test_lustre_is_encrypted_by_our_key() -> None:
    recorded = build(LUSTRE)
    files = recorded.one("AmlFilesystem")

    assert files.inputs["encryptionSettings"] == {
        "keyEncryptionKey": {"keyUrl": "https://vault/keys/data/1", "sourceVault": {"id": "vault-id"}}
    }
    assert files.inputs["identity"] == {"type": "UserAssigned", "userAssignedIdentities": ["keeper-id"]}
    assert recorded.one("test:index:Granted").urn in files.depends_on


def data(recorded: Recorded) -> list[Registered]:
    """What holds data, and what keeps it whole."""
    kinds = ("StorageAccount", "BlobServiceProperties", "BlobContainer", "FileShare", "AmlFilesystem")
    return [found for kind in kinds for found in recorded.of(kind)]


@pytest.mark.parametrize(("plan", "count"), [(NFS, 5), (LUSTRE, 4)], ids=["nfs", "lustre"])
def test_data_outlives_the_stack_unless_the_stack_says_otherwise(plan: StoragePlan, count: int) -> None:
    kept = data(build(plan))
    loose = data(build(replace(plan, keep_data=False), protect=False))

    assert len(kept) == len(loose) == count
    assert all(found.protect and found.retain_on_delete for found in kept)
    assert not any(found.protect or found.retain_on_delete for found in loose)


@pytest.mark.parametrize("plan", [NFS, LUSTRE], ids=["nfs", "lustre"])
def test_what_may_be_replaced_is_still_kept(plan: StoragePlan) -> None:
    """`allow_replacement: [storage]` lifts the protection, and the old data stays where it is."""
    found = data(build(plan, protect=False))

    assert all(not each.protect and each.retain_on_delete for each in found)


@pytest.mark.parametrize("plan", [NFS, LUSTRE], ids=["nfs", "lustre"])
def test_a_preview_registers_what_an_update_does(plan: StoragePlan) -> None:
    assert build(plan, preview=True).resources.keys() == build(plan).resources.keys()
