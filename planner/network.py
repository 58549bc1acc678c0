"""The network of a stack: its ranges judged, and a private and a public subnet for each zone."""

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network

from planner.cloud_config import ExistingNetworkConfig, NetworkConfig
from planner.clouds import cloud_facts
from planner.clouds.facts import NetworkFacts
from planner.config_problems import Finding
from planner.errors import Problem, did_you_mean, shown
from planner.fleet import NetworkPlan, PoolPlan, SubnetPlan
from planner.instances import zones

# A network is cut into eighths. Where subnets lie in zones, seven are their private ones, and the last is cut into
# eighths again for public ones. Elsewhere the first is of all nodes, the second of what else the cloud puts into the
# network, and the upper half of all pods.
SLOT_BITS = 3
ZONE_SLOTS = (1 << SLOT_BITS) - 1
# Fewer addresses would not hold the pods of a few nodes.
SMALLEST_PRIVATE = 24

PRIVATE_RANGES = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
# Shared address space (RFC 6598) is not routed on the internet either; clouds allow it for networks, not for services.
NETWORK_RANGES = (*PRIVATE_RANGES, IPv4Network("100.64.0.0/10"))


def plan_network(
    config: NetworkConfig, cloud: str, region: str, key: str = "network"
) -> tuple[NetworkPlan | None, list[Problem]]:
    """The network with its subnets in the order of `config.zones`, or every reason why it cannot be.

    A zone's subnets depend on the network's range and on the zone alone, so that adding, removing or reordering other
    zones moves none of them. Of an existing network the plan holds ids; its subnets' ranges are empty. An unknown
    region gives no plan, and no problem of its own: it is the caller's to report.
    """
    facts, unsupported = cloud_facts(cloud).network, cloud_facts(cloud).unsupported
    known = tuple(zones(cloud, region))
    found = [*_ranges(config, facts), *(_zones(config.zones, known, region, facts) if known else ())]
    # What the cloud does not take at all is said when the stack is read.
    if config.existing is not None and "network.existing" not in unsupported:
        found += _existing(config, config.existing, facts)
    problems = [Problem(key=f"{key}.{field}", what=what, consequence=cost, fix=fix) for field, what, cost, fix in found]
    if problems or not known:
        return None, problems
    plan = NetworkPlan(
        cidr=config.cidr,
        service_cidr=config.service_cidr,
        pod_cidr="" if facts.zonal_subnets else str(list(IPv4Network(config.cidr).subnets(1))[1]),
        zones=config.zones,
        peered_cidrs=config.peered_cidrs,
        subnets=tuple(_planned_subnets(config, facts)),
        nat_per_zone=config.nat_per_zone,
        existing_id=config.existing.id if config.existing else None,
    )
    return plan, []


def _planned_subnets(config: NetworkConfig, facts: NetworkFacts) -> Iterator[SubnetPlan]:
    if not facts.zonal_subnets:
        nodes, rest = list(IPv4Network(config.cidr).subnets(SLOT_BITS))[:2]
        yield SubnetPlan(zone="", private_cidr=str(nodes), public_cidr=str(rest))
        return
    for zone in config.zones:
        if config.existing is None:
            yield _subnets(config.cidr, zone)
        else:
            existing = config.existing.private_subnets[zone]
            yield SubnetPlan(zone=zone, private_cidr="", public_cidr="", existing_id=existing)


