"""Everything around the models of a stack on a managed cloud: network, pools, storage, and where each model lands."""

import ipaddress
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner import serving
from planner.clouds import CloudFacts, cloud_facts
from planner.config import ParsedStack, SiteConfig
from planner.config_problems import Finding
from planner.errors import Problem, did_you_mean, shown
from planner.fleet import CloudPlan, NetworkPlan, PoolPlan, ServingPlan, StoragePlan
from planner.instances import regions
from planner.memory import GIB
from planner.network import address_problems, plan_network
from planner.pools import CheckedPool, check_pool, nodes_needed, plan_pool
from planner.pricing import estimate_cost, quota_needs

# From here on one node reads faster from Lustre than from elastic NFS (planner/clouds.py has both rates).
SERVES_QUICKLY_GIB = 7200

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
        )
        problems += found
        if not found:
            plans[index] = serving.plan_serving(
                model.config, model.memory, nodes=model.nodes, pool=plan, rate=rate, cloud=cloud
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
                cloud=cloud,
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
        network=network,
        pools=in_order,
        storage=StoragePlan(
            kind=config.storage.shared,
            capacity_gib=config.storage.lustre_capacity_gib,
            throughput_mb_s_per_tib=config.storage.lustre_throughput_mb_s_per_tib,
            # By name, not by place in the file: another order must not move the file system.
            zone=config.storage.zone or min(zone for pool in checked.values() for zone in pool.zones),
            node_cache=config.storage.node_cache,
            keep_data=config.storage.keep_data,
        ),
        images=config.images,
        aws=config.aws,
        hugging_face_token=config.hugging_face_token,
        cost=estimate_cost(config.cloud, config.region, in_order, wanted),
        quotas=quota_needs(config.cloud, in_order),
    )
    return Site(cloud=plan, serving=plans, warnings=warnings), problems


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
    found = [*_region(config), *_access(config), *_lustre(config, cloud), *_storage_zone(parsed, config)]
    return [Problem(key=key, what=what, consequence=cost, fix=fix) for key, what, cost, fix in found]


def _region(config: SiteConfig) -> Iterator[Finding]:
    known = regions(config.cloud)
    if config.region is not None and config.region not in known:
        what = f"{shown(config.region)} is not a region of {config.cloud} with GPU instances"
        fix = did_you_mean(config.region, known, f"give one of {', '.join(sorted(known))}")
        yield "region", what, "nothing could be made there", fix


def _access(config: SiteConfig) -> Iterator[Finding]:
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
        if config.cloud == "aws" and not re.fullmatch(r"arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/.+", principal):
            what = f"{shown(principal)} is not the ARN of an IAM role or user"
            cost = "the access entry would be refused, and nobody could administer the cluster"
            fix = "give one like arn:aws:iam::123456789012:role/platform"
            yield f"cluster.administrators[{index}]", what, cost, fix


def _lustre(config: SiteConfig, cloud: CloudFacts) -> Iterator[Finding]:
    capacity, facts = config.storage.lustre_capacity_gib, cloud.lustre
    if config.storage.shared == "lustre" and capacity != facts.smallest_gib and capacity % facts.gib_step:
        above = -(-capacity // facts.gib_step) * facts.gib_step
        what = f"{capacity}, and {facts.name} grows in steps of {facts.gib_step} GiB"
        yield "storage.lustre_capacity_gib", what, "the file system would be refused", f"give {above}"


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
    config: SiteConfig, plans: Mapping[int, ServingPlan], models: Mapping[int, "ModelPlan"], cloud: CloudFacts
) -> list[Problem]:
    # A group that takes longer to load than a spot notice is given is not back before its predecessor is gone.
    limit = max(cloud.spot_notice_seconds, 60 * (config.storage.accept_load_minutes or 0))
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
            fix=f"give `shared: lustre` of {SERVES_QUICKLY_GIB} GiB or more, or `accept_load_minutes: {minutes}`",
        )
    ]


def _small_storage(config: SiteConfig, models: Mapping[int, "ModelPlan"], cloud: CloudFacts) -> list[Problem]:
    if config.storage.shared != "lustre":
        return []
    sizes = {index: sum(rank.weights_bytes for rank in model.memory) for index, model in models.items()}
    weights = {(models[index].config.source, models[index].config.revision): size for index, size in sizes.items()}
    # A build converts the checkpoint first, and both lie there until the engine is published; the LLM API's is small.
    engines = {models[i].engine.id: 2 * size for i, size in sizes.items() if models[i].config.backend == "tensorrt"}
    needed = math.ceil((sum(weights.values()) + sum(engines.values())) / GIB)
    if needed <= config.storage.lustre_capacity_gib:
        return []
    step = cloud.lustre.gib_step
    return [
        Problem(
            key="storage.lustre_capacity_gib",
            what=f"{config.storage.lustre_capacity_gib}, and weights and engines take {needed:,} (estimate)",
            consequence="the disk would be full after hours of download and conversion",
            fix=f"give at least {-(-needed // step) * step}",
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
