"""Bucket and file system: encrypted, closed, kept, and where the plan wants them."""

from dataclasses import replace

import pytest

from tests.components.gcp.parts import LUSTRE, NFS, build, loose
from tests.components.gcp.stacks import site
from tests.components.world import UNKNOWN, Recorded, Registered

KINDS = ("gcp:storage/bucket:Bucket", "gcp:filestore/instance:Instance", "gcp:lustre/instance:Instance")


def data(recorded: Recorded) -> list[Registered]:
    """What holds data."""
    return [resource for kind in KINDS for resource in recorded.of(kind)]


@pytest.mark.parametrize("stack", [LUSTRE, NFS])
def test_the_bucket_is_private_encrypted_and_versioned(stack: str) -> None:
    recorded = build(site(stack))
    bucket = recorded.one("gcp:storage/bucket:Bucket").inputs

    assert bucket["publicAccessPrevention"] == "enforced"
    assert bucket["uniformBucketLevelAccess"] is True
    assert bucket["versioning"] == {"enabled": True}
    assert bucket["encryption"] == {"defaultKmsKeyName": "the-key"}
    assert bucket["location"] == "us-central1"
    # Names of buckets are everybody's: Pulumi makes one that nobody has.
    assert "name" not in bucket
    assert not recorded.of("gcp:storage/bucketIAMMember:BucketIAMMember")


@pytest.mark.parametrize("stack", [LUSTRE, NFS])
def test_data_outlives_the_stack_unless_the_stack_says_otherwise(stack: str) -> None:
    kept, loosened = data(build(site(stack))), data(build(loose(site(stack))))

    assert len(kept) == len(loosened) == 2
    assert all(resource.protect and resource.retain_on_delete for resource in kept)
    assert not any(resource.protect or resource.retain_on_delete for resource in loosened)


def test_nothing_is_left_of_data_that_is_not_kept() -> None:
    kept, loosened = build(site(NFS)), build(loose(site(NFS)))
    buckets = [recorded.one("gcp:storage/bucket:Bucket").inputs for recorded in (kept, loosened)]
    files = [recorded.one("gcp:filestore/instance:Instance").inputs for recorded in (kept, loosened)]

    assert [bucket["forceDestroy"] for bucket in buckets] == [False, True]
    assert [bucket["softDeletePolicy"]["retentionDurationSeconds"] for bucket in buckets] == [604800, 0]
    assert [instance["deletionProtectionEnabled"] for instance in files] == [True, False]


@pytest.mark.parametrize("stack", [LUSTRE, NFS])
def test_data_waits_for_its_key_and_for_nothing_of_the_other_file_system(stack: str) -> None:
    """Google's agents could not encrypt it before."""
    recorded = build(site(stack))
    grant = recorded.one("gcp:kms/cryptoKeyIAMMember:CryptoKeyIAMMember").urn
    services = recorded.one("gcp:servicenetworking/connection:Connection").urn
    bucket, files = data(recorded)

    assert grant in bucket.depends_on
    assert services not in bucket.depends_on
    assert {grant, services} <= files.depends_on


def test_filestore_is_zonal_encrypted_and_reached_by_nodes_alone() -> None:
    plan = site(NFS)
    recorded = build(plan)
    files = recorded.one("gcp:filestore/instance:Instance").inputs

    assert (files["tier"], files["location"]) == ("ZONAL", plan.storage.zone)
    assert plan.storage.zone in plan.network.zones
    assert files["kmsKeyName"] == "the-key"
    (network,) = files["networks"]
    assert network == {"network": "network-name", "modes": ["MODE_IPV4"], "connectMode": "PRIVATE_SERVICE_ACCESS"}
    assert files["fileShares"] == {
        "name": "tritonfleet",
        "capacityGb": plan.storage.capacity_gib,
        "nfsExportOptions": [
            {
                "ipRanges": [plan.network.subnets[0].private_cidr],
                "accessMode": "READ_WRITE",
                # The kubelet hands the root folder over as root.
                "squashMode": "NO_ROOT_SQUASH",
            }
        ],
    }
    assert plan.network.pod_cidr not in files["fileShares"]["nfsExportOptions"][0]["ipRanges"]
    assert not recorded.of("gcp:lustre/instance:Instance")


def test_lustre_is_as_large_and_fast_as_planned_and_where_the_gpus_are() -> None:
    plan = site(LUSTRE)
    recorded = build(plan)
    files = recorded.one("gcp:lustre/instance:Instance").inputs

    assert (files["capacityGib"], files["perUnitStorageThroughput"]) == ("9000", "1000")
    assert files["location"] == "us-central1-b"
    assert {zone for group in plan.pools[0].node_groups for zone in group.zones} == {files["location"]}
    assert files["kmsKey"] == "the-key"
    assert files["network"] == "network-id"
    assert files["filesystem"].isalnum()
    assert len(files["filesystem"]) <= 8
    # Its servers would listen on a port that new drivers do not call.
    assert "gkeSupportEnabled" not in files
    assert not recorded.of("gcp:filestore/instance:Instance")


def test_another_lustre_has_another_name_while_the_old_one_is_there() -> None:
    """Google takes the name, and Pulumi makes none for it: it is the bucket's, and the tier's, which cannot change."""
    plan = site(LUSTRE)
    slower = replace(plan, storage=replace(plan.storage, throughput_mb_s_per_tib=500, capacity_gib=18_000))
    names = [build(p).one("gcp:lustre/instance:Instance").inputs["instanceId"] for p in (plan, slower)]
    grown = build(replace(plan, storage=replace(plan.storage, capacity_gib=18_000)))

    assert names == ["fleet-storage-models-name-1000", "fleet-storage-models-name-500"]
    assert grown.one("gcp:lustre/instance:Instance").inputs["instanceId"] == names[0]


@pytest.mark.parametrize("stack", [LUSTRE, NFS])
def test_a_preview_knows_what_will_be_made(stack: str) -> None:
    previewed, updated = (build(site(stack), preview=preview) for preview in (True, False))

    assert {resource.urn for resource in previewed} == {resource.urn for resource in updated}
    if stack == LUSTRE:
        assert previewed.one("gcp:lustre/instance:Instance").inputs["instanceId"] == UNKNOWN
