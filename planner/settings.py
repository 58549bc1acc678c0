"""What of a stack's settings for its site is wrong by itself: region, access, notice, file system, replacements."""

import ipaddress
from collections.abc import Iterator

from planner.clouds import CLOUDS, CloudFacts
from planner.clouds.facts import Sizes, version_of
from planner.config import SiteConfig
from planner.config_problems import Finding
from planner.endpoints import is_everyone
from planner.errors import Problem, did_you_mean, shown
from planner.instances import instances, offering, regions
from planner.instances import zones as instance_zones
from planner.network import NETWORK_RANGES
from planner.object_sources import STORAGE_ACCOUNT
from planner.parsing import ParsedStack
from planner.versions import OLDEST_KUBERNETES


def settings_problems(parsed: ParsedStack, config: SiteConfig, cloud: CloudFacts, *, needed_gib: int) -> list[Problem]:
    """All of it, by key; weights and engines take `needed_gib` of the file system."""
    found = [
        *_region(parsed, config),
        *_cluster(config, cloud),
        *_access(config, cloud),
        *_spot_notice(config, cloud),
        *_file_system(config, cloud, needed_gib),
        *_without_effect(config, cloud),
        *_storage_zone(parsed, config, cloud),
        *_replacements(parsed, config),
        *_storage_accounts(config),
    ]
    return [Problem(key=key, what=what, consequence=cost, fix=fix) for key, what, cost, fix in found]


def _region(parsed: ParsedStack, config: SiteConfig) -> Iterator[Finding]:
    known = regions(config.cloud)
    if config.region is None or config.region in known:
        return
    types = {name for pool in parsed.pools.values() for name in pool.instance_types}
    better = ", ".join(offering(config.cloud, types & instances(config.cloud).keys()) or known)
    elsewhere = [name for name in CLOUDS if config.region in regions(name)]
    what = f"{shown(config.region)} is not a region of {config.cloud}" + "".join(
        f", but of {name}" for name in elsewhere
    )
    # A region of another cloud is no slip, however alike two names are.
    fix = f"give one of {better}" if elsewhere else did_you_mean(config.region, known, f"give one of {better}")
    yield "region", what, "nothing could be made there", fix


def _cluster(config: SiteConfig, cloud: CloudFacts) -> Iterator[Finding]:
    version, nodes = config.cluster.kubernetes_version, config.cluster.system_instance_type
    if version_of(version) < OLDEST_KUBERNETES:
        cost = "it would drop or refuse fields that pods rely on"
        fix = f"give '{'.'.join(map(str, OLDEST_KUBERNETES))}' or newer, or leave it out"
        yield "cluster.kubernetes_version", f"{version} is too old", cost, fix
    if nodes is not None and not cloud.instance_type.fullmatch(nodes):
        what, cost = f"{shown(nodes)} is no instance type of {config.cloud}", "the system nodes would be refused"
        yield "cluster.system_instance_type", what, cost, f"give one like {cloud.system_instance_type}, or leave it out"


def _access(config: SiteConfig, cloud: CloudFacts) -> Iterator[Finding]:
    rule = cloud.administrator
    for index, cidr in enumerate(config.cluster.api_cidrs):
        if fault := _not_a_public_range(cidr):
            yield f"cluster.api_cidrs[{index}]", *fault
    for index, principal in enumerate(config.cluster.administrators):
        if not rule.pattern.fullmatch(principal):
            what = f"{shown(principal)} is not {rule.words}"
            cost = "the cloud would refuse it, and nobody else could administer the cluster"
            yield f"cluster.administrators[{index}]", what, cost, f"give one like {rule.example}"


def _not_a_public_range(cidr: str) -> tuple[str, str, str] | None:
    example = "write a range, like 198.51.100.0/24"
    try:
        open_to = ipaddress.ip_network(cidr)
    except ValueError as error:
        return f"{shown(cidr)}: {error}", "the control plane would refuse it", example
    if is_everyone(cidr):
        cost = "everyone on the internet could try to log in to the control plane"
        return f"{cidr} is everyone", cost, "give your office's or CI's ranges, or none"
    if not isinstance(open_to, ipaddress.IPv4Network):
        return f"{cidr} is IPv6", "control planes are reached by IPv4: it would admit nobody", example
    if any(open_to.subnet_of(private) for private in NETWORK_RANGES):
        cost = "the public endpoint sees public addresses only: it would admit nobody"
        return (
            f"{cidr} is a private range",
            cost,
            "remove it: the network and network.peered_cidrs reach the private one",
        )
    return None


def _spot_notice(config: SiteConfig, cloud: CloudFacts) -> Iterator[Finding]:
    asked, version = config.cluster.spot_notice_seconds, config.cluster.kubernetes_version
    if asked is None:
        return
    allowed = [notice for notice in cloud.spot_notices if notice.since <= version_of(version)]
    if any(notice.seconds == asked for notice in allowed):
        return
    offers = {notice.seconds: notice.since for notice in cloud.spot_notices}
    what = f"{asked}, which {cloud.title} {version} does not give"
    cost = "pods would plan for time that they are not given, and requests in flight would be cut off"
    listed = " or ".join(str(notice.seconds) for notice in allowed)
    newer = f", or kubernetes_version '{'.'.join(map(str, offers[asked]))}'" if asked in offers else ""
    yield "cluster.spot_notice_seconds", what, cost, f"give {listed}{newer}, or leave it out"


