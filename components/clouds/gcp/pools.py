"""Node pools: one for the cluster's own pods, and one for every capacity type of a GPU pool."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_gcp import container
from pulumi_gcp.container import NodePoolNetworkConfigAdditionalNodeNetworkConfigArgs as NodeNetwork
from pulumi_gcp.container import NodePoolNodeConfigArgs as NodeConfig

from components.clouds.base import guarded
from planner.fleet import CloudPlan, NodeGroupPlan, PoolPlan

SYSTEM_DISK_GIB = 100
"""Holds Triton's image twice, packed and unpacked: the Job that downloads weights runs in it."""

_LOCAL_SSD_BYTES = 375 * 2**30  # Compute Engine documentation, "About Local SSD disks"

# GKE documentation, "GPU platforms": what Google calls a machine's GPUs; beginnings of machine types.
_ACCELERATORS = {
    "g2-": "nvidia-l4",
    "a2-highgpu-": "nvidia-tesla-a100",
    "a2-megagpu-": "nvidia-tesla-a100",
    "a2-ultragpu-": "nvidia-a100-80gb",
    "a3-highgpu-": "nvidia-h100-80gb",
    "a3-megagpu-": "nvidia-h100-mega-80gb",
    "a3-ultragpu-": "nvidia-h200-141gb",
    "a4-highgpu-": "nvidia-b200",
}
# Compute Engine documentation, "Hyperdisk": machine series that take no Persistent Disk.
_HYPERDISK_ONLY = ("a3-ultragpu-", "a4-", "c4", "n4")
_EFFECTS = {"NoSchedule": "NO_SCHEDULE", "PreferNoSchedule": "PREFER_NO_SCHEDULE", "NoExecute": "NO_EXECUTE"}
_DEFAULT_NOTICE_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class NodesArgs:
    """What all node pools of a cluster share. `fabrics` are networks and subnets of GPUs' interfaces by their kind, in
    the interfaces' order."""

    plan: CloudPlan
    cluster_name: str
    cluster: pulumi.Input[str]
    service_account: pulumi.Input[str]
    disks_key: pulumi.Input[str]
    fabrics: Mapping[str, Sequence[NodeNetwork]]
    depends_on: Sequence[pulumi.Resource]


