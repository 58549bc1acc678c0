"""Claims: named as on every cloud, mounted as their drivers want it, and never for writing where pods only read."""

from typing import Any

import pytest

from components.clouds.base import Volumes, Way
from planner.plan import ModelPlan
from tests.components.gcp.parts import LUSTRE, NFS, build, claimed, loose
from tests.components.gcp.stacks import example, from_bucket, site
from tests.components.world import Recorded

_KINDS = ("PersistentVolume", "PersistentVolumeClaim")


def volume(recorded: Recorded, name: str) -> tuple[Any, Any]:
    """Specs of a persistent volume and of the claim that it is for."""
    return tuple(recorded.one(f"kubernetes:core/v1:{kind}", f"serving-{name}").inputs["spec"] for kind in _KINDS)


def with_bucket(stack: str) -> tuple[Recorded, Volumes]:
    """A stack whose first model is in the bucket, and the others not."""
    first, *others = example(stack).models
    found: list[Volumes] = []
    models = (from_bucket(first, "llama/8b/"), *others)
    recorded = build(site(stack), lambda parts: found.append(parts.claims(models)))
    return recorded, found[0]


@pytest.mark.parametrize("stack", [LUSTRE, NFS])
def test_claims_have_the_names_that_pods_use_on_every_cloud(stack: str) -> None:
    recorded, volumes = with_bucket(stack)
    name = example(stack).models[0].name

    assert (volumes.engines_rw, volumes.engines_ro) == ("engines", "engines-readonly")
    assert volumes.weights == {name: f"weights-{name}"}
    claims = recorded.of("kubernetes:core/v1:PersistentVolumeClaim")
    names = {claim.inputs["metadata"]["name"] for claim in claims}
    assert names == {"engines", "engines-readonly", f"weights-{name}"}
    assert {claim.inputs["metadata"]["namespace"] for claim in claims} == {"serving"}
    assert len(volumes.resources) == 3


def test_lustre_is_mounted_from_its_own_mount_point() -> None:
    spec, claim = volume(claimed(LUSTRE), "engines")

    assert spec["csi"] == {
        "driver": "lustre.csi.storage.gke.io",
        "volumeHandle": "tritonfleet-example/us-central1-b/fleet-storage-models-name-1000",
        "volumeAttributes": {"mountpoint": "fleet-storage-files-mountPoint"},
        "readOnly": False,
    }
    assert spec["mountOptions"] == ["flock"]
    assert spec["accessModes"] == claim["accessModes"] == ["ReadWriteMany"]
    assert spec["capacity"] == claim["resources"]["requests"] == {"storage": "1Ti"}


