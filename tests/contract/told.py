"""What each cloud is told of node pools and of what holds data, in the plan's words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from tests.components.world import Recorded, Registered

_AWS_EFFECTS = {"NO_SCHEDULE": "NoSchedule", "PREFER_NO_SCHEDULE": "PreferNoSchedule", "NO_EXECUTE": "NoExecute"}
SPOT_BY_AKS = "kubernetes.azure.com/scalesetpriority"
"""Label and taint that AKS gives spot nodes by itself."""


@dataclass(frozen=True, kw_only=True)
class NodePool:
    """One node pool; `scaled_as` is what an autoscaler calls it, "" where it calls it by no name of ours."""

    urn: str
    capacity: str
    labels: dict[str, str]
    taints: frozenset[tuple[str, str, str]]
    nodes: tuple[int, int]
    zones: frozenset[str]
    scaled_as: str


@dataclass(frozen=True, kw_only=True)
class Told:
    """The packages of a cloud's SDK, the types of what must not be lost, and how to read its GPU pools."""

    packages: frozenset[str]
    cluster: str
    node_pool: str
    bucket: str
    files: frozenset[str]
    pools: Callable[[Recorded], list[NodePool]]


def _aws(recorded: Recorded) -> list[NodePool]:
    zones = {
        f"{subnet.name}-id": subnet.inputs["availabilityZoneId"] for subnet in recorded.of("aws:ec2/subnet:Subnet")
    }
    return [
        NodePool(
            urn=group.urn,
            capacity={"SPOT": "spot", "ON_DEMAND": "on-demand", "CAPACITY_BLOCK": "reserved"}[
                group.inputs["capacityType"]
            ],
            labels=group.inputs["labels"],
            taints=frozenset(
                (taint["key"], taint["value"], _AWS_EFFECTS[taint["effect"]]) for taint in group.inputs["taints"]
            ),
            nodes=(group.inputs["scalingConfig"]["minSize"], group.inputs["scalingConfig"]["maxSize"]),
            zones=frozenset(zones[subnet] for subnet in group.inputs["subnetIds"]),
            # EKS User Guide, "managed node groups": the Auto Scaling group's name is made of the node group's.
            scaled_as=f"eks-{group.name}-0a1b2c3-12345678-9abc-def0-1234-56789abcdef0",
        )
        for group in recorded.of("aws:eks/nodeGroup:NodeGroup")
        if "AwsGpuPool" in group.parent
    ]


def _gcp(recorded: Recorded) -> list[NodePool]:
    return [_gke(pool) for pool in recorded.of("gcp:container/nodePool:NodePool") if "GpuPool" in pool.parent]


def _gke(pool: Registered) -> NodePool:
    config, scaling = pool.inputs["nodeConfig"], pool.inputs["autoscaling"]
    reserved = config.get("reservationAffinity", {}).get("consumeReservationType") == "SPECIFIC_RESERVATION"
    ways = {"spot": config.get("spot"), "flex-start": config.get("flexStart"), "reserved": reserved}
    return NodePool(
        urn=pool.urn,
        capacity=next((name for name, asked in ways.items() if asked), "on-demand"),
        labels=config["labels"],
        taints=frozenset((t["key"], t["value"], _AWS_EFFECTS[t["effect"]]) for t in config.get("taints", [])),
        nodes=(
            scaling.get("totalMinNodeCount", scaling.get("minNodeCount")),
            scaling.get("totalMaxNodeCount", scaling.get("maxNodeCount")),
        ),
        zones=frozenset(pool.inputs["nodeLocations"]),
        scaled_as="",
    )


def _azure(recorded: Recorded) -> list[NodePool]:
    return [
        _aks(pool) for pool in recorded.of("azure-native:containerservice:AgentPool") if pool.inputs["mode"] == "User"
    ]


def _aks(pool: Registered) -> NodePool:
    inputs, region = pool.inputs, "eastus"
    spot = inputs.get("scaleSetPriority") == "Spot"
    taints = {_parsed(taint) for taint in inputs.get("nodeTaints", [])}
    labels = dict(inputs.get("nodeLabels", {}))
    if spot:
        taints.add((SPOT_BY_AKS, "spot", "NoSchedule"))
    capacity = "reserved" if inputs.get("capacityReservationGroupID") else "spot" if spot else "on-demand"
    zones: list[str] = inputs.get("availabilityZones") or []
    return NodePool(
        urn=pool.urn,
        capacity=capacity,
        labels=labels,
        taints=frozenset(taints),
        nodes=(inputs["minCount"], inputs["maxCount"]),
        zones=frozenset(f"{region}-{zone}" for zone in zones),
        # AKS documentation, "Use labels in an AKS cluster": nodes are aks-<pool>-<digits>-vmss<number>.
        scaled_as=f"aks-{inputs['agentPoolName']}-12345678-vmss",
    )


def _parsed(taint: str) -> tuple[str, str, str]:
    pair, _, effect = taint.rpartition(":")
    key, _, value = pair.partition("=")
    return key, value, effect


def _fake(recorded: Recorded) -> list[NodePool]:
    return [
        NodePool(
            urn=pool.urn,
            capacity=pool.inputs["capacity"],
            labels=pool.inputs["labels"],
            taints=frozenset((taint["key"], taint["value"], taint["effect"]) for taint in pool.inputs["taints"]),
            nodes=(pool.inputs["size"]["smallest"], pool.inputs["size"]["largest"]),
            zones=frozenset(pool.inputs["zones"]),
            scaled_as=pool.name,
        )
        for pool in recorded.of("fake:index:NodePool")
    ]


TOLD: Mapping[str, Told] = {
    "aws": Told(
        packages=frozenset({"aws", "eks"}),
        cluster="eks:index:Cluster",
        node_pool="aws:eks/nodeGroup:NodeGroup",
        bucket="aws:s3/bucket:Bucket",
        files=frozenset({"aws:efs/fileSystem:FileSystem", "aws:fsx/lustreFileSystem:LustreFileSystem"}),
        pools=_aws,
    ),
    "gcp": Told(
        packages=frozenset({"gcp"}),
        cluster="gcp:container/cluster:Cluster",
        node_pool="gcp:container/nodePool:NodePool",
        bucket="gcp:storage/bucket:Bucket",
        files=frozenset({"gcp:filestore/instance:Instance", "gcp:lustre/instance:Instance"}),
        pools=_gcp,
    ),
    "azure": Told(
        packages=frozenset({"azure-native"}),
        cluster="azure-native:containerservice:ManagedCluster",
        node_pool="azure-native:containerservice:AgentPool",
        bucket="azure-native:storage:BlobContainer",
        files=frozenset({"azure-native:storage:FileShare", "azure-native:storagecache:AmlFilesystem"}),
        pools=_azure,
    ),
    # All that a stack makes on a cluster that is there are objects in it.
    "existing": Told(packages=frozenset(), cluster="", node_pool="", bucket="", files=frozenset(), pools=lambda _: []),
    "fake": Told(
        packages=frozenset({"fake"}),
        cluster="fake:index:Cluster",
        node_pool="fake:index:NodePool",
        bucket="fake:index:Bucket",
        files=frozenset({"fake:index:Files"}),
        pools=_fake,
    ),
}


def texts(value: object) -> list[str]:
    """Every text in a value."""
    if isinstance(value, dict):
        return texts([*cast(dict[str, object], value).values()])
    if isinstance(value, list):
        return [text for item in cast(list[object], value) for text in texts(item)]
    return [value] if isinstance(value, str) else []
