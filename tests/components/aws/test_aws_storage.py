"""Bucket, file system and claims: encrypted, closed, kept, and mounted as their drivers want it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pulumi
import pytest

from components.clouds.aws.cloud import Aws
from components.clouds.base import POD_USER, Volumes
from fleet.recorder import Recording
from fleet.synthesis import record_program
from planner.fleet import CloudPlan
from planner.stack_file import read_stack_file
from tests.components.aws.stacks import STACKS, build, built, document, example, from_bucket, site, with_pod_identity
from tests.components.world import Recorded, Registered

LUSTRE, NFS = "aws-llama-405b", "aws-small-mig"
ZONES = ("use1-az1", "use1-az2", "use1-az6")
NODES = "fleet-cluster-eks-clusterSecurityGroupId"


def loose(plan: CloudPlan) -> CloudPlan:
    return replace(plan, storage=replace(plan.storage, keep_data=False))


def volume(recorded: Recorded, name: str) -> tuple[Any, Any]:
    """Specs of a persistent volume and of the claim that it is for."""
    return tuple(recorded.one(f"kubernetes:core/v1:{kind}", f"serving-{name}").inputs["spec"] for kind in _KINDS)


_KINDS = ("PersistentVolume", "PersistentVolumeClaim")


@pytest.mark.parametrize("stack", [LUSTRE, NFS])
def test_the_bucket_is_private_encrypted_and_versioned(stack: str) -> None:
    recorded = built(stack)
    bucket = recorded.one("aws:s3/bucket:Bucket")
    about = [resource for resource in recorded if resource.type.startswith("aws:s3/") and resource != bucket]

    assert len(about) == 5
    assert {resource.inputs["bucket"] for resource in about} == {f"{bucket.name}-bucket"}
    assert recorded.one("BucketPublicAccessBlock").inputs == {
        "bucket": f"{bucket.name}-bucket",
        "blockPublicAcls": True,
        "blockPublicPolicy": True,
        "ignorePublicAcls": True,
        "restrictPublicBuckets": True,
    }
    assert recorded.one("BucketVersioning").inputs["versioningConfiguration"] == {"status": "Enabled"}
    assert recorded.one("BucketOwnershipControls").inputs["rule"] == {"objectOwnership": "BucketOwnerEnforced"}
    (rule,) = recorded.one("BucketServerSideEncryptionConfiguration").inputs["rules"]
    assert rule["bucketKeyEnabled"] is True
    applied = rule["applyServerSideEncryptionByDefault"]
    assert applied["sseAlgorithm"] == "aws:kms"
    assert applied["kmsMasterKeyId"].endswith(":fleet-keys-data")


def refuses_plain_text(statement: dict[str, Any]) -> bool:
    return (
        statement["Effect"] == "Deny"
        and statement["Principal"] == {"AWS": "*"}
        and statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    )


def test_the_bucket_refuses_requests_without_tls() -> None:
    (statement,) = document(built(LUSTRE).one("BucketPolicy"))

    assert refuses_plain_text(statement)
    assert statement["Action"] == "s3:*"
    assert len(statement["Resource"]) == 2


def data(recorded: Recorded) -> list[Registered]:
    """What holds data, and what keeps it private, encrypted and whole."""
    kinds = ("LustreFileSystem", "FileSystem", "FileSystemPolicy", "AccessPoint")
    held = [resource for kind in kinds for resource in recorded.of(kind)]
    return [*held, *(resource for resource in recorded if resource.type.startswith("aws:s3/"))]


@pytest.mark.parametrize(("stack", "count"), [(LUSTRE, 7), (NFS, 9)])
def test_data_outlives_the_stack_unless_the_stack_says_otherwise(stack: str, count: int) -> None:
    kept, loosened = data(built(stack)), data(build(loose(site(stack))))

    assert len(kept) == len(loosened) == count
    assert all(resource.protect and resource.retain_on_delete for resource in kept)
    assert not any(resource.protect or resource.retain_on_delete for resource in loosened)


def test_a_bucket_is_emptied_only_where_its_data_is_not_kept() -> None:
    assert built(LUSTRE).one("aws:s3/bucket:Bucket").inputs["forceDestroy"] is False
    assert build(loose(site(LUSTRE))).one("aws:s3/bucket:Bucket").inputs["forceDestroy"] is True


def test_efs_is_encrypted_elastic_and_in_every_zone() -> None:
    recorded = built(NFS)
    files = recorded.one("FileSystem").inputs

    assert files["encrypted"] is True
    assert files["kmsKeyId"].endswith(":fleet-keys-data")
    assert files["throughputMode"] == "elastic"
    assert files["performanceMode"] == "generalPurpose"
    targets = recorded.of("MountTarget")
    assert [t.inputs["subnetId"] for t in targets] == [f"fleet-network-private-{zone}-id" for zone in ZONES]
    assert {tuple(t.inputs["securityGroups"]) for t in targets} == {("fleet-storage-files-id",)}
    assert not recorded.of("LustreFileSystem")


def test_efs_admits_nodes_by_nfs_alone() -> None:
    rule = built(NFS).one("SecurityGroupIngressRule", "storage-files").inputs

    assert (rule["securityGroupId"], rule["referencedSecurityGroupId"]) == ("fleet-storage-files-id", NODES)
    assert (rule["ipProtocol"], rule["fromPort"], rule["toPort"]) == ("tcp", 2049, 2049)
    assert not built(NFS).of("SecurityGroupEgressRule", "storage-files")


def test_everything_of_efs_is_of_the_one_file_system() -> None:
    recorded = built(NFS)
    about = [*recorded.of("AccessPoint"), *recorded.of("MountTarget"), *recorded.of("FileSystemPolicy")]

    assert len(about) == 5
    assert {resource.inputs["fileSystemId"] for resource in about} == {"fleet-storage-files-id"}


def test_efs_is_mounted_with_tls_and_never_as_root() -> None:
    admitted, refused = document(built(NFS).one("FileSystemPolicy"))

    assert (admitted["Effect"], admitted["Principal"]) == ("Allow", {"AWS": "*"})
    assert set(admitted["Action"]) == {"elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"}
    assert admitted["Condition"] == {"Bool": {"elasticfilesystem:AccessedViaMountTarget": "true"}}
    assert refuses_plain_text(refused)
    assert admitted["Resource"] == refused["Resource"]


def test_efs_belongs_to_the_pods_user() -> None:
    entry = built(NFS).one("AccessPoint").inputs

    assert entry["posixUser"] == {"uid": POD_USER, "gid": POD_USER}
    assert entry["rootDirectory"] == {
        "path": "/tritonfleet",
        "creationInfo": {"ownerUid": POD_USER, "ownerGid": POD_USER, "permissions": "0750"},
    }


def test_lustre_is_as_large_and_fast_as_planned_and_where_the_gpus_are() -> None:
    recorded = built(LUSTRE)
    files, planned = recorded.one("LustreFileSystem").inputs, site(LUSTRE).storage

    assert (files["deploymentType"], files["storageType"]) == ("PERSISTENT_2", "SSD")
    assert files["storageCapacity"] == planned.capacity_gib == 9600
    assert files["perUnitStorageThroughput"] == 1000
    assert files["fileSystemTypeVersion"] == "2.15"
    assert files["subnetIds"] == "fleet-network-private-use1-az6-id"
    assert recorded.one("NodeGroup", "h100-spot").inputs["subnetIds"] == [files["subnetIds"]]
    assert files["kmsKeyId"].endswith(":fleet-keys-data")
    assert files["securityGroupIds"] == ["fleet-storage-files-id"]
    assert (files["automaticBackupRetentionDays"], files["skipFinalBackup"]) == (0, True)
    assert not recorded.of("FileSystem")


def test_lustre_and_its_clients_reach_each_other_on_its_ports_and_nobody_else_does() -> None:
    recorded, group = built(LUSTRE), "fleet-storage-files-id"

    def flows(kind: str) -> set[tuple[str, str, int, int]]:
        rules = [rule.inputs for rule in recorded.of(kind, "storage-files")]
        assert {rule["ipProtocol"] for rule in rules} == {"tcp"}
        return {(r["securityGroupId"], r["referencedSecurityGroupId"], r["fromPort"], r["toPort"]) for r in rules}

    ports = ((988, 988), (1018, 1023))
    assert flows("SecurityGroupIngressRule") == {
        (into, source, *pair) for into, source in ((group, NODES), (group, group), (NODES, group)) for pair in ports
    }
    # A security group that Pulumi makes sends nothing until a rule says so.
    assert flows("SecurityGroupEgressRule") == {(group, to, *pair) for to in (NODES, group) for pair in ports}


def test_lustre_waits_for_its_open_ports_and_so_do_pods() -> None:
    """FSx refuses a file system whose security group lets nothing through yet."""
    recorded = built(LUSTRE)
    rules = {
        rule.urn
        for kind in ("SecurityGroupIngressRule", "SecurityGroupEgressRule")
        for rule in recorded.of(kind, "storage-files")
    }

    assert len(rules) == 10
    assert rules <= recorded.one("LustreFileSystem").depends_on
    assert rules <= recorded.one("kubernetes:core/v1:PersistentVolume", "serving-engines").depends_on


def test_lustre_grows_and_nothing_else_of_the_cloud_changes() -> None:
    """A volume or claim of another size would be refused, for nobody resizes static ones."""

    def grown(values: dict[str, Any]) -> None:
        values["storage"]["lustre_capacity_gib"] *= 2

    # Models are told to load for a shorter time; what they mount stays.
    before, after = (
        {r.urn: r.inputs for r in recording(LUSTRE, edit).resources if "tritonfleet:clouds:Aws" in r.urn}
        for edit in (None, grown)
    )
    (changed,) = (urn for urn in before.keys() | after if before.get(urn) != after.get(urn))
    assert "aws:fsx/lustreFileSystem:LustreFileSystem::" in changed
    assert any("PersistentVolumeClaim::" in urn for urn in before)


def recording(stack: str, edit: Callable[[dict[str, Any]], None] | None) -> Recording:
    """What the whole program registers for an example stack, edited."""
    values = copy.deepcopy(read_stack_file(STACKS / f"Pulumi.{stack}.yaml"))
    if edit:
        edit(values)
    return record_program(values, stack=stack)


def test_lustre_is_mounted_with_flock_and_given_to_the_pods_group() -> None:
    spec, claim = volume(built(LUSTRE), "engines")

    assert spec["csi"]["driver"] == "fsx.csi.aws.com"
    assert spec["csi"]["volumeHandle"] == "fleet-storage-files-id"
    assert spec["csi"]["volumeAttributes"] == {
        "dnsname": "fleet-storage-files-dnsName",
        "mountname": "fleet-storage-files-mountName",
    }
    assert spec["mountOptions"] == ["flock"]
    # Both together let the kubelet apply fsGroup; the first mode is the one that the driver is asked for.
    assert spec["accessModes"] == ["ReadWriteMany", "ReadWriteOnce"]
    assert spec["csi"]["fsType"] == "lustre"
    assert spec["capacity"] == claim["resources"]["requests"] == {"storage": "1Ti"}


def test_efs_is_mounted_through_its_access_point() -> None:
    spec, _ = volume(built(NFS), "engines")

    assert spec["csi"]["driver"] == "efs.csi.aws.com"
    assert spec["csi"]["volumeHandle"] == "fleet-storage-files-id::fleet-storage-files-id"
    assert spec["csi"]["volumeAttributes"] == {"encryptInTransit": "true"}
    # The access point owns every file already.
    assert spec["accessModes"] == ["ReadWriteMany"]
    assert "fsType" not in spec["csi"]


@pytest.mark.parametrize(("stack", "options"), [(LUSTRE, ["ro", "flock"]), (NFS, ["ro"])])
def test_serving_pods_mount_the_same_files_read_only(stack: str, options: list[str]) -> None:
    written, read = volume(built(stack), "engines")[0], volume(built(stack), "engines-readonly")[0]

    assert read["mountOptions"] == options
    assert read["csi"]["readOnly"] is True
    # Neither driver knows ReadOnlyMany, and the kubelet must not try to change owners here.
    assert read["accessModes"] == ["ReadWriteMany"]
    for key in ("driver", "volumeHandle", "volumeAttributes"):
        assert read["csi"][key] == written["csi"][key]


@pytest.mark.parametrize("stack", [LUSTRE, NFS])
def test_volumes_are_bound_to_their_claims_by_name_and_survive_them(stack: str) -> None:
    recorded = built(stack)

    for name in ("engines", "engines-readonly"):
        spec, claim = volume(recorded, name)
        assert spec["claimRef"] == {"namespace": "serving", "name": name}
        assert spec["persistentVolumeReclaimPolicy"] == "Retain"
        assert spec["storageClassName"] == claim["storageClassName"] == ""
        assert claim["volumeName"] == f"serving-{name}"
        metadata = [recorded.one(f"kubernetes:core/v1:{kind}", f"serving-{name}").inputs["metadata"] for kind in _KINDS]
        assert metadata[0]["name"] == f"serving-{name}"
        assert (metadata[1]["name"], metadata[1]["namespace"]) == (name, "serving")
        assert claim["accessModes"] == spec["accessModes"][:1]
    for kind in _KINDS:
        for found in recorded.of(f"kubernetes:core/v1:{kind}"):
            assert found.inputs["metadata"]["labels"]["app.kubernetes.io/part-of"] == "tritonfleet"
            assert found.provider == recorded.one("pulumi:providers:kubernetes").urn


def test_claims_wait_for_file_system_driver_and_namespace() -> None:
    waited: list[str] = []

    def use(cloud: Aws) -> None:
        namespace = pulumi.ComponentResource("test:index:Namespace", "namespace")
        waited.append("namespace")
        found = cloud.volumes("serving", (), opts=pulumi.ResourceOptions(depends_on=[namespace, cloud.nodes[0]]))
        assert len(found.resources) == 2

    recorded = build(site(NFS), (), use)
    spec = recorded.one("kubernetes:core/v1:PersistentVolume", "serving-engines")

    assert waited
    assert {target.urn for target in recorded.of("MountTarget")} <= spec.depends_on
    assert recorded.one("SecurityGroupIngressRule", "storage-files").urn in spec.depends_on
    assert recorded.one("Addon", "efs-csi").urn in spec.depends_on
    assert recorded.one("NodeGroup", "system").urn in spec.depends_on
    assert spec.urn in recorded.one("kubernetes:core/v1:PersistentVolumeClaim", "serving-engines").depends_on


def test_weights_in_the_bucket_are_mounted_by_prefix_with_the_pods_own_rights() -> None:
    plan, found = example(NFS), list[Volumes]()
    models = (from_bucket(plan.models[0], "llama/8b/"), plan.models[1])
    recorded = build(site(NFS), models, lambda cloud: found.append(cloud.volumes("serving", models)))

    assert found[0].weights == {"llama-8b": "weights-llama-8b"}
    assert (found[0].engines_rw, found[0].engines_ro) == ("engines", "engines-readonly")
    spec, claim = volume(recorded, "weights-llama-8b")
    assert spec["csi"] == {
        "driver": "s3.csi.aws.com",
        "volumeHandle": "serving-weights-llama-8b",
        "readOnly": True,
        "volumeAttributes": {
            "bucketName": "fleet-storage-models-bucket",
            "authenticationSource": "pod",
            "stsRegion": "us-east-1",
        },
    }
    assert spec["accessModes"] == claim["accessModes"] == ["ReadOnlyMany"]
    owned = {f"uid={POD_USER}", f"gid={POD_USER}", "allow-other"}
    assert {"prefix llama/8b/", "region us-east-1", "read-only"} | owned == set(spec["mountOptions"])
    driver = recorded.one("Addon", "s3-csi")
    assert driver.inputs["addonName"] == "aws-mountpoint-s3-csi-driver"
    assert driver.urn in recorded.one("kubernetes:core/v1:PersistentVolume", "weights").depends_on
    assert not built(NFS).of("Addon", "s3-csi")


@pytest.mark.parametrize(
    ("plan", "driver"),
    [(site(LUSTRE), "aws-fsx-csi-driver"), (with_pod_identity(site(NFS)), "aws-efs-csi-driver")],
    ids=["lustre", "nfs"],
)
def test_csi_drivers_have_no_rights_in_aws(plan: CloudPlan, driver: str) -> None:
    """Volumes are static: a driver that mounts them calls no API of AWS."""
    (add_on,) = [a for a in build(plan).of("Addon") if a.inputs["addonName"] == driver]

    assert not {"serviceAccountRoleArn", "podIdentityAssociations"} & set(add_on.inputs)