def address_problems(
    plan: NetworkPlan, pools: Sequence[PoolPlan], cloud: str, *, system_nodes: int = 0, key: str = "network"
) -> list[Problem]:
    """Ranges that are too small for the pools' nodes when all of them run: each zone's private subnet, with the nodes
    spread over their zones, or the range of all pods, of which system nodes take as much as others."""
    facts = cloud_facts(cloud).network
    problems: list[Problem] = []
    for subnet in plan.subnets:
        holds = plan.pod_cidr or subnet.private_cidr
        if not holds:
            continue
        room = IPv4Network(holds).num_addresses - (0 if plan.pod_cidr else facts.reserved_per_subnet)
        needed = sum(
            -(-group.max_nodes // (len(group.zones) if subnet.zone else 1))
            * (facts.addresses_per_node + (pool.rdma_interfaces if subnet.zone else 0))
            for pool in pools
            # Node groups of one pool stand in for each other.
            for group in pool.node_groups[:1]
            if subnet.zone in ("", *group.zones)
        )
        if plan.pod_cidr:
            needed += system_nodes * facts.addresses_per_node
        if needed > room:
            where, nodes = (f"in {subnet.zone}", "GPU nodes") if subnet.zone else ("for pods", "nodes")
            fix = "give a larger range, more zones to the pools, or a smaller max_nodes"
            if plan.pod_cidr:
                # Pods have half of the network.
                length = 32 - (2 * needed - 1).bit_length()
                larger = f"give a range of /{length} or larger, or " if length >= facts.largest else "give "
                fix = f"{larger}a smaller max_nodes"
            problems.append(
                Problem(
                    key=f"{key}.cidr",
                    what=f"{room} addresses {where}, and the {nodes} at their most hold {needed}",
                    consequence="pods of the last nodes would get no address and stay in ContainerCreating",
                    fix=fix,
                )
            )
    return problems


def _subnets(cidr: str, zone: str) -> SubnetPlan:
    slots = list(IPv4Network(cidr).subnets(prefixlen_diff=SLOT_BITS))
    public = list(slots[ZONE_SLOTS].subnets(prefixlen_diff=SLOT_BITS))
    slot = zone_slot(zone)
    return SubnetPlan(zone=zone, private_cidr=str(slots[slot]), public_cidr=str(public[slot]))


def zone_slot(zone: str) -> int:
    """The zone's place in every network: its own number or letter in the region, from 0."""
    last = zone[-1]
    return int(last) - 1 if last.isdecimal() else ord(last) - ord("a")


def _ranges(config: NetworkConfig, facts: NetworkFacts) -> Iterator[Finding]:
    cidr, problem = _parsed(config.cidr)
    yield from (("cidr", *line) for line in problem)
    if cidr is not None:
        yield from _size(cidr, config.existing is not None, facts)
        yield from _kind("cidr", cidr, NETWORK_RANGES, "hosts on the internet at these addresses could not be reached")
    services, problem = _parsed(config.service_cidr)
    yield from (("service_cidr", *line) for line in problem)
    if services is not None:
        low, high = facts.largest_services, facts.smallest_services
        if not low <= services.prefixlen <= high:
            cost = "the control plane would refuse it"
            yield "service_cidr", f"{services} is not between /{low} and /{high}", cost, f"give a /{low} to a /{high}"
        yield from _kind("service_cidr", services, PRIVATE_RANGES, "the control plane would refuse it")
    named = [("cidr", cidr), ("service_cidr", services)]
    for index, text in enumerate(config.peered_cidrs):
        peered, problem = _parsed(text)
        yield from ((f"peered_cidrs[{index}]", *line) for line in problem)
        for name, other in named:
            if peered is not None and other is not None and peered.overlaps(other):
                cost = "pods could not reach the peered network's hosts at those addresses, nor those hosts the pods"
                fix = f"give {name} a range outside every peered network"
                yield name, f"{other} overlaps peered_cidrs[{index}], {peered}", cost, fix
    if cidr is not None and services is not None and cidr.overlaps(services):
        cost = "the control plane refuses it: a Service's address could be a node's"
        yield "service_cidr", f"{services} overlaps cidr, {cidr}", cost, "give two ranges with nothing in common"


def _parsed(text: str) -> tuple[IPv4Network | None, list[tuple[str, str, str]]]:
    cost = "no address could be given out"
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){3}/([0-9]|[1-9][0-9])", text):
        return None, [(f"{shown(text)} is not an IPv4 range", cost, "write one like 10.40.0.0/16")]
    try:
        loose = IPv4Network(text, strict=False)
    except ValueError as error:
        return None, [(f"{shown(text)} is not an IPv4 range: {error}", cost, "write one like 10.40.0.0/16")]
    if str(loose) != text:
        return None, [(f"{text} does not begin where that range begins", cost, f"write {loose}")]
    return loose, []


