"""GPU pools: what their instance types have in common, their node groups, and how pods find them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from planner.cloud_config import CapacityType, PoolConfig
from planner.clouds import CloudFacts
from planner.config_problems import Finding
from planner.errors import Problem, did_you_mean, shown
from planner.fleet import NodeGroupPlan, PoolPlan, Taint
from planner.gpus import gpus
from planner.instances import InstanceType, instances, zones

POOL_LABEL = "tritonfleet.io/pool"
NODE_GROUP_LABEL = "tritonfleet.io/node-group"
CAPACITY_LABEL = "tritonfleet.io/capacity-type"
MIG_CONFIG_LABEL = "nvidia.com/mig.config"
MIG_STATE_LABEL = "nvidia.com/mig.config.state"
DEVICE_PLUGIN_CONFIG_LABEL = "nvidia.com/device-plugin.config"

GPU_TAINT = Taint(key="nvidia.com/gpu", value="present")
SPOT_TAINT = Taint(key=CAPACITY_LABEL, value="spot")
# The prefix tells the cluster autoscaler that nodes begin with this taint and lose it by themselves.
MIG_STARTUP_TAINT = Taint(key="startup-taint.cluster-autoscaler.kubernetes.io/mig", value="pending")

# The slowest network that NVIDIA's collectives are commonly run over between nodes: p4d's 400 Gbit/s for eight GPUs.
FAST_GBPS_PER_GPU = 50

# Which capacity type is tried first: what is paid for anyway, then the cheapest.
PRIORITY: Mapping[CapacityType, int] = {"reserved": 30, "spot": 20, "on-demand": 10}


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
        rates = [(type_.network_gbps or 0) / type_.gpu_count for type_ in self.instances if type_.rdma_interfaces]
        return len(rates) == len(self.instances) and min(rates) >= FAST_GBPS_PER_GPU


def check_pool(
    config: PoolConfig, *, cloud: CloudFacts, region: str, network_zones: Sequence[str], key: str
) -> tuple[CheckedPool | None, list[Problem]]:
    """The pool with what the catalogue knows of it, or every reason why there can be no such nodes."""
    found = list(_shape(config))
    known = instances(cloud.name)
    types = tuple(known[name] for name in config.instance_types if name in known)
    for index, name in enumerate(config.instance_types):
        if name not in known:
            fix = did_you_mean(name, known, f"give one of {', '.join(known)}")
            found.append(
                (f"instance_types[{index}]", f"{shown(name)} is no GPU instance type of {cloud.name}", _NO_NODES, fix)
            )
    if types:
        found += [*_alike(types), *_capacity(config, types, cloud), *_partition(config, types[0])]
    used = config.zones or tuple(network_zones)
    found += _placement(used, types, network_zones, zones(cloud.name, region))
    problems = [Problem(key=f"{key}.{field}", what=what, consequence=cost, fix=fix) for field, what, cost, fix in found]
    return (None if problems else CheckedPool(config=config, instances=types, zones=used)), problems


def plan_pool(pool: CheckedPool, cloud: CloudFacts, *, rdma: bool) -> PoolPlan:
    """The pool as it is built; with `rdma` its nodes get every RDMA interface that the instance type has."""
    config, first = pool.config, pool.instance
    gpu = gpus()[first.gpu]
    interfaces = first.rdma_interfaces if rdma else 0
    resource, units = "nvidia.com/gpu", first.gpu_count * (config.time_slicing or 1)
    if config.mig_profile:
        resource = gpu.mig_resource[config.mig_profile]
        units = first.gpu_count * gpu.mig_slices[config.mig_profile]
    hugepages_mib = cloud.hugepages_mib if interfaces else 0
    selector = {POOL_LABEL: config.name} | ({MIG_STATE_LABEL: "success"} if config.mig_profile else {})
    spot = (SPOT_TAINT,) if "spot" in config.capacity else ()
    allocatable = {resource: str(units)}
    if interfaces:
        allocatable |= {cloud.rdma_resource: str(interfaces), "hugepages-2Mi": f"{hugepages_mib}Mi"}
    mig_config = f"all-{config.mig_profile.replace('+', '.')}" if config.mig_profile else None
    return PoolPlan(
        name=config.name,
        gpu=first.gpu,
        gpus_per_node=first.gpu_count,
        gpu_resource=resource,
        units_per_node=units,
        mig_profile=config.mig_profile,
        mig_config=mig_config,
        time_slicing=config.time_slicing,
        vcpus=min(instance.vcpus for instance in pool.instances),
        memory_gib=min(instance.memory_gib for instance in pool.instances),
        local_nvme_gb=min(instance.local_nvme_gb for instance in pool.instances),
        disk_gib=config.disk_gib,
        rdma_interfaces=interfaces,
        rdma_resource=cloud.rdma_resource if interfaces else None,
        hugepages_mib=hugepages_mib,
        node_selector=selector,
        tolerations=(GPU_TAINT, *spot),
        spread_label=NODE_GROUP_LABEL,
        node_groups=tuple(
            _node_group(pool, capacity, mig_config, allocatable, cloud.gpu_label) for capacity in config.capacity
        ),
    )


def _node_group(
    pool: CheckedPool, capacity: CapacityType, mig_config: str | None, allocatable: dict[str, str], gpu_label: str
) -> NodeGroupPlan:
    config = pool.config
    name = f"{config.name}-{capacity}"
    labels = {POOL_LABEL: config.name, NODE_GROUP_LABEL: name, CAPACITY_LABEL: capacity}
    if mig_config is None:
        # Without it the autoscaler adds a second node while the first one's device plugin starts. A divided node has no
        # whole GPUs: with it, it would count as never ready.
        labels[gpu_label] = pool.instance.gpu.lower()
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
        labels=labels | _operator_labels(config, mig_config),
        taints=(GPU_TAINT, SPOT_TAINT) if capacity == "spot" else (GPU_TAINT,),
        startup_taints=(MIG_STARTUP_TAINT,) if mig_config else (),
        allocatable=allocatable,
    )


def _operator_labels(config: PoolConfig, mig_config: str | None) -> dict[str, str]:
    """What the GPU operator reads off a node: how to divide its GPUs, and how to share them."""
    if mig_config:
        return {MIG_CONFIG_LABEL: mig_config}
    return {DEVICE_PLUGIN_CONFIG_LABEL: f"shared-{config.time_slicing}"} if config.time_slicing else {}


_NO_NODES = "no node of this pool could be started; its pods would stay pending"


def _shape(config: PoolConfig) -> Iterator[Finding]:
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
    if config.mig_profile and config.time_slicing:
        cost = "a pod would share its slice's memory with others, and models that fit would fail"
        yield "time_slicing", "together with mig_profile", cost, "choose one of the two"


def _alike(types: Sequence[InstanceType]) -> Iterator[Finding]:
    first = types[0]
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
    if "reserved" not in config.capacity:
        return
    if len(types) > 1:
        what = f"reserved with {len(types)} instance types"
        yield "capacity", what, "a reservation is of one instance type", "make a pool of its own for the reservation"
    kinds = types[0].reservation_kinds
    if kinds and cloud.reservation_kind not in kinds:
        what = f"reserved, and {types[0].name} has no {cloud.reservation_kind}"
        yield "capacity", what, "the node group would be refused", "choose spot or on-demand"
    if config.reservation and not cloud.reservation_id.fullmatch(config.reservation):
        what = f"{shown(config.reservation)} is not the id of a {cloud.reservation_kind}"
        fix = f"give one like {cloud.reservation_example}"
        yield "reservation", what, "the node group would be refused", fix


def _partition(config: PoolConfig, first: InstanceType) -> Iterator[Finding]:
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


def _placement(
    used: Sequence[str],
    types: Sequence[InstanceType],
    network_zones: Sequence[str],
    offered: Mapping[str, frozenset[str]],
) -> Iterator[Finding]:
    for index, zone in enumerate(used):
        if zone not in network_zones:
            cost = "the pool's nodes would have no subnet"
            fix = did_you_mean(
                zone, network_zones, f"add it to network.zones, or give one of {', '.join(network_zones)}"
            )
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
