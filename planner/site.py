"""Everything around the models of a stack on a managed cloud: network, pools, storage, and where each model lands."""

import ipaddress
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner import serving
from planner.clouds import CloudFacts, cloud_facts
from planner.clouds.facts import version_of
from planner.config import ParsedStack, SiteConfig
from planner.config_problems import Finding
from planner.errors import Problem, did_you_mean, shown
from planner.fleet import CloudPlan, NetworkPlan, PoolPlan, ServingPlan, SpotNotice, StoragePlan
from planner.instances import regions
from planner.memory import GIB
from planner.network import address_problems, plan_network
from planner.pools import CheckedPool, check_pool, fast_types, nodes_needed, plan_pool
from planner.pricing import estimate_cost, quota_needs

# The longest spot notice of any cloud: a group that loads for longer is not back before its predecessor is gone.
QUICK_SECONDS = 120

if TYPE_CHECKING:
    from planner.plan import ModelPlan


@dataclass(frozen=True, kw_only=True)
class Site:
    """The cloud's part of a plan; `serving` and `warnings` are by the model's place in the stack file."""

    cloud: CloudPlan
    serving: dict[int, ServingPlan]
    warnings: dict[int, tuple[str, ...]]


def plan_site(parsed: ParsedStack, models: Mapping[int, "ModelPlan"]) -> tuple[Site | None, list[Problem]]:
    """The site of a stack on a managed cloud, or every reason why it cannot be; `models` are the sound ones."""
    config = parsed.site
    assert config is not None
    cloud = cloud_facts(config.cloud)
    notice = _notice(config, cloud)
    problems = [*_settings(parsed, config, cloud), *_sources(models)]
    network, found = _network(config)
    problems += found
    checked, found = _checked_pools(parsed, config, cloud)
    problems += found
    landed = {
        index: checked[model.config.pool or ""] for index, model in models.items() if model.config.pool in checked
    }
    spanning = {landed[index].config.name for index in landed if models[index].nodes > 1}
    pools = {name: plan_pool(pool, cloud, rdma=name in spanning) for name, pool in checked.items()}
    problems += _unlike_networks(parsed, checked, spanning)
    plans: dict[int, ServingPlan] = {}
    for index, pool in landed.items():
        model, plan = models[index], pools[pool.config.name]
        rdma = pool.instance.rdma_interfaces > 0
        rate = cloud.shared_read_rate(
            config.storage, nodes=model.nodes, network_gbps=None if rdma else pool.instance.network_gbps
        )
        found = serving.placement_problems(
            model.config,
            model.memory,
            plan,
            f"models[{index}]",
            nodes=model.nodes,
            fast_network=pool.fast_network,
            fast_types=fast_types(config.cloud, pool.instance.gpu),
        )
        problems += found
        if not found:
            plans[index] = serving.plan_serving(
                model.config, model.memory, nodes=model.nodes, pool=plan, rate=rate, notice=notice
            )
    problems += [*_slow_storage(config, plans, models, cloud), *_small_storage(config, models, cloud)]
    wanted = {name: nodes_needed(plan, _demands(plan, plans)) for name, plan in pools.items()}
    warnings = {
        index: tuple(
            serving.placement_warnings(
                models[index].config,
                plan,
                rdma=landed[index].instance.rdma_interfaces > 0,
                own_image=config.images.triton is not None,
                nodes_filled=wanted[plan.pool.name],
                notice=notice,
            )
        )
        for index, plan in plans.items()
    }
    problems += _too_small(parsed, wanted)
    if network is not None:
        problems += address_problems(network, tuple(pools.values()), config.cloud)
    if problems or parsed.problems or network is None or config.region is None:
        return None, problems
    in_order = tuple(pools.values())
    plan = CloudPlan(
        name=config.cloud,
        region=config.region,
        cluster=config.cluster,
        system_instance_type=config.cluster.system_instance_type or cloud.system_instance_type,
        network=network,
        pools=in_order,
        storage=_storage(config, cloud, checked.values()),
        images=config.images,
        spot_notice=notice,
        brings=cloud.brings,
        mig_strategy="single" if cloud.mig.whole_resource else "mixed",
        allow_replacement=config.allow_replacement,
        aws=config.aws,
        gcp=config.gcp,
        azure=config.azure,
        existing=None,
        hugging_face_token=config.hugging_face_token,
        cost=estimate_cost(config.cloud, config.region, in_order, wanted),
        quotas=quota_needs(config.cloud, in_order),
    )
    return Site(cloud=plan, serving=plans, warnings=warnings), problems


def _storage(config: SiteConfig, cloud: CloudFacts, pools: Iterable[CheckedPool]) -> StoragePlan:
    lustre = config.storage.shared == "lustre"
    return StoragePlan(
        kind=config.storage.shared,
        capacity_gib=cloud.lustre_gib(config.storage) if lustre else cloud.nfs_gib(config.storage),
        throughput_mb_s_per_tib=cloud.lustre_tier(config.storage),
        # By name, not by place in the file: another order must not move the file system.
        zone=config.storage.zone or min(zone for pool in pools for zone in pool.zones),
        node_cache=config.storage.node_cache,
        keep_data=config.storage.keep_data,
    )


