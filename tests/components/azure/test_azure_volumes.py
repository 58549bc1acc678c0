"""Claims: named as on every cloud, mounted as their drivers want it, and never writable where they are to be read."""

from collections.abc import Sequence
from typing import Any

import pytest

from components.clouds.azure.lustre_driver import LustreDriver
from components.clouds.base import POD_USER, Volumes
from planner.fleet import StoragePlan
from planner.versions import AZURE_LUSTRE
from tests.components.azure.storage_world import LUSTRE, NFS, Parts, build, models
from tests.components.world import Recorded, run

BOTH = pytest.mark.parametrize("plan", [NFS, LUSTRE], ids=["nfs", "lustre"])


def volume(recorded: Recorded, name: str) -> tuple[Any, Any]:
    """Specs of a persistent volume and of the claim that it is for."""
    kinds = ("PersistentVolume", "PersistentVolumeClaim")
    return tuple(recorded.one(f"kubernetes:core/v1:{kind}", f"serving-{name}").inputs["spec"] for kind in kinds)


def mounted(plan: StoragePlan, *prefixes: str | None) -> tuple[Recorded, Volumes]:
    found: list[Volumes] = []

    def keep(parts: Parts) -> None:
        found.append(parts.volumes)

    return build(plan, models(*prefixes), keep), found[0]


@BOTH
def test_claims_are_called_as_on_every_cloud(plan: StoragePlan) -> None:
    _, volumes = mounted(plan, "llama/8b", None)

    assert (volumes.engines_rw, volumes.engines_ro) == ("engines", "engines-readonly")
    assert volumes.weights == {"m0": "weights-m0"}
    assert len(volumes.resources) == 3
    # The node mounts for the pod: the pod itself needs nothing, and goes nowhere.
    assert not volumes.weights_annotations
    assert not volumes.weights_egress


@BOTH
def test_volumes_are_bound_to_their_claims_by_name_and_survive_them(plan: StoragePlan) -> None:
    recorded, _ = mounted(plan, "llama/8b")

    for name in ("engines", "engines-readonly", "weights-m0"):
        spec, claim = volume(recorded, name)
        assert spec["claimRef"] == {"namespace": "serving", "name": name}
        assert spec["persistentVolumeReclaimPolicy"] == "Retain"
        assert spec["storageClassName"] == claim["storageClassName"] == ""
        assert claim["volumeName"] == f"serving-{name}"
        assert claim["accessModes"] == spec["accessModes"]
        assert claim["resources"]["requests"] == spec["capacity"]
        metadata = recorded.one("kubernetes:core/v1:PersistentVolumeClaim", f"serving-{name}").inputs["metadata"]
        assert (metadata["name"], metadata["namespace"]) == (name, "serving")


@BOTH
def test_serving_pods_mount_the_same_files_read_only(plan: StoragePlan) -> None:
    recorded, _ = mounted(plan)
    written, read = volume(recorded, "engines")[0], volume(recorded, "engines-readonly")[0]

    assert written["accessModes"] == ["ReadWriteMany"]
    assert "ro" not in written["mountOptions"]
    assert read["accessModes"] == ["ReadOnlyMany"]
    assert read["csi"]["readOnly"] is True
    assert read["mountOptions"] == ["ro", *written["mountOptions"]]
    assert read["csi"]["driver"] == written["csi"]["driver"]


@BOTH
def test_no_two_volumes_share_a_handle(plan: StoragePlan) -> None:
    """A node stages a handle once: the reader of a shared one would get the writer's mount."""
    recorded, _ = mounted(plan, "llama/8b", "llama/8b", "llama/70b")
    handles = [found.inputs["spec"]["csi"]["volumeHandle"] for found in recorded.of("PersistentVolume")]

    assert len(handles) == len(set(handles)) == 5
    # Drivers take handles with # apart, and prefer what they find there.
    assert not any("#" in handle or "/" in handle for handle in handles)


def test_azure_files_are_mounted_with_tls_and_given_to_the_pods_group() -> None:
    recorded, _ = mounted(NFS)
    spec, read = volume(recorded, "engines")[0], volume(recorded, "engines-readonly")[0]
    share = {"storageAccount": "fleetfiles-name", "shareName": "fleet-storage-files-name"}

    assert spec["csi"]["driver"] == "file.csi.azure.com"
    assert spec["csi"]["volumeAttributes"] == share | {
        "protocol": "nfs",
        "encryptInTransit": "true",
        "mountPermissions": "0770",
    }
    # The driver says version and security itself, and refuses to be told.
    assert spec["mountOptions"] == ["nconnect=4", "noresvport"]
    # Changing a mode or an owner would fail there.
    assert read["csi"]["volumeAttributes"] == share | {
        "protocol": "nfs",
        "encryptInTransit": "true",
        "mountPermissions": "0",
        "fsGroupChangePolicy": "None",
    }


def test_lustre_is_mounted_with_flock_by_the_address_of_its_management_server() -> None:
    recorded, _ = mounted(LUSTRE)
    spec, read = volume(recorded, "engines")[0], volume(recorded, "engines-readonly")[0]

    assert spec["csi"]["driver"] == "azurelustre.csi.azure.com"
    assert spec["csi"]["volumeAttributes"] == {"mgs-ip-address": "fleet-storage-files-mgsAddress"}
    assert spec["csi"]["volumeAttributes"] == read["csi"]["volumeAttributes"]
    assert spec["mountOptions"] == ["flock", "noatime"]


