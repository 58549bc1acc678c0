"""Pods of a stack's models as they come to be in a cluster, and nodes of its pools in every state of their life."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planner.fleet import NodeGroupPlan, PoolPlan
from planner.pool_labels import ZONE_LABEL
from tests.cluster.control_plane import ControlPlane
from tests.cluster.scheduling import Scheduler
from tests.components.world import Recorded, Registered
from tests.contract.programs import cloud_of, plan_of, site, whole
from tests.contract.told import TOLD

NAMESPACE = "tritonfleet"
LWS = "leaderworkerset.sigs.k8s.io"
AWS_TAG = "k8s.io/cluster-autoscaler/node-template/"
AKS_TAG = "k8s.io_cluster-autoscaler_node-template_resources_"
PARTITION_LABEL = "cloud.google.com/gke-gpu-partition-size"


@dataclass(frozen=True, kw_only=True)
class Node:
    """What a scheduler knows of a node."""

    labels: dict[str, str]
    taints: Sequence[Mapping[str, str]]
    allocatable: dict[str, str]

    def put(self, scheduler: Scheduler, name: str, *, zone: str | None = None) -> None:
        """Makes it join, or be as it is now; in its own zone or in another."""
        labels = self.labels | ({ZONE_LABEL: zone} if zone else {})
        scheduler.node(name, labels=labels, taints=self.taints, allocatable=self.allocatable)


def pool_of(case: str) -> PoolPlan:
    """The only pool of a case."""
    (pool,) = site(plan_of(case)).pools
    return pool


def machine(pool: PoolPlan) -> dict[str, str]:
    """What a node of the pool has besides GPUs; the kubelet and system pods keep a part."""
    return {"cpu": str(pool.vcpus - 1), "memory": f"{int(pool.memory_gib * 0.95)}Gi"}


def born(case: str, group: NodeGroupPlan) -> Node:
    """A node of the group as it joins: labels and taints, and no GPU yet."""
    pool = pool_of(case)
    labels = group.labels | {ZONE_LABEL: group.zones[0]}
    if cloud_of(case) == "gcp" and pool.mig_name:
        labels[PARTITION_LABEL] = pool.mig_name  # by GKE, from the node pool's accelerator configuration
    taints = [vars(taint) for taint in (*group.taints, *group.startup_taints)]
    return Node(labels=labels, taints=taints, allocatable=machine(pool))


def template(case: str, group: NodeGroupPlan) -> Node:
    """A node of the group that does not exist, as its autoscaler makes one up from what the cloud was told."""
    recorded, pool = whole(case), pool_of(case)
    (told,) = (one for one in TOLD[cloud_of(case)].pools(recorded) if one.labels.items() >= group.labels.items())
    labels, taints = dict(told.labels), [_taint(*taint) for taint in sorted(told.taints)]
    resource = recorded.resources[told.urn]
    extended = {"aws": _aws, "gcp": _gcp, "azure": _azure}[cloud_of(case)](recorded, resource, labels)
    return Node(labels=labels | {ZONE_LABEL: group.zones[0]}, taints=taints, allocatable=machine(pool) | extended)


def _taint(key: str, value: str, effect: str) -> dict[str, str]:
    return {"key": key, "value": value, "effect": effect}


def _aws(recorded: Recorded, group: Registered, labels: dict[str, str]) -> dict[str, str]:
    """Cluster Autoscaler, cloudprovider/aws: tags of the Auto Scaling group."""
    found = [one.inputs["tag"] for one in recorded.of("aws:autoscaling/tag:Tag") if group.urn in one.depends_on]
    tags = {tag["key"].removeprefix(AWS_TAG): tag["value"] for tag in found}
    labels.update({key.removeprefix("label/"): value for key, value in tags.items() if key.startswith("label/")})
    return {key.removeprefix("resources/"): value for key, value in tags.items() if key.startswith("resources/")}


def _gcp(recorded: Recorded, pool: Registered, labels: dict[str, str]) -> dict[str, str]:
    """GKE's autoscaler knows a node pool's machines and their accelerators, and labels nodes by the partition."""
    del recorded
    (accelerator,) = pool.inputs["nodeConfig"]["guestAccelerators"]
    partition, count = accelerator.get("gpuPartitionSize"), int(accelerator["count"])
    if partition:
        labels[PARTITION_LABEL] = partition
        # NVIDIA's MIG user guide: of an 80 GB GPU, three instances of two sevenths and a quarter of the memory.
        count *= {"2g.20gb": 3}[partition]
    return {"nvidia.com/gpu": str(count)}


def _azure(recorded: Recorded, pool: Registered, labels: dict[str, str]) -> dict[str, str]:
    """Cluster Autoscaler, cloudprovider/azure: tags of the scale set, with _ for /."""
    del recorded, labels
    tags = {key: value for key, value in pool.inputs["tags"].items() if key.startswith(AKS_TAG)}
    names = {key.removeprefix(AKS_TAG): value for key, value in tags.items()}
    # The first _ ends a name's domain.
    return {name.replace("_", "/", 1): value for name, value in names.items()}


def members(case: str, model: str, group: int = 0) -> list[dict[str, Any]]:
    """The pods of one of a model's groups, leader first, as LeaderWorkerSet v0.10 makes them."""
    recorded = whole(case)
    spec = copy.deepcopy(recorded.one("LeaderWorkerSet", f"serving-{model}-set").inputs)
    name, template_ = spec["metadata"]["name"], spec["spec"]["leaderWorkerTemplate"]
    size = template_["size"]
    templates = [template_["leaderTemplate"], *[template_["workerTemplate"]] * (size - 1)]
    return [_member(name, group, index, copy.deepcopy(one)) for index, one in enumerate(templates)]


def _member(name: str, group: int, index: int, template_: dict[str, Any]) -> dict[str, Any]:
    labels = {f"{LWS}/name": name, f"{LWS}/group-index": str(group), f"{LWS}/worker-index": str(index)}
    metadata = copy.deepcopy(template_.get("metadata", {}))
    metadata["labels"] = metadata.get("labels", {}) | labels
    metadata |= {"name": f"{name}-{group}" + (f"-{index}" if index else ""), "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template_["spec"]}


def prepare(cluster: ControlPlane, scheduler: Scheduler, case: str) -> None:
    """The namespace, and the claims that pods mount, bound."""
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}])
    recorded = whole(case)
    kinds = ("PersistentVolume", "PersistentVolumeClaim")
    scheduler.bind([one.inputs for kind in kinds for one in recorded.of(kind)])


def forget(cluster: ControlPlane, scheduler: Scheduler, case: str) -> None:
    """Removes what `prepare` made of a case, but the namespace, and every node and pod."""
    scheduler.clear()
    for one in (one for kind in ("PersistentVolumeClaim", "PersistentVolume") for one in whole(case).of(kind)):
        where = ("--namespace", NAMESPACE) if one.type.endswith("Claim") else ()
        named = (one.type.rpartition(":")[2].lower(), one.inputs["metadata"]["name"])
        cluster.kubectl("patch", *named, *where, "--type=merge", "--patch", '{"metadata": {"finalizers": null}}')
        cluster.kubectl("delete", *named, *where, "--ignore-not-found", "--wait=false")
