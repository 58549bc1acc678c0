"""GPU pools: what their instance types have in common, their node groups, and how pods find them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from planner.cloud_config import CapacityType, PoolConfig
from planner.clouds import CloudFacts
from planner.config_problems import Finding
from planner.errors import Problem, did_you_mean, shown
from planner.fleet import Fabric, NodeGroupPlan, PoolPlan, Taint
from planner.gpus import gpus
from planner.instances import InstanceType, instances, zones
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

# The slowest network that NVIDIA's collectives are commonly run over between nodes: p4d's 400 Gbit/s for eight GPUs.
FAST_GBPS_PER_GPU = 50

# Which capacity type is tried first: what is paid for anyway, then the cheapest.
PRIORITY: Mapping[CapacityType, int] = {"reserved": 30, "spot": 20, "flex-start": 15, "on-demand": 10}


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
        return all(map(_has_fast_network, self.instances))


def fast_types(cloud: str, gpu: str) -> list[str]:
    """Instance types with the GPU over whose network all-reduce may cross nodes."""
    return [name for name, type_ in instances(cloud).items() if type_.gpu == gpu and _has_fast_network(type_)]


def _has_fast_network(type_: InstanceType) -> bool:
    return type_.rdma_interfaces > 0 and (type_.network_gbps or 0) / type_.gpu_count >= FAST_GBPS_PER_GPU


def check_pool(
    config: PoolConfig, *, cloud: CloudFacts, region: str, network_zones: Sequence[str], key: str
) -> tuple[CheckedPool | None, list[Problem]]:
    """The pool with what the catalogue knows of it, or every reason why there can be no such nodes."""
    found = [*_shape(config, cloud), *_name(config, cloud)]
    known = instances(cloud.name)
    types = tuple(known[name] for name in config.instance_types if name in known)
    for index, name in enumerate(config.instance_types):
        if name not in known:
            fix = did_you_mean(name, known, f"give one of {', '.join(known)}")
            found.append(
                (f"instance_types[{index}]", f"{shown(name)} is no GPU instance type of {cloud.name}", _NO_NODES, fix)
            )
    if types:
        found += [*_alike(types, cloud), *_capacity(config, types, cloud), *_partition(config, types[0], cloud)]
    used = config.zones or tuple(network_zones)
    found += _placement(used, types, network_zones, zones(cloud.name, region))
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


_NO_NODES = "no node of this pool could be started; its pods would stay pending"


def _shape(config: PoolConfig, cloud: CloudFacts) -> Iterator[Finding]:
    for field in ("instance_types", "capacity", "zones"):
        values: Sequence[str] = getattr(config, field) or ()
        if len(set(values)) < len(values):
            yield field, "the same value twice", "one of them would have no effect", "name each once"
    if config.min_nodes > config.max_nodes:
        what = f"{config.min_nodes}, more than max_nodes {config.max_nodes}"
        yield "min_nodes", what, "the cloud refuses such a node group", f"give at most {config.max_nodes}"
    order = sorted(config.capacity, key=lambda capacity: -PRIORITY[capacity])
    if list(config.capacity) != order:
        what = f"{', '.join(config.capacity)} is not an order that saves money"
        cost = "on-demand nodes would be bought while cheaper or already paid ones are free"
        yield "capacity", what, cost, f"give {', '.join(order)}"
    if "reserved" in config.capacity and config.reservation is None:
        cost = "nothing says which reserved capacity to use"
        yield "reservation", "is missing", cost, "give the id of the reservation, or remove reserved from capacity"
    if "reserved" not in config.capacity and config.reservation is not None:
        yield (
            "reservation",
            "given, but capacity has no reserved",
            "what was reserved would be paid for and not used",
            "add reserved to capacity, or remove it",
        )
    if config.max_price_usd_h is not None and "spot" not in config.capacity:
        cost = "it would have no effect: only spot nodes have a changing price"
        yield "max_price_usd_h", "given, but capacity has no spot", cost, "add spot to capacity, or remove it"
    if config.disk_gib > cloud.largest_disk_gib:
        what = f"{config.disk_gib}, and {cloud.title} makes disks of nodes up to {cloud.largest_disk_gib}"
        yield "disk_gib", what, "the node group would be refused", f"give at most {cloud.largest_disk_gib}"
    if config.mig_profile and config.time_slicing:
        cost = "a pod would share its slice's memory with others, and models that fit would fail"
        yield "time_slicing", "together with mig_profile", cost, "choose one of the two"


def _name(config: PoolConfig, cloud: CloudFacts) -> Iterator[Finding]:
    rule = cloud.pool_name
    if not rule.pattern.fullmatch(config.name):
        cost = f"{cloud.title} would refuse the node pool's name"
        yield (
            "name",
            f"{shown(config.name)} is too long or has other letters",
            cost,
            f"give {rule.words}: {rule.example}",
        )


def _alike(types: Sequence[InstanceType], cloud: CloudFacts) -> Iterator[Finding]:
    first = types[0]
    if len(types) > 1 and not cloud.mixed_types:
        what = f"{len(types)} of them, and a node pool of {cloud.title} has one"
        yield "instance_types", what, "the node pool would be refused", "make a pool for each"
        return
    for other in types[1:]:
        for what, mine, theirs in (
            ("GPU", first.gpu, other.gpu),
            ("GPUs per node", first.gpu_count, other.gpu_count),
        ):
            if mine != theirs:
                text = f"{first.name} has {mine} and {other.name} has {theirs} as {what}"
                cost = "an engine loads on one GPU type only, and the pods of a group are equal"
                yield "instance_types", text, cost, "make a pool for each"


def _capacity(config: PoolConfig, types: Sequence[InstanceType], cloud: CloudFacts) -> Iterator[Finding]:
    if "spot" in config.capacity:
        for instance in types:
            if not instance.spot_supported:
                what = f"spot, and {instance.name} is never offered as spot"
                yield "capacity", what, _NO_NODES, "remove spot, or the instance type"
    if "on-demand" in config.capacity:
        for instance in types:
            if instance.name.startswith(cloud.no_on_demand):
                what = f"on-demand, and {instance.name} is never sold so"
                yield "capacity", what, _NO_NODES, "give spot, flex-start, or a larger instance type"
    # Where the cloud knows no flex-start at all, that is said when the stack is read.
    if "flex-start" in config.capacity and "pools[].capacity=flex-start" not in cloud.unsupported:
        for instance in types:
            if "flex-start" not in (instance.reservation_kinds or ()):
                what = f"flex-start, and {instance.name} is not offered so"
                yield "capacity", what, _NO_NODES, "remove flex-start, or the instance type"
    if "reserved" not in config.capacity:
        return
    if len(types) > 1:
        what = f"reserved with {len(types)} instance types"
        yield "capacity", what, "a reservation is of one instance type", "make a pool of its own for the reservation"
    kinds, rule = types[0].reservation_kinds, cloud.reservation_id
    if kinds is not None and not set(cloud.reservation_kinds) & set(kinds):
        what = f"reserved, and {cloud.title} reserves no {types[0].name}"
        yield "capacity", what, "the node group would be refused", "choose spot or on-demand"
    if config.reservation and not rule.pattern.fullmatch(config.reservation):
        what = f"{shown(config.reservation)} is not {rule.words}"
        yield "reservation", what, "the node group would be refused", f"give one like {rule.example}"


def _partition(config: PoolConfig, first: InstanceType, cloud: CloudFacts) -> Iterator[Finding]:
    if config.mig_profile is None:
        return
    gpu = gpus()[first.gpu]
    if not first.mig_capable or not gpu.mig_slices:
        able = sorted(name for name, other in gpus().items() if other.mig_slices)
        what = f"{config.mig_profile}, and {gpu.name} cannot be divided"
        cost = "no slice would ever be offered; pods that ask for one would stay pending"
        yield "mig_profile", what, cost, f"remove it, or choose instances with {', '.join(able)}"
    elif config.mig_profile not in gpu.mig_slices:
        listed = f"give one of {', '.join(gpu.mig_slices)}"
        fix = did_you_mean(config.mig_profile, gpu.mig_slices, listed)
        what = f"{shown(config.mig_profile)} is not a profile of {gpu.name}"
        yield "mig_profile", what, "the GPU cannot be divided as asked", fix
    elif config.mig_profile not in cloud.mig.profiles(gpu):
        able = ", ".join(cloud.mig.profiles(gpu))
        what = f"{config.mig_profile}, which {cloud.title} does not make of {gpu.name}"
        fix = f"give one of {able}" if able else "remove it: this GPU is only given whole"
        yield "mig_profile", what, "the node group would be refused", fix


def _placement(
    used: Sequence[str],
    types: Sequence[InstanceType],
    network_zones: Sequence[str],
    offered: Mapping[str, frozenset[str]],
) -> Iterator[Finding]:
    # What is no zone of the region is said of the network, and is no advice.
    known = [zone for zone in network_zones if zone in offered] or list(offered)
    for index, zone in enumerate(used):
        if zone not in network_zones:
            cost = "the pool's nodes would have no subnet"
            fix = f"give one of {', '.join(known)}" if known else "give zones of network.zones"
            fix = f"add it to network.zones, or {fix}" if zone in offered else did_you_mean(zone, known, fix)
            yield f"zones[{index}]", f"{shown(zone)} is not a zone of the network", cost, fix
        elif zone in offered:
            for instance in types:
                if instance.name not in offered[zone]:
                    better = sorted(where for where, names in offered.items() if instance.name in names)
                    fix = f"choose among {', '.join(better)}" if better else "choose another region"
                    yield f"zones[{index}]", f"{zone} does not offer {instance.name}", _NO_NODES, fix


def nodes_needed(pool: PoolPlan, demands: Sequence[tuple[int, int]]) -> int:
    """Nodes that hold every pod at once; `demands` are (pods, units of the pool's GPU resource per pod)."""
    whole = sum(pods for pods, units in demands if units >= pool.units_per_node)
    shared = sum(pods * units for pods, units in demands if units < pool.units_per_node)
    return whole + math.ceil(shared / pool.units_per_node)
