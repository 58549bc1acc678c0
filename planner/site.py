"""Everything around the models of a stack on a managed cloud: network, pools, storage, and where each model lands."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner import serving
from planner.clouds import CloudFacts, cloud_facts
from planner.config import ModelConfig, SiteConfig
from planner.errors import Problem, shown
from planner.fleet import CloudPlan, NetworkPlan, PoolPlan, ServingPlan, SpotNotice, StoragePlan
from planner.memory import GIB
from planner.network import address_problems, plan_network
from planner.object_sources import access_problem, account_problem, object_source
from planner.parsing import ParsedStack
from planner.pools import CheckedPool, check_pool, fast_types, nodes_needed, plan_pool
from planner.pricing import estimate_cost, quota_needs
from planner.settings import settings_problems

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
    problems = [
        *settings_problems(parsed, config, cloud, needed_gib=_needed_gib(models)),
        *_sources(parsed.models, config, cloud),
    ]
    network, found = _network(config)
    problems += found
    checked, found = _checked_pools(parsed, config, cloud)
    problems += found
    landed = {
        index: checked[model.config.pool or ""] for index, model in models.items() if model.config.pool in checked
    }
    spanning = {landed[index].config.name for index in landed if models[index].nodes > 1}
    pools = {name: plan_pool(pool, cloud, rdma=name in spanning) for name, pool in checked.items()}
    problems += [*_unlike_networks(parsed, checked, spanning), *_apart(parsed, pools)]
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
    problems += _slow_storage(config, plans, models, cloud)
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
        system_nodes = config.cluster.system_nodes
        problems += address_problems(network, tuple(pools.values()), config.cloud, system_nodes=system_nodes)
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
        gpu_runtime_class=cloud.gpu_runtime_class,
        mig_strategy="single" if cloud.mig.whole_resource else "mixed",
        allow_replacement=config.allow_replacement,
        aws=config.aws,
        gcp=config.gcp,
        azure=config.azure,
        existing=None,
        hugging_face_token=config.hugging_face_token,
        key_limits=config.key_limits,
        cost=estimate_cost(config.cloud, config.region, in_order, wanted),
        quotas=quota_needs(config.cloud, in_order),
    )
    return Site(cloud=plan, serving=plans, warnings=warnings), problems


def _storage(config: SiteConfig, cloud: CloudFacts, pools: Iterable[CheckedPool]) -> StoragePlan:
    lustre = config.storage.shared == "lustre"
    # By name, not by place in the file: another order must not move the file system.
    zone = config.storage.zone or min(zone for pool in pools for zone in pool.zones)
    return StoragePlan(
        kind=config.storage.shared,
        capacity_gib=cloud.lustre_gib(config.storage) if lustre else cloud.nfs_gib(config.storage),
        throughput_mb_s_per_tib=cloud.lustre_tier(config.storage),
        zone=zone if lustre or cloud.nfs.zonal else "",
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


def _sources(models: Mapping[int, ModelConfig], config: SiteConfig, cloud: CloudFacts) -> list[Problem]:
    found = {index: _unreadable(model, config, cloud) for index, model in models.items()}
    return [
        Problem(key=f"models[{index}].source", what=line[0], consequence=line[1], fix=line[2])
        for index, line in found.items()
        if line
    ]


def _unreadable(model: ModelConfig, config: SiteConfig, cloud: CloudFacts) -> tuple[str, str, str] | None:
    """Why no pod could read the model's weights."""
    if object_source(model.source):
        foreign = access_problem(model, own=cloud.object_store, title=cloud.title)
        return foreign or account_problem(model, config.azure.storage_accounts)
    if model.source.startswith(("hf://", "bucket://")):
        return None
    fix = "give hf://ORG/NAME, or upload it to the stack's bucket and give bucket://PREFIX"
    return f"{shown(model.source)} is not reachable from a pod", "the engine's build would find no weights", fix


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


def _needed_gib(models: Mapping[int, "ModelPlan"]) -> int:
    """What weights and engines take of the shared file system: an estimate."""
    sizes = {index: sum(rank.weights_bytes for rank in model.memory) for index, model in models.items()}
    weights = {(models[index].config.source, models[index].config.revision): size for index, size in sizes.items()}
    # A build converts the checkpoint first, and both lie there until the engine is published; the LLM API's is small.
    engines = {models[i].engine.id: 2 * size for i, size in sizes.items() if models[i].config.backend == "tensorrt"}
    return math.ceil((sum(weights.values()) + sum(engines.values())) / GIB)


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


def _apart(parsed: ParsedStack, pools: Mapping[str, PoolPlan]) -> list[Problem]:
    first: dict[str, tuple[str, str]] = {}
    problems: list[Problem] = []
    for index, pool in parsed.pools.items():
        plan = pools.get(pool.name)
        zones = plan.node_groups[0].zones if plan else ()
        if plan is None or plan.fabric is None or not plan.fabric.one_zone or not zones:
            continue
        zone, kind = zones[0], plan.fabric.kind
        where, name = first.setdefault(kind, (zone, pool.name))
        if where != zone:
            problems.append(
                Problem(
                    key=f"pools[{index}].zones",
                    what=f"{zone}, and pool {name} over the same {kind} network is in {where}",
                    consequence="the network lies in one zone; nodes of the other would have no interfaces in it",
                    fix=f"give `zones: [{where}]`, or a stack of its own",
                )
            )
    return problems


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
