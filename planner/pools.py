"""GPU pools: what their instance types have in common, their node groups, and how pods find them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planner import pool_problems
from planner.cloud_config import CapacityType, PoolConfig
from planner.clouds import CloudFacts
from planner.errors import Problem
from planner.fleet import Fabric, NodeGroupPlan, PoolPlan, Taint
from planner.gpus import gpus
from planner.instances import InstanceType, instances
from planner.pool_labels import (
    CAPACITY_LABEL,
    DEVICE_PLUGIN_CONFIG_LABEL,
    DEVICE_PLUGIN_LABEL,
    GPU_RESOURCE,
    GPU_TAINT,
    MIG_CONFIG_LABEL,
    MIG_STARTUP_TAINT,
    NODE_GROUP_LABEL,
    POOL_LABEL,
    ZONE_LABEL,
)
from planner.pool_problems import PRIORITY

# The slowest network that NVIDIA's collectives are commonly run over between nodes: p4d's 400 Gbit/s for eight GPUs.
FAST_GBPS_PER_GPU = 50


@dataclass(frozen=True, kw_only=True)
class CheckedPool:
    """A sound pool, its zones filled in. What its instance types differ in is the least of them."""

    config: PoolConfig
    instances: tuple[InstanceType, ...]
    zones: tuple[str, ...]

    @property
    def instance(self) -> InstanceType:
        """The first instance type: the one that the pool prefers and that prices are given for."""
        return self.instances[0]

    @property
    def fast_network(self) -> bool:
        """Whether all-reduce may cross nodes: RDMA with FAST_GBPS_PER_GPU or more for each GPU."""
        return all(map(has_fast_network, self.instances))


def fast_types(cloud: str, gpu: str) -> list[str]:
    """Instance types with the GPU over whose network all-reduce may cross nodes."""
    return [name for name, type_ in instances(cloud).items() if type_.gpu == gpu and has_fast_network(type_)]


def has_fast_network(type_: InstanceType) -> bool:
    """Whether all-reduce may cross its nodes."""
    return type_.rdma_interfaces > 0 and (type_.network_gbps or 0) / type_.gpu_count >= FAST_GBPS_PER_GPU


def check_pool(
    config: PoolConfig, *, cloud: CloudFacts, region: str, network_zones: Sequence[str], key: str
) -> tuple[CheckedPool | None, list[Problem]]:
    """The pool with what the catalogue knows of it, or every reason why there can be no such nodes."""
    known = instances(cloud.name)
    types = tuple(known[name] for name in config.instance_types if name in known)
    used = config.zones or tuple(network_zones)
    found = pool_problems.all_of(config, types, used, cloud=cloud, region=region, network_zones=network_zones)
    problems = [Problem(key=f"{key}.{field}", what=what, consequence=cost, fix=fix) for field, what, cost, fix in found]
    return (None if problems else CheckedPool(config=config, instances=types, zones=used)), problems


def plan_pool(pool: CheckedPool, cloud: CloudFacts, *, rdma: bool) -> PoolPlan:
    """The pool as it is built; with `rdma` its nodes get every RDMA interface that the instance type has."""
    config, first = pool.config, pool.instance
    gpu, mig, profile = gpus()[first.gpu], cloud.mig, config.mig_profile
    fabric = cloud.fabrics.get(first.rdma) if rdma and first.rdma_interfaces else None
    interfaces = first.rdma_interfaces if fabric else 0
    resource, units = GPU_RESOURCE, first.gpu_count * (config.time_slicing or 1)
    selector, tolerations = {POOL_LABEL: config.name}, [GPU_TAINT]
    if profile:
        resource = GPU_RESOURCE if mig.whole_resource else gpu.mig_resource[profile]
        units = first.gpu_count * gpu.mig_slices[profile]
        selector |= {key: value.format(name=mig.profiles(gpu)[profile]) for key, value in mig.node_labels.items()}
    if cloud.pool_label:
        selector[cloud.pool_label] = config.name
        tolerations.append(Taint(key=cloud.pool_label, value=config.name))
    plain = tuple(tolerations)
    if "spot" in config.capacity:
        tolerations.append(cloud.spot_taint)
    allocatable = {resource: str(units)} | _allocatable(fabric, interfaces)
    return PoolPlan(
        name=config.name,
        gpu=first.gpu,
        gpus_per_node=first.gpu_count,
        gpu_resource=resource,
        units_per_node=units,
        mig_profile=profile,
        mig_name=mig.profiles(gpu)[profile] if profile else None,
        time_slicing=config.time_slicing,
        vcpus=min(instance.vcpus for instance in pool.instances),
        memory_gib=min(instance.memory_gib for instance in pool.instances),
        local_nvme_gb=min(instance.local_nvme_gb for instance in pool.instances),
        disk_gib=config.disk_gib,
        rdma_interfaces=interfaces,
        fabric=fabric,
        max_price_usd_h=config.max_price_usd_h,
        node_selector=selector,
        tolerations=tuple(tolerations),
        together=(NODE_GROUP_LABEL, ZONE_LABEL),
        node_groups=tuple(_node_group(pool, capacity, plain, allocatable, cloud) for capacity in config.capacity),
    )


def _allocatable(fabric: Fabric | None, interfaces: int) -> dict[str, str]:
    if fabric is None:
        return {}
    pages = {"hugepages-2Mi": f"{fabric.hugepages_mib}Mi"} if fabric.hugepages_mib else {}
    return ({fabric.resource: str(interfaces)} if fabric.resource else {}) | pages


def _node_group(
    pool: CheckedPool,
    capacity: CapacityType,
    taints: tuple[Taint, ...],
    allocatable: dict[str, str],
    cloud: CloudFacts,
) -> NodeGroupPlan:
    config = pool.config
    name = f"{config.name}-{capacity}"
    labels = {POOL_LABEL: config.name, NODE_GROUP_LABEL: name, CAPACITY_LABEL: capacity}
    if cloud.pool_label:
        labels[cloud.pool_label] = config.name
    if config.mig_profile is None:
        # Without it the autoscaler adds a second node while the first one's device plugin starts. A divided node has no
        # whole GPUs: with it, it would count as never ready.
        labels |= {key: value.format(gpu=pool.instance.gpu.lower()) for key, value in cloud.gpu_labels.items()}
    else:
        if cloud.mig.labelled:
            labels[MIG_CONFIG_LABEL] = cloud.mig.profiles(gpus()[pool.instance.gpu])[config.mig_profile]
        if cloud.mig.gate == "device-plugin":
            # The GPU operator starts no device plugin on a node with this, so that there is no GPU to ask for.
            labels[DEVICE_PLUGIN_LABEL] = "false"
    if config.time_slicing and "gpu-operator" not in cloud.brings:
        labels[DEVICE_PLUGIN_CONFIG_LABEL] = f"shared-{config.time_slicing}"
    return NodeGroupPlan(
        name=name,
        capacity=capacity,
        priority=PRIORITY[capacity],
        instance_types=config.instance_types,
        zones=pool.zones,
        # Nodes that always run are of the capacity type tried first.
        min_nodes=config.min_nodes if capacity == config.capacity[0] else 0,
        max_nodes=config.max_nodes,
        reservation=config.reservation if capacity == "reserved" else None,
        labels=labels,
        taints=(*taints, cloud.spot_taint) if capacity == "spot" else taints,
        startup_taints=(MIG_STARTUP_TAINT,) if config.mig_profile and cloud.mig.gate == "taint" else (),
        allocatable=allocatable,
    )


def nodes_needed(pool: PoolPlan, demands: Sequence[tuple[int, int]]) -> int:
    """Nodes that hold every pod at once; `demands` are (pods, units of the pool's GPU resource per pod)."""
    whole = sum(pods for pods, units in demands if units >= pool.units_per_node)
    shared = sum(pods * units for pods, units in demands if units < pool.units_per_node)
    return whole + math.ceil(shared / pool.units_per_node)