def _file_system(config: SiteConfig, cloud: CloudFacts, needed_gib: int) -> Iterator[Finding]:
    storage = config.storage
    if storage.shared == "nfs":
        yield from _capacity("nfs_capacity_gib", cloud.nfs_gib(storage), cloud.nfs.sizes, cloud.nfs.name, needed_gib)
        return
    tier, lustre = cloud.lustre_tier(storage), cloud.lustre
    if tier not in lustre.tiers:
        what, fix = (
            f"{tier}, which {lustre.name} does not have",
            f"give one of {', '.join(map(str, sorted(lustre.tiers)))}",
        )
        yield "storage.lustre_throughput_mb_s_per_tib", what, _REFUSED, fix
    else:
        sizes = lustre.tiers[tier]
        yield from _capacity("lustre_capacity_gib", cloud.lustre_gib(storage), sizes, lustre.name, needed_gib)


_REFUSED = "the file system would be refused"


def _capacity(field: str, gib: int | None, sizes: Sizes | None, name: str, needed: int) -> Iterator[Finding]:
    """One that is not sold, or in which weights and engines have no room; one that grows by itself is neither."""
    if sizes is None or gib is None:
        return
    if sizes.offers(gib) and needed <= gib:
        return
    what, cost = (
        f"{gib}, and weights and engines take {needed:,} (estimate)",
        "the disk would be full after hours of download and conversion",
    )
    if not sizes.offers(gib):
        what, cost = f"{gib}, and {name} has {sizes.smallest} to {sizes.largest} GiB in steps of {sizes.step}", _REFUSED
    fix = f"give {sizes.at_least(max(gib, needed))}"
    if needed > sizes.largest:
        apart = "another stack to some of the models"
        fix = f"more than {sizes.largest:,} is not sold: give " + (
            apart if field.startswith("lustre") else f"`shared: lustre`, or {apart}"
        )
    yield f"storage.{field}", what, cost, fix


def _without_effect(config: SiteConfig, cloud: CloudFacts) -> Iterator[Finding]:
    """Settings of the file system that the stack does not have."""
    storage = config.storage
    if storage.shared == "lustre":
        given = {"nfs_capacity_gib": storage.nfs_capacity_gib, "accept_load_minutes": storage.accept_load_minutes}
    else:
        given = {
            "lustre_capacity_gib": storage.lustre_capacity_gib,
            "lustre_throughput_mb_s_per_tib": storage.lustre_throughput_mb_s_per_tib,
        }
    # What the cloud never has is said when the stack is read.
    for field in (name for name, value in given.items() if value and f"storage.{name}" not in cloud.unsupported):
        other = "nfs" if storage.shared == "lustre" else "lustre"
        what = f"is for shared: {other}, and this stack has {storage.shared}"
        yield f"storage.{field}", what, "it would have no effect", f"remove it, or give shared: {other}"


def _replacements(parsed: ParsedStack, config: SiteConfig) -> Iterator[Finding]:
    known = ["cluster", "storage", *(f"pools.{pool.name}" for pool in parsed.pools.values())]
    for index, name in enumerate(config.allow_replacement):
        if name not in known:
            fix = did_you_mean(name, known, f"give one of {', '.join(known)}")
            yield (
                f"allow_replacement[{index}]",
                f"{shown(name)} is nothing of this stack",
                "it would have no effect",
                fix,
            )


def _storage_accounts(config: SiteConfig) -> Iterator[Finding]:
    for index, account in enumerate(config.azure.storage_accounts):
        if not STORAGE_ACCOUNT.fullmatch(account):
            cost = "the right to read weights there could not be given"
            fix = "give what `az storage account show --name NAME --query id` prints"
            yield f"azure.storage_accounts[{index}]", f"{shown(account)} is no storage account's id", cost, fix


def _storage_zone(parsed: ParsedStack, config: SiteConfig, cloud: CloudFacts) -> Iterator[Finding]:
    zones = config.network.zones if config.network else ()
    used = {zone for pool in parsed.pools.values() for zone in pool.zones or zones}
    zonal = config.storage.shared == "lustre" or cloud.nfs.zonal
    if zonal and config.storage.zone is None and len(used) > 1:
        what = f"is missing, and the pools lie in {len(used)} zones"
        cost = "the file system lies in one; another pool could move it, which is another file system, empty"
        yield "storage.zone", what, cost, f"give one of {', '.join(sorted(used))}"
    if config.storage.zone is not None and zones and config.storage.zone not in zones:
        # What is no zone of the region is said of the network, and is no advice.
        known = [zone for zone in zones if zone in instance_zones(config.cloud, config.region or "")]
        listed = f"give one of {', '.join(known)}" if known else "give a zone of network.zones"
        fix = did_you_mean(config.storage.zone, known, listed)
        what = f"{shown(config.storage.zone)} is not a zone of the network"
        yield "storage.zone", what, "the file system would have no subnet", fix
