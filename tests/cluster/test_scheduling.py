"""The scheduler of tests decides as a cluster's does: by selectors, taints, resources and claims, as they are now."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.control_plane import ControlPlane, assets, control_plane
from tests.cluster.scheduling import Scheduler

GPU = "nvidia.com/gpu"
TAINT = {"key": GPU, "value": "present", "effect": "NoSchedule"}
TOLERATION = {"key": GPU, "operator": "Equal", "value": "present", "effect": "NoSchedule"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ControlPlane]:
    assets("kube-scheduler")
    with control_plane(tmp_path_factory.mktemp("scheduling")) as running:
        yield running


@pytest.fixture
def scheduler(cluster: ControlPlane, tmp_path: Path) -> Iterator[Scheduler]:
    made = Scheduler(cluster, tmp_path)
    yield made
    made.clear()


def pod(name: str = "pod", *, gpus: int = 0, **spec: Any) -> dict[str, Any]:
    resources = {"limits": {GPU: str(gpus)}} if gpus else {}
    container = {"name": "main", "image": "none", "resources": resources}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container], **spec}}


@pytest.mark.parametrize("pool", ["a", "b", "c"])
def test_a_pod_lands_on_the_node_that_it_selects(scheduler: Scheduler, pool: str) -> None:
    for name in ("a", "b"):
        scheduler.node(f"node-{name}", labels={"pool": name})

    placement = scheduler.placed(pod(nodeSelector={"pool": pool}))

    if pool == "c":
        assert placement.node is None
        assert "2 node(s) didn't match Pod's node affinity/selector" in placement.reason
    else:
        assert (placement.node, placement.reason) == (f"node-{pool}", "")


def test_a_taint_keeps_off_what_does_not_tolerate_it(scheduler: Scheduler) -> None:
    scheduler.node("tainted", taints=[TAINT])

    refused = scheduler.placed(pod())
    assert refused.node is None
    assert "1 node(s) had untolerated taint(s)" in refused.reason
    assert scheduler.placed(pod(tolerations=[TOLERATION])).node == "tainted"

    scheduler.node("tainted")
    assert scheduler.placed(pod()).node == "tainted", "the taint is gone, and so is the one that admission gave"


def test_a_pod_needs_the_devices_that_it_asks_for(scheduler: Scheduler) -> None:
    scheduler.node("gpu")
    assert f"1 Insufficient {GPU}" in scheduler.placed(pod(gpus=4)).reason

    scheduler.node("gpu", allocatable={GPU: "4"})
    assert scheduler.placed(pod(gpus=4)).node == "gpu"
    assert f"1 Insufficient {GPU}" in scheduler.placed(pod("second", gpus=1)).reason, "the first holds them all"
    assert scheduler.placed(pod(gpus=3)).node == "gpu", "it replaces the pod of its name"
    assert scheduler.placed(pod("second", gpus=1)).node == "gpu"


def test_a_pod_that_was_refused_does_not_come_back_for_what_another_needs(scheduler: Scheduler) -> None:
    assert scheduler.placed(pod("first", gpus=1)).node is None
    scheduler.node("gpu", allocatable={GPU: "1"})

    assert scheduler.placed(pod("second", gpus=1)).node == "gpu"


def test_a_waiting_pod_lands_once_a_node_opens(scheduler: Scheduler) -> None:
    waiting = pod(gpus=1)
    with scheduler.running():
        scheduler.create(waiting)
        assert scheduler.decided(waiting).node is None, "there is no node yet"
        scheduler.node("new", taints=[TAINT], allocatable={GPU: "1"})
        scheduler.node("new", allocatable={GPU: "1"})

        assert scheduler.landed(waiting).node == "new"


def test_a_pod_mounts_claims_that_are_bound(scheduler: Scheduler, cluster: ControlPlane) -> None:
    scheduler.node("node")
    volume, claim = volume_and_claim("files")
    mounting = pod(volumes=[{"name": "files", "persistentVolumeClaim": {"claimName": "files"}}])
    assert 'persistentvolumeclaim "files" not found' in scheduler.placed(mounting).reason
    cluster.apply([volume, claim])
    assert "unbound immediate PersistentVolumeClaims" in scheduler.placed(mounting).reason

    scheduler.bind([volume, claim])

    assert scheduler.placed(mounting).node == "node"


def volume_and_claim(name: str) -> list[dict[str, Any]]:
    storage = {"storage": "1Gi"}
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    source = {"driver": "files.example", "volumeHandle": name}
    claimed = {"namespace": "default", "name": name}
    metadata = {"name": name, "namespace": "default"}
    volume = {**common, "capacity": storage, "csi": source, "claimRef": claimed}
    claim = {**common, "resources": {"requests": storage}, "volumeName": name}
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim},
    ]