def _size(cidr: IPv4Network, existing: bool, facts: NetworkFacts) -> Iterator[Finding]:
    low = facts.largest
    high = min(SMALLEST_PRIVATE - SLOT_BITS, facts.smallest_subnet - 2 * SLOT_BITS)
    if existing or not facts.zonal_subnets:
        high = facts.smallest
    if cidr.prefixlen < low:
        cost = f"the cloud refuses a {facts.name} larger than /{low}"
        yield "cidr", f"{cidr} is larger than /{low}", cost, f"give a /{low} to a /{high}"
    elif cidr.prefixlen > high:
        private = cidr.prefixlen + SLOT_BITS
        room = (1 << max(32 - private, 0)) - facts.reserved_per_subnet
        cost = (
            f"a zone's nodes and pods would share {max(room, 0)} addresses, and one node holds up to "
            f"{facts.addresses_per_node}"
        )
        if existing:
            cost = f"the cloud refuses a {facts.name} smaller than /{high}"
        elif not facts.zonal_subnets:
            cost = "its parts for nodes, pods and storage would be too small for what the cloud puts there"
        yield "cidr", f"{cidr} is smaller than /{high}", cost, f"give a /{low} to a /{high}"


def _kind(name: str, cidr: IPv4Network, allowed: Sequence[IPv4Network], cost: str) -> Iterator[Finding]:
    if not any(cidr.subnet_of(private) for private in allowed):
        yield name, f"{cidr} is not a private range", cost, f"give a range inside {', '.join(map(str, allowed))}"


def _zones(given: Sequence[str], known: Sequence[str], region: str, facts: NetworkFacts) -> Iterator[Finding]:
    usable = [zone for zone in known if zone not in facts.refused_zones]
    listed = f"give zone ids of {region}: {', '.join(usable)}"
    if len(given) < facts.fewest_zones:
        cost = "the control plane would be refused: it lies in several"
        yield (
            "zones",
            f"{len(given)} is too few",
            cost,
            f"give at least {facts.fewest_zones}, of {', '.join(usable)}",
        )
    for index, zone in enumerate(given):
        field = f"zones[{index}]"
        if zone in given[:index]:
            cost = "two subnets of a zone are no protection against the loss of it"
            yield field, f"{shown(zone)} is already zones[{given.index(zone)}]", cost, "name each zone once"
        elif re.fullmatch(rf"{re.escape(region)}[a-z]", zone) and zone not in known:
            what = f"{zone} is a zone's name, not its id"
            cost = "names differ from account to account: the same name is another place, with other instance types"
            yield field, what, cost, listed
        elif zone not in known:
            cost = "there would be no place for the subnet"
            yield field, f"{shown(zone)} is not a zone of {region}", cost, did_you_mean(zone, usable, listed)
        elif zone in facts.refused_zones:
            yield field, f"{zone} has no control plane", "the cluster would be refused", listed


def _existing(config: NetworkConfig, existing: ExistingNetworkConfig, facts: NetworkFacts) -> Iterator[Finding]:
    if "cidr" not in config.model_fields_set:
        cost = "rules for traffic inside the network would be made for a range that is not its own"
        yield "cidr", "is missing, for an existing network", cost, f"give the range of the {facts.name}"
    if config.nat_per_zone:
        cost = "it would have no effect: nothing of an existing network is changed"
        yield "nat_per_zone", "is for a network that this stack makes", cost, "remove it"
    if not facts.id.fullmatch(existing.id):
        fix = f"give the {facts.name}'s id"
        yield "existing.id", f"{shown(existing.id)} is not the id of a {facts.name}", "it would not be found", fix
    subnets = existing.private_subnets
    for zone in dict.fromkeys(config.zones):
        if zone not in subnets:
            cost = "nodes in that zone would have no network"
            fix = f"give the private subnet in {zone}, or remove the zone from zones"
            yield "existing.private_subnets", f"has none for {shown(zone)}", cost, fix
    for zone, subnet in subnets.items():
        field = f"existing.private_subnets.{shown(zone)[1:-1]}"
        if zone not in config.zones:
            cost = "it would have no effect"
            yield field, "is not one of zones", cost, did_you_mean(zone, config.zones, "add the zone to zones")
        if not facts.subnet_id.fullmatch(subnet):
            yield field, f"{shown(subnet)} is not the id of a subnet", "it would not be found", "give a subnet's id"
        elif list(subnets.values()).count(subnet) > 1:
            cost = "a subnet lies in one zone only; the nodes of the other would have no network"
            yield field, f"{subnet} is given for more than one zone", cost, "give each zone its own"
