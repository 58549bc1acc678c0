"""GPU pools: an agent pool for every capacity type of a pool, scaled from zero."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_azure_native import compute, containerservice

from components.clouds.azure.cluster import OS_SKU, zone_numbers
from components.clouds.base import guarded
from planner.cloud_config import CapacityType
from planner.fleet import CloudPlan, NodeGroupPlan, PoolPlan

TEMPLATE_TAG = "k8s.io_cluster-autoscaler_node-template_resources_"
"""Tags from which the autoscaler knows a node that does not exist yet; they have _ for / (its Azure provider's
README)."""

_SUFFIX: Mapping[CapacityType, str] = {"spot": "sp", "on-demand": "od", "reserved": "rs"}

_IMMUTABLE = (
    "availabilityZones",
    "capacityReservationGroupID",
    "enableEncryptionAtHost",
    "gpuInstanceProfile",
    "gpuProfile",
    "osDiskSizeGB",
    "osDiskType",
    "proximityPlacementGroupID",
    "scaleSetEvictionPolicy",
    "scaleSetPriority",
    "spotMaxPrice",
    "vmSize",
    "vnetSubnetID",
)
"""What AKS refuses to change of a pool that is there: another value is another pool, which `protect` refuses in turn.
Taints are not among these."""


@dataclass(frozen=True, kw_only=True)
class PoolArgs:
    """What all pools of a cluster share; `cluster_name` is an output, so that pools wait for the cluster."""

    plan: CloudPlan
    cluster_name: pulumi.Input[str]
    resource_group: pulumi.Input[str]
    subnet_id: pulumi.Input[str]
    depends_on: Sequence[pulumi.Resource]


class GpuPool(pulumi.ComponentResource):
    """The agent pools of one pool. The autoscaler grows and shrinks them, from and to zero."""

    groups: list[containerservice.AgentPool]

    def __init__(self, name: str, pool: PoolPlan, args: PoolArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AzureGpuPool", name, None, opts)
        self._prefix, self._pool, self._args = name, pool, args
        self.groups = [self._group(group) for group in pool.node_groups]
        self.register_outputs({})

    def _group(self, group: NodeGroupPlan) -> containerservice.AgentPool:
        pool, args, spot = self._pool, self._args, group.capacity == "spot"
        near = self._proximity(group)
        return containerservice.AgentPool(
            # The pool's name is in the component's already.
            f"{self._prefix}-{group.capacity}",
            agent_pool_name=agent_pool_name(pool.name, group.capacity),
            resource_name_=args.cluster_name,
            resource_group_name=args.resource_group,
            mode="User",
            type="VirtualMachineScaleSets",
            orchestrator_version=args.plan.cluster.kubernetes_version,
            vm_size=group.instance_types[0],
            availability_zones=zone_numbers(group.zones),
            vnet_subnet_id=args.subnet_id,
            count=group.min_nodes,
            enable_auto_scaling=True,
            min_count=group.min_nodes,
            max_count=group.max_nodes,
            scale_down_mode="Delete",
            scale_set_priority="Spot" if spot else "Regular",
            # A deallocated node would still count to the quota, and never serve again.
            scale_set_eviction_policy="Delete" if spot else None,
            # -1 is the on-demand price; Azure takes five decimals.
            spot_max_price=(round(pool.max_price_usd_h, 5) if pool.max_price_usd_h else -1.0) if spot else None,
            node_labels=dict(group.labels),
            node_taints=[f"{taint.key}={taint.value}:{taint.effect}" for taint in group.taints],
            tags=template_tags(group),
            # AKS divides GPUs only where the driver is its own.
            gpu_profile=containerservice.GPUProfileArgs(driver="Install"),
            gpu_instance_profile=pool.mig_name,
            proximity_placement_group_id=near.id if near else None,
            capacity_reservation_group_id=group.reservation,
            os_type="Linux",
            os_sku=OS_SKU,
            # An ephemeral disk would be the node's own, at Azure's choice of size.
            os_disk_type="Managed",
            os_disk_size_gb=pool.disk_gib,
            enable_encryption_at_host=True,
            enable_node_public_ip=False,
            security_profile=containerservice.AgentPoolSecurityProfileArgs(ssh_access="Disabled"),
            # One node after another and none beside: a further GPU node may not be there to be had. Spot pools take no
            # such settings.
            upgrade_settings=None
            if spot
            else containerservice.AgentPoolUpgradeSettingsArgs(max_surge="0", max_unavailable="1"),
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=list(args.depends_on),
                protect=guarded(args.plan, f"pools.{pool.name}"),
                # The autoscaler's from the first minute; what an edit sends is the state's, which is today's because
                # Pulumi.yaml has it refreshed first.
                ignore_changes=["count"],
                replace_on_changes=list(_IMMUTABLE),
                # The name is the same, and quota for both seldom there.
                delete_before_replace=True,
            ),
        )

    def _proximity(self, group: NodeGroupPlan) -> compute.ProximityPlacementGroup | None:
        """Nodes of one InfiniBand network lie close together. A reservation is in no such group (Azure documentation,
        "On-demand capacity reservation")."""
        if self._pool.fabric is None or group.capacity == "reserved":
            return None
        return compute.ProximityPlacementGroup(
            f"{self._prefix}-{group.capacity}",
            resource_group_name=self._args.resource_group,
            location=self._args.plan.region,
            proximity_placement_group_type="Standard",
            opts=pulumi.ResourceOptions(parent=self),
        )


def agent_pool_name(pool: str, capacity: CapacityType) -> str:
    """Twelve letters and digits are all that AKS allows: ten of the pool's, and two that say the capacity type."""
    return pool + _SUFFIX[capacity]


def template_tags(group: NodeGroupPlan) -> dict[str, str]:
    """What a ready node of the group offers. Labels and taints AKS tells its autoscaler itself."""
    return {TEMPLATE_TAG + key.replace("/", "_"): value for key, value in group.allocatable.items()}


def scale_set_pattern(group: NodeGroupPlan) -> str:
    """Matches the scale set `aks-<agent pool>-<digits>-vmss` that AKS makes of an agent pool."""
    name = agent_pool_name(group.name.removesuffix(f"-{group.capacity}"), group.capacity)
    return f"^aks-{re.escape(name)}-[0-9]+-vmss$"