def test_filestore_is_mounted_by_address_and_share() -> None:
    spec, claim = volume(claimed(NFS), "engines")

    assert spec["csi"] == {
        "driver": "filestore.csi.storage.gke.io",
        "volumeHandle": f"modeInstance/{site(NFS).storage.zone}/fleet-storage-files-name/tritonfleet",
        "volumeAttributes": {"ip": "fleet-storage-files-ipAddresses", "volume": "tritonfleet"},
        "readOnly": False,
    }
    assert spec["mountOptions"] == ["nconnect=2"]
    assert spec["accessModes"] == claim["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("stack", [LUSTRE, NFS])
def test_serving_pods_share_the_mount_of_builds_and_ask_for_less(stack: str) -> None:
    """One handle is one mount of the node: what one volume's options said would be so for the other."""
    (written, _), (read, claim) = volume(claimed(stack), "engines"), volume(claimed(stack), "engines-readonly")

    assert read["accessModes"] == claim["accessModes"] == ["ReadOnlyMany"]
    assert read["csi"] == written["csi"] | {"readOnly": True}
    assert read["mountOptions"] == written["mountOptions"]
    assert "ro" not in read["mountOptions"]


@pytest.mark.parametrize("stack", [LUSTRE, NFS])
def test_volumes_are_bound_to_their_claims_by_name_and_survive_them(stack: str) -> None:
    recorded, volumes = with_bucket(stack)

    for name in (volumes.engines_rw, volumes.engines_ro, *volumes.weights.values()):
        spec, claim = volume(recorded, name)
        assert spec["claimRef"] == {"namespace": "serving", "name": name}
        assert spec["persistentVolumeReclaimPolicy"] == "Retain"
        assert spec["storageClassName"] == claim["storageClassName"] == ""
        assert claim["volumeName"] == f"serving-{name}"
        assert claim["accessModes"] == spec["accessModes"]
        pv = recorded.one("kubernetes:core/v1:PersistentVolume", f"serving-{name}")
        assert pv.inputs["metadata"]["name"] == f"serving-{name}"
        assert pv.urn in recorded.one("kubernetes:core/v1:PersistentVolumeClaim", f"serving-{name}").depends_on
    for kind in _KINDS:
        for found in recorded.of(f"kubernetes:core/v1:{kind}"):
            assert found.inputs["metadata"]["labels"]["app.kubernetes.io/part-of"] == "tritonfleet"
            assert found.provider == recorded.one("pulumi:providers:kubernetes").urn


@pytest.mark.parametrize("stack", [LUSTRE, NFS])
def test_volumes_wait_for_file_system_and_cluster_and_are_guarded_with_the_data(stack: str) -> None:
    kept = claimed(stack)
    loosened = build(loose(site(stack)), lambda parts: parts.claims(example(stack).models))
    (files,) = [r for r in kept if r.type in ("gcp:filestore/instance:Instance", "gcp:lustre/instance:Instance")]

    for recorded, protected in ((kept, True), (loosened, False)):
        held = [found for kind in _KINDS for found in recorded.of(f"kubernetes:core/v1:{kind}", "serving-engines")]
        assert len(held) == 4
        assert {found.protect for found in held} == {protected}
    engines = kept.one("kubernetes:core/v1:PersistentVolume", "serving-engines")
    assert {files.urn, kept.one("gcp:container/cluster:Cluster").urn} <= engines.depends_on


def test_weights_in_the_bucket_are_mounted_by_prefix_and_for_reading() -> None:
    recorded, _ = with_bucket(NFS)
    spec, claim = volume(recorded, "weights-llama-8b")

    assert spec["csi"] == {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeHandle": "fleet-storage-models-name:serving-weights-llama-8b",
        "readOnly": True,
    }
    assert spec["mountOptions"] == ["ro", "implicit-dirs", "only-dir=llama/8b"]
    assert spec["accessModes"] == claim["accessModes"] == ["ReadOnlyMany"]
    assert not recorded.one("kubernetes:core/v1:PersistentVolume", "weights-llama-8b").protect


def test_models_that_share_a_prefix_have_volumes_of_their_own() -> None:
    """A pod that named two volumes of one handle would get the first alone."""
    models: tuple[ModelPlan, ...] = tuple(from_bucket(model, "shared") for model in example(NFS).models)
    recorded = build(site(NFS), lambda parts: parts.claims(models))
    handles = [
        found.inputs["spec"]["csi"]["volumeHandle"]
        for found in recorded.of("kubernetes:core/v1:PersistentVolume", "weights")
    ]

    assert len(set(handles)) == len(models) == 3
    assert {handle.partition(":")[0] for handle in handles} == {"fleet-storage-models-name"}


def test_pods_that_mount_the_bucket_are_given_the_sidecar_and_its_ways_out_and_no_more() -> None:
    _, volumes = with_bucket(NFS)

    assert volumes.weights_annotations["gke-gcsfuse/volumes"] == "true"
    # "0" is no limit: GKE's own ones would be the speed at which weights are loaded.
    assert {volumes.weights_annotations[f"gke-gcsfuse/{what}-limit"] for what in ("cpu", "memory")} == {"0"}
    assert set(volumes.weights_egress) == {
        Way(cidr="169.254.169.254/32", port=80),
        Way(cidr="169.254.169.254/32", port=8080),
        Way(cidr="199.36.153.8/30", port=443),
    }


@pytest.mark.parametrize("stack", [LUSTRE, NFS])
def test_models_from_elsewhere_have_no_volume_in_the_bucket(stack: str) -> None:
    assert len(claimed(stack).of("kubernetes:core/v1:PersistentVolume")) == 2
    assert not claimed(stack).of("kubernetes:core/v1:PersistentVolumeClaim", "weights")