def _notice(config: SiteConfig, cloud: CloudFacts) -> SpotNotice:
    version, asked = config.cluster.kubernetes_version, config.cluster.spot_notice_seconds
    fitting = (notice for notice in cloud.spot_notices if notice.seconds == asked)
    return next(fitting, cloud.spot_notice(version))


def _network(config: SiteConfig) -> tuple[NetworkPlan | None, list[Problem]]:
    if config.network is None or config.region is None:
        return None, []  # said when the stack was read
    return plan_network(config.network, config.cloud, config.region)


def _checked_pools(
    parsed: ParsedStack, config: SiteConfig, cloud: CloudFacts
) -> tuple[dict[str, CheckedPool], list[Problem]]:
    checked: dict[str, CheckedPool] = {}
    problems: list[Problem] = []
    zones = config.network.zones if config.network else ()
    for index, pool in parsed.pools.items():
        sound, found = check_pool(
            pool, cloud=cloud, region=config.region or "", network_zones=zones, key=f"pools[{index}]"
        )
        problems += found
        if sound is not None:
            checked[pool.name] = sound
    return checked, problems


def _settings(parsed: ParsedStack, config: SiteConfig, cloud: CloudFacts) -> list[Problem]:
    found = [
        *_region(config),
        *_access(config, cloud),
        *_spot_notice(config, cloud),
        *_file_system(config, cloud),
        *_storage_zone(parsed, config),
        *_replacements(parsed, config),
    ]
    return [Problem(key=key, what=what, consequence=cost, fix=fix) for key, what, cost, fix in found]


def _region(config: SiteConfig) -> Iterator[Finding]:
    known = regions(config.cloud)
    if config.region is not None and config.region not in known:
        what = f"{shown(config.region)} is not a region of {config.cloud} with GPU instances"
        fix = did_you_mean(config.region, known, f"give one of {', '.join(sorted(known))}")
        yield "region", what, "nothing could be made there", fix


def _access(config: SiteConfig, cloud: CloudFacts) -> Iterator[Finding]:
    rule = cloud.administrator
    for index, cidr in enumerate(config.cluster.api_cidrs):
        try:
            open_to = ipaddress.ip_network(cidr)
        except ValueError as error:
            what = f"{shown(cidr)}: {error}"
            yield (
                f"cluster.api_cidrs[{index}]",
                what,
                "the control plane would refuse it",
                "write a range, like 198.51.100.0/24",
            )
            continue
        if open_to.prefixlen == 0:
            cost = "everyone on the internet could try to log in to the control plane"
            yield (
                f"cluster.api_cidrs[{index}]",
                f"{cidr} is everyone",
                cost,
                "give your office's or CI's ranges, or none",
            )
    for index, principal in enumerate(config.cluster.administrators):
        if not rule.pattern.fullmatch(principal):
            what = f"{shown(principal)} is not {rule.words}"
            cost = "the access entry would be refused, and nobody could administer the cluster"
            yield f"cluster.administrators[{index}]", what, cost, f"give one like {rule.example}"


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


def _file_system(config: SiteConfig, cloud: CloudFacts) -> Iterator[Finding]:
    storage, facts = config.storage, cloud.lustre
    refused = "the file system would be refused"
    if storage.shared == "lustre":
        tier = cloud.lustre_tier(storage)
        sizes, capacity = facts.tiers.get(tier), cloud.lustre_gib(storage)
        if sizes is None:
            listed = ", ".join(map(str, facts.tiers))
            what = f"{tier}, which {facts.name} does not have"
            yield "storage.lustre_throughput_mb_s_per_tib", what, refused, f"give one of {listed}"
        elif not sizes.offers(capacity):
            what = f"{capacity}, and {facts.name} grows from {sizes.smallest} in steps of {sizes.step} GiB"
            what += f" to {sizes.largest}" if capacity > sizes.largest else ""
            yield "storage.lustre_capacity_gib", what, refused, f"give {sizes.at_least(capacity)}"
    elif cloud.nfs.sizes and not cloud.nfs.sizes.offers(capacity := cloud.nfs_gib(storage) or 0):
        sizes = cloud.nfs.sizes
        what = f"{capacity}, and {cloud.nfs.name} has {sizes.smallest} to {sizes.largest} GiB in steps of {sizes.step}"
        yield "storage.nfs_capacity_gib", what, refused, f"give {sizes.at_least(capacity)}"


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