class SystemNodes(pulumi.ComponentResource):
    """Nodes for controllers: fixed in number, without GPUs, on-demand, over as many zones as there are nodes for."""

    pool: container.NodePool

    def __init__(self, name: str, args: NodesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:GcpSystemNodes", name, None, opts)
        wanted = args.plan.cluster.system_nodes
        zones = sorted(args.plan.network.zones)[:wanted]
        self.pool = container.NodePool(
            name,
            name="system",
            cluster=args.cluster,
            location=args.plan.region,
            node_locations=zones,
            # GKE counts in each zone: where they do not divide evenly, there are more than asked for.
            node_count=math.ceil(wanted / len(zones)),
            management=container.NodePoolManagementArgs(auto_repair=True, auto_upgrade=True),
            upgrade_settings=container.NodePoolUpgradeSettingsArgs(strategy="SURGE", max_surge=1, max_unavailable=0),
            node_config=_node_config(args, args.plan.system_instance_type, SYSTEM_DISK_GIB),
            opts=pulumi.ResourceOptions(parent=self, depends_on=list(args.depends_on), delete_before_replace=True),
        )
        self.register_outputs({})


class GpuPool(pulumi.ComponentResource):
    """The node pools of one pool, by the names that its compute class calls them. GKE's autoscaler grows and shrinks
    them, from and to zero."""

    pools: list[container.NodePool]

    def __init__(self, name: str, pool: PoolPlan, args: NodesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:GcpGpuPool", name, None, opts)
        self._prefix, self._args = name, args
        self.pools = [self._node_pool(pool, group) for group in pool.node_groups]
        self.register_outputs({})

    def _node_pool(self, pool: PoolPlan, group: NodeGroupPlan) -> container.NodePool:
        args, flex_start = self._args, group.capacity == "flex-start"
        compact = compact_placement(pool, group)
        return container.NodePool(
            # The pool's name is in the component's already.
            f"{self._prefix}-{group.capacity}",
            name=group.name,
            cluster=args.cluster,
            location=args.plan.region,
            node_locations=sorted(group.zones),
            # In each zone; what is missing to the least number comes with the first pods.
            initial_node_count=group.min_nodes // len(group.zones),
            autoscaling=container.NodePoolAutoscalingArgs(
                total_min_node_count=group.min_nodes, total_max_node_count=group.max_nodes, location_policy="ANY"
            ),
            # Flex-start nodes cannot be repaired, only queued for again.
            management=container.NodePoolManagementArgs(auto_repair=not flex_start, auto_upgrade=True),
            # There are no GPUs to spare for a surge. Flex-start nodes GKE replaces in its own way.
            upgrade_settings=None
            if flex_start
            else container.NodePoolUpgradeSettingsArgs(strategy="SURGE", max_surge=0, max_unavailable=1),
            placement_policy=container.NodePoolPlacementPolicyArgs(type="COMPACT") if compact else None,
            network_config=container.NodePoolNetworkConfigArgs(
                additional_node_network_configs=list(args.fabrics[pool.fabric.kind])
            )
            if pool.fabric
            else None,
            node_config=_node_config(args, group.instance_types[0], pool.disk_gib, pool, group),
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=list(args.depends_on),
                protect=guarded(args.plan, f"pools.{pool.name}"),
                # Two pools of one name cannot be there at the same time.
                delete_before_replace=True,
                ignore_changes=_ignored(disks=_local_disks(args.plan, pool)),
            ),
        )


def compact_placement(pool: PoolPlan, group: NodeGroupPlan) -> bool:
    """Whether nodes are to lie close together: those whose GPUs talk to each other. A reservation lies where it lies,
    and flex-start places A3 Ultra and A4 alone (Cluster Toolkit, gke-node-pool)."""
    if pool.fabric is None or group.capacity == "reserved":
        return False
    return group.capacity != "flex-start" or pool.fabric.kind == "roce"


def _local_disks(plan: CloudPlan, pool: PoolPlan) -> int:
    return round(pool.local_nvme_gb * 1e9 / _LOCAL_SSD_BYTES) if plan.storage.node_cache else 0


def _ignored(*, disks: int) -> list[str]:
    """What GKE says of a pool without having been told: how many nodes it has, which is the autoscaler's to decide, and
    what it does with disks that a machine always has, which would look like a reason to make the pool anew."""
    counts = ["initialNodeCount", "nodeCount"]
    return counts if disks else [*counts, "nodeConfig.ephemeralStorageLocalSsdConfig"]


def disk_type(machine_type: str) -> str:
    return "hyperdisk-balanced" if machine_type.startswith(_HYPERDISK_ONLY) else "pd-balanced"


def _gpus(pool: PoolPlan, machine_type: str) -> container.NodePoolNodeConfigGuestAcceleratorArgs:
    sharing = container.NodePoolNodeConfigGuestAcceleratorGpuSharingConfigArgs
    driver = container.NodePoolNodeConfigGuestAcceleratorGpuDriverInstallationConfigArgs
    return container.NodePoolNodeConfigGuestAcceleratorArgs(
        type=next(gpu for beginning, gpu in _ACCELERATORS.items() if machine_type.startswith(beginning)),
        count=pool.gpus_per_node,
        gpu_partition_size=pool.mig_name,
        # TensorRT-LLM's image is made for a newer driver than the one that GKE takes by default.
        gpu_driver_installation_config=driver(gpu_driver_version="LATEST"),
        gpu_sharing_config=sharing(gpu_sharing_strategy="TIME_SHARING", max_shared_clients_per_gpu=pool.time_slicing)
        if pool.time_slicing
        else None,
    )


def _node_config(
    args: NodesArgs,
    machine_type: str,
    disk_gib: int,
    pool: PoolPlan | None = None,
    group: NodeGroupPlan | None = None,
) -> NodeConfig:
    """A node's; without `pool` and `group`, a system node's."""
    disks = _local_disks(args.plan, pool) if pool else 0
    taints = [
        container.NodePoolNodeConfigTaintArgs(key=taint.key, value=taint.value, effect=_EFFECTS[taint.effect])
        for taint in (group.taints if group else ())
    ]
    return NodeConfig(
        machine_type=machine_type,
        image_type="COS_CONTAINERD",
        disk_type=disk_type(machine_type),
        disk_size_gb=disk_gib,
        boot_disk_kms_key=args.disks_key,
        service_account=args.service_account,
        # What the account may do is IAM's to say.
        oauth_scopes=["https://www.googleapis.com/auth/cloud-platform"],
        labels=dict(group.labels) if group else None,
        taints=taints or None,
        resource_labels={"tritonfleet-cluster": args.cluster_name},
        metadata={"disable-legacy-endpoints": "true"},
        # Pods ask a server of GKE's for tokens, which gives them their own and never the node's.
        workload_metadata_config=container.NodePoolNodeConfigWorkloadMetadataConfigArgs(mode="GKE_METADATA"),
        shielded_instance_config=container.NodePoolNodeConfigShieldedInstanceConfigArgs(
            enable_secure_boot=True, enable_integrity_monitoring=True
        ),
        gvnic=container.NodePoolNodeConfigGvnicArgs(enabled=True),
        spot=group is not None and group.capacity == "spot",
        flex_start=True if group and group.capacity == "flex-start" else None,
        guest_accelerators=[_gpus(pool, machine_type)] if pool else None,
        ephemeral_storage_local_ssd_config=container.NodePoolNodeConfigEphemeralStorageLocalSsdConfigArgs(
            local_ssd_count=disks
        )
        if disks
        else None,
        reservation_affinity=_reservation(group),
        kubelet_config=_kubelet(args.plan, group),
    )


def _reservation(group: NodeGroupPlan | None) -> container.NodePoolNodeConfigReservationAffinityArgs:
    affinity = container.NodePoolNodeConfigReservationAffinityArgs
    if group is None or group.reservation is None:
        # Otherwise nodes would take what somebody reserved for something else.
        return affinity(consume_reservation_type="NO_RESERVATION")
    return affinity(
        consume_reservation_type="SPECIFIC_RESERVATION",
        key="compute.googleapis.com/reservation-name",
        values=[group.reservation],
    )


def _kubelet(plan: CloudPlan, group: NodeGroupPlan | None) -> container.NodePoolNodeConfigKubeletConfigArgs:
    """On spot nodes, a notice longer than the usual one: GKE takes it for Spot node pools alone."""
    notice = plan.spot_notice
    longer = group is not None and group.capacity == "spot" and notice.seconds > _DEFAULT_NOTICE_SECONDS
    return container.NodePoolNodeConfigKubeletConfigArgs(
        insecure_kubelet_readonly_port_enabled="FALSE",
        shutdown_grace_period_seconds=notice.seconds if longer else None,
        shutdown_grace_period_critical_pods_seconds=notice.seconds - notice.pod_seconds if longer else None,
    )
