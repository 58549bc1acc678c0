"""What is wrong with a pool: by itself, on its cloud, and where it is to lie."""

from collections.abc import Iterator, Mapping, Sequence

from planner.cloud_config import CapacityType, PoolConfig
from planner.clouds import CloudFacts
from planner.config_problems import Finding
from planner.errors import did_you_mean, shown
from planner.gpus import gpus
from planner.instances import InstanceType, counterparts, instances, offering, zones

# Which capacity type is tried first: what is paid for anyway, then the cheapest.
PRIORITY: Mapping[CapacityType, int] = {"reserved": 30, "spot": 20, "flex-start": 15, "on-demand": 10}

_NO_NODES = "no node of this pool could be started; its pods would stay pending"


def all_of(
    config: PoolConfig,
    types: Sequence[InstanceType],
    used: Sequence[str],
    *,
    cloud: CloudFacts,
    region: str,
    network_zones: Sequence[str],
) -> list[Finding]:
    """Every fault; `types` are those of its instance types that the cloud has, and `used` the zones of its nodes."""
    found = [*_shape(config, cloud), *_name(config, cloud), *_unknown(config, cloud)]
    if types:
        found += [*_alike(types, cloud), *_capacity(config, types, cloud), *_partition(config, types[0], cloud)]
    return [*found, *_placement(used, types, network_zones, zones(cloud.name, region), cloud)]


def _unknown(config: PoolConfig, cloud: CloudFacts) -> Iterator[Finding]:
    known = instances(cloud.name)
    for index, name in enumerate(config.instance_types):
        if name not in known:
            like = counterparts(cloud.name, name)
            listed = f"give one of {', '.join(like or known)}"
            what = f"{shown(name)} is no GPU instance type of {cloud.name}"
            yield f"instance_types[{index}]", what, _NO_NODES, listed if like else did_you_mean(name, known, listed)


def _shape(config: PoolConfig, cloud: CloudFacts) -> Iterator[Finding]:
    for field in ("instance_types", "capacity", "zones"):
        values: Sequence[str] = getattr(config, field) or ()
        if len(set(values)) < len(values):
            yield field, "the same value twice", "one of them would have no effect", "name each once"
    if config.min_nodes > config.max_nodes:
        what = f"{config.min_nodes}, more than max_nodes {config.max_nodes}"
        yield "min_nodes", what, "the cloud refuses such a node group", f"give at most {config.max_nodes}"
    # What the cloud does not have is said when the stack is read, and is no advice.
    had = [capacity for capacity in config.capacity if f"pools[].capacity={capacity}" not in cloud.unsupported]
    order = [capacity for capacity in sorted(PRIORITY, key=lambda one: -PRIORITY[one]) if capacity in had]
    if list(dict.fromkeys(had)) != order:
        what = f"{', '.join(had)} is not an order that saves money"
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
                yield "capacity", what, _NO_NODES, "give spot, flex-start or reserved, or another instance type"
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
    elif config.reservation and not rule.pattern.fullmatch(config.reservation):
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
    cloud: CloudFacts,
) -> Iterator[Finding]:
    # What is no zone of the region is said of the network, and is no advice.
    known = [zone for zone in network_zones if zone in offered]
    for index, zone in enumerate(used):
        if network_zones and zone not in network_zones:
            cost = "the pool's nodes would have no subnet"
            fix = f"give one of {', '.join(known or offered)}" if offered else "give zones of network.zones"
            if zone in offered:
                fix = "add it to network.zones" + (f", or {fix}" if known else "")
            else:
                fix = did_you_mean(zone, known or offered, fix)
            yield f"zones[{index}]", f"{shown(zone)} is not a zone of the network", cost, fix
        elif zone in offered:
            for instance in types:
                if instance.name not in offered[zone]:
                    better = sorted(where for where, names in offered.items() if instance.name in names)
                    regions = ", ".join(offering(cloud.name, [instance.name])) or "none that the catalogue knows"
                    fix = f"choose among {', '.join(better)}" if better else f"choose another region: {regions}"
                    yield f"zones[{index}]", f"{zone} does not offer {instance.name}", _NO_NODES, fix