def test_weights_in_the_bucket_are_mounted_by_prefix_with_the_pods_own_rights() -> None:
    recorded, _ = mounted(NFS, "llama/8b/", None)
    spec, _ = volume(recorded, "weights-m0")
    (reader,) = recorded.of("UserAssignedIdentity")

    assert spec["csi"] == {
        "driver": "blob.csi.azure.com",
        "volumeHandle": "fleetmodels-name-weights-m0",
        "readOnly": True,
        "volumeAttributes": {
            "storageAccount": "fleetmodels-name",
            "containerName": "fleet-storage-models-name",
            "protocol": "fuse2",
            "clientID": f"{reader.name}-clientId",
            "mountWithWorkloadIdentityToken": "true",
        },
    }
    # The driver mounts read-only by this alone.
    assert spec["accessModes"] == ["ReadOnlyMany"]
    assert {"-o allow_other", f"-o uid={POD_USER}", f"-o gid={POD_USER}"} <= set(spec["mountOptions"])
    # The driver's default would show an empty folder to whoever looks at once.
    assert "--cancel-list-on-mount-seconds=0" in spec["mountOptions"]


def test_a_mount_asks_for_nothing_outside_its_prefix() -> None:
    """blobfuse2 lists its subdirectory, to the letter, when it mounts; the identity may list what begins so."""
    recorded, _ = mounted(NFS, "llama/8b")
    (option,) = [o for o in volume(recorded, "weights-m0")[0]["mountOptions"] if o.startswith("--subdirectory=")]

    assert option == "--subdirectory=llama/8b/"
    assert f"StringStartsWith '{option.partition('=')[2]}'" in recorded.one("RoleAssignment").inputs["condition"]


def test_weights_stream_through_bounded_memory_and_not_over_the_nodes_disk() -> None:
    recorded, _ = mounted(NFS, "llama/8b")
    options = volume(recorded, "weights-m0")[0]["mountOptions"]
    numbers = {
        key: int(value) for key, _, value in (o.partition("=") for o in options) if key.startswith("--block-") and value
    }

    assert "--block-cache" in options
    # blobfuse2 refuses a pool that is smaller than what one reader is ahead by, and fewer than 11 blocks of 16 MiB.
    assert 11 <= numbers["--block-cache-prefetch"] <= numbers["--block-cache-pool-size"] // 16


@BOTH
def test_without_bucket_sources_there_is_nobody_who_reads_the_bucket(plan: StoragePlan) -> None:
    recorded, volumes = mounted(plan, None, None)

    assert volumes.weights == {}
    assert not recorded.of("UserAssignedIdentity")
    assert not recorded.of("RoleAssignment")
    assert len(recorded.of("PersistentVolume")) == 2


@BOTH
def test_claims_wait_for_what_they_mount_and_for_the_namespace(plan: StoragePlan) -> None:
    recorded, _ = mounted(plan, "llama/8b")
    namespace = recorded.one("test:index:Namespace").urn

    for name, awaited in (
        ("engines", _files(plan)),
        ("engines-readonly", _files(plan)),
        ("weights-m0", (("BlobContainer", "models"), ("PrivateDnsZoneGroup", "models"))),
    ):
        found = recorded.one("PersistentVolume", f"serving-{name}")
        assert {namespace, *(recorded.one(*each).urn for each in awaited)} <= found.depends_on
        assert found.urn in recorded.one("PersistentVolumeClaim", f"serving-{name}").depends_on


def _files(plan: StoragePlan) -> Sequence[tuple[str, str]]:
    if plan.kind == "lustre":
        return [("AmlFilesystem", "files")]
    return [("FileShare", "files"), ("PrivateDnsZoneGroup", "files"), ("VirtualNetworkLink", "files")]


@BOTH
def test_only_the_shared_files_are_protected(plan: StoragePlan) -> None:
    recorded, _ = mounted(plan, "llama/8b")

    for found in [*recorded.of("PersistentVolume"), *recorded.of("PersistentVolumeClaim")]:
        assert found.protect is not found.name.endswith("weights-m0")
    assert not any(each.protect for each in build(plan, protect=False).of("PersistentVolume"))


def driver() -> Recorded:
    return run(lambda: LustreDriver("fleet-lustre"))


def test_the_lustre_driver_hands_volumes_to_the_pods_group() -> None:
    found = driver().one("CSIDriver").inputs

    assert found["metadata"]["name"] == "azurelustre.csi.azure.com"
    assert found["spec"] == {"fsGroupPolicy": "File", "attachRequired": False, "podInfoOnMount": True}


def test_the_lustre_driver_may_do_nothing_in_the_cluster() -> None:
    recorded = driver()

    assert {each.type.rpartition(":")[2] for each in recorded if each.type.startswith("kubernetes:")} == {
        "CSIDriver",
        "DaemonSet",
    }
    for daemons in recorded.of("DaemonSet"):
        assert daemons.inputs["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_nodes_get_the_lustre_client_of_their_ubuntu() -> None:
    seen: dict[str, tuple[str, str, str]] = {}
    for daemons in driver().of("DaemonSet"):
        pod = daemons.inputs["spec"]["template"]["spec"]
        plugin = pod["containers"][-1]
        values = {each["name"]: each.get("value", "") for each in plugin["env"]}
        sku = pod["nodeSelector"]["kubernetes.azure.com/os-sku-effective"]
        seen[sku] = (plugin["image"], values["LUSTRE_VERSION"], values["CLIENT_SHA_SUFFIX"])
        assert pod["tolerations"] == [{"operator": "Exists"}]
        # Volumes are of pools that may have no node yet.
        assert daemons.inputs["metadata"]["annotations"] == {"pulumi.com/skipAwait": "true"}

    assert seen == {
        client.os_sku: (f"{AZURE_LUSTRE.image}-{client.ubuntu}", client.lustre, client.build)
        for client in AZURE_LUSTRE.clients
    }
    assert set(seen) == {"Ubuntu2204", "Ubuntu2404"}