def _storage_zone(parsed: ParsedStack, config: SiteConfig) -> Iterator[Finding]:
    zones = config.network.zones if config.network else ()
    used = {zone for pool in parsed.pools.values() for zone in pool.zones or zones}
    if config.storage.shared == "lustre" and config.storage.zone is None and len(used) > 1:
        what = f"is missing, and the pools lie in {len(used)} zones"
        cost = "the file system lies in one; another pool could move it, which is another file system, empty"
        yield "storage.zone", what, cost, f"give one of {', '.join(sorted(used))}"
    if config.storage.zone is not None and zones and config.storage.zone not in zones:
        fix = did_you_mean(config.storage.zone, zones, f"give one of {', '.join(zones)}")
        what = f"{shown(config.storage.zone)} is not a zone of the network"
        yield "storage.zone", what, "the file system would have no subnet", fix


def _sources(models: Mapping[int, "ModelPlan"]) -> list[Problem]:
    return [
        Problem(
            key=f"models[{index}].source",
            what=f"{shown(model.config.source)} is not reachable from a pod",
            consequence="the engine's build would find no weights",
            fix="give hf://ORG/NAME, or upload it to the stack's bucket and give bucket://PREFIX",
        )
        for index, model in models.items()
        if not model.config.source.startswith(("hf://", "bucket://"))
    ]


def _slow_storage(
    config: SiteConfig,
    plans: Mapping[int, ServingPlan],
    models: Mapping[int, "ModelPlan"],
    cloud: CloudFacts,
) -> list[Problem]:
    limit = max(QUICK_SECONDS, 60 * (config.storage.accept_load_minutes or 0))
    slow = {index: plan for index, plan in plans.items() if plan.load_seconds > limit}
    if config.storage.shared != "nfs" or not slow:
        return []
    worst = max(slow, key=lambda index: slow[index].load_seconds)
    plan = slow[worst]
    size = sum(rank.weights_bytes for rank in models[worst].memory) / GIB
    minutes = -(-plan.load_seconds // 60)
    return [
        Problem(
            key="storage.shared",
            what=f"{cloud.nfs.name} is to feed {models[worst].name}: {size:,.0f} GiB for each start of a group",
            consequence=f"each start loads for about {minutes} min (estimate: {plan.load_source})",
            fix=f"give `shared: lustre` of {cloud.lustre.quick_gib} GiB or more, or `accept_load_minutes: {minutes}`",
        )
    ]


def _small_storage(config: SiteConfig, models: Mapping[int, "ModelPlan"], cloud: CloudFacts) -> list[Problem]:
    lustre = config.storage.shared == "lustre"
    sold = cloud.lustre.tiers.get(cloud.lustre_tier(config.storage)) if lustre else cloud.nfs.sizes
    capacity = cloud.lustre_gib(config.storage) if lustre else cloud.nfs_gib(config.storage)
    if sold is None or capacity is None:
        return []
    sizes = {index: sum(rank.weights_bytes for rank in model.memory) for index, model in models.items()}
    weights = {(models[index].config.source, models[index].config.revision): size for index, size in sizes.items()}
    # A build converts the checkpoint first, and both lie there until the engine is published; the LLM API's is small.
    engines = {models[i].engine.id: 2 * size for i, size in sizes.items() if models[i].config.backend == "tensorrt"}
    needed = math.ceil((sum(weights.values()) + sum(engines.values())) / GIB)
    if needed <= capacity:
        return []
    return [
        Problem(
            key=f"storage.{'lustre' if lustre else 'nfs'}_capacity_gib",
            what=f"{capacity}, and weights and engines take {needed:,} (estimate)",
            consequence="the disk would be full after hours of download and conversion",
            fix=f"give at least {sold.at_least(needed)}",
        )
    ]


def _demands(pool: PoolPlan, plans: Mapping[int, ServingPlan]) -> Sequence[tuple[int, int]]:
    return [(plan.replicas * plan.group_size, plan.gpus_per_pod) for plan in plans.values() if plan.pool is pool]


def _unlike_networks(
    parsed: ParsedStack, checked: Mapping[str, CheckedPool], spanning: Collection[str]
) -> list[Problem]:
    # One launch template lays out the interfaces of all instance types; only groups over several nodes need any.
    counts = {name: {type_.name: type_.rdma_interfaces for type_ in checked[name].instances} for name in spanning}
    return [
        Problem(
            key=f"pools[{index}].instance_types",
            what=", ".join(f"{name} has {count} RDMA interfaces" for name, count in counts[pool.name].items()),
            consequence="the pods of a group over several nodes are equal, and could not ask for the same number",
            fix="give types with as many interfaces, or make a pool for each",
        )
        for index, pool in parsed.pools.items()
        if len(set(counts.get(pool.name, {}).values())) > 1
    ]


def _too_small(parsed: ParsedStack, wanted: Mapping[str, int]) -> list[Problem]:
    return [
        Problem(
            key=f"pools[{index}].max_nodes",
            what=f"{pool.max_nodes}, and the models on pool {pool.name} fill {wanted[pool.name]} nodes",
            consequence="pods of the last replicas would stay pending",
            fix=f"give at least {wanted[pool.name]}, and one more to build engines beside what is served",
        )
        for index, pool in parsed.pools.items()
        if wanted.get(pool.name, 0) > pool.max_nodes
    ]
