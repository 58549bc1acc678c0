"""A cluster that is there already: which of its nodes each model runs on."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from planner import existing_problems, serving
from planner.cloud_choice import EXISTING
from planner.cloud_config import ClusterConfig, ExistingConfig, ExistingNodesConfig
from planner.clouds.facts import ReadRate
from planner.config import SiteConfig
from planner.errors import Problem
from planner.fleet import (
    CloudPlan,
    CostEstimate,
    NetworkPlan,
    NodeGroupPlan,
    PoolPlan,
    ServingPlan,
    SpotNotice,
    StoragePlan,
    Taint,
)
from planner.gpus import gpus
from planner.memory import GIB
from planner.parsing import ParsedStack
from planner.pools import nodes_needed
from planner.site import Site

if TYPE_CHECKING:
    from planner.plan import ModelPlan

# Beside the ranks and the frontend of a pod: launcher, Open MPI, rank 0's server, and a process of Triton's for each
# stream and each of two models. SmolLM2 over three ranks took 1.5 GiB with 8 streams at once (measured, PSS): 0.26 GiB
# in each rank's backend with a KV cache little used, 52 MiB in each of 10 such processes, and 150 MiB in the rest.
_CPU_POD_MIB, _CPU_PROCESS_MIB = 256, 52
_CPU_MOST_STREAMS = 64
# A request and no limit: alone on its node a rank computes on all of it, and three must fit beside what kind itself
# asks for (0.95 cores) on two cores.
_CPU_RANK_MILLIS = 250
# Engines and weights lie on the volume. On the node's disk: logs, and Triton's Python backend put together (3 MB).
_CPU_DISK_GIB = 4
# What a cluster is expected to have, if its models need it.
_BRINGS = frozenset({"gpu-operator", "cluster-autoscaler", "metrics-server"})
_NO_SPOT = SpotNotice(seconds=0, pod_seconds=0)


def plan_existing(parsed: ParsedStack, models: Mapping[int, "ModelPlan"]) -> tuple[Site | None, list[Problem]]:
    """The site of a stack on a cluster that is there, or every reason why it cannot be; `models` are the sound ones."""
    site = parsed.site
    assert site is not None
    config = site.existing
    assert config is not None
    pools = {nodes.name: _pool(nodes) for nodes in config.nodes if nodes.gpu in gpus()}
    landed, problems = _landed(config, models, pools)
    wanted = {name: _filled(pool, landed.values()) for name, pool in pools.items()}
    found = existing_problems.all_of(parsed, site, config, models, wanted)
    problems += [Problem(key=key, what=what, consequence=cost, fix=fix) for key, what, cost, fix in found]
    if problems or parsed.problems:
        return None, problems
    cpu_pools = [plan.pool for plan in landed.values() if plan.pool.name not in pools]
    warnings = {index: tuple(_warnings(models[index], plan, wanted)) for index, plan in landed.items()}
    plan = _cloud(site, config, (*pools.values(), *cpu_pools))
    return Site(cloud=plan, serving=landed, warnings=warnings), problems


def _landed(
    config: ExistingConfig, models: Mapping[int, "ModelPlan"], pools: Mapping[str, PoolPlan]
) -> tuple[dict[int, ServingPlan], list[Problem]]:
    """How each model runs that has somewhere to run."""
    plans: dict[int, ServingPlan] = {}
    problems: list[Problem] = []
    for index, model in models.items():
        pool = _cpu_pool(model) if model.config.backend == "cpu" else pools.get(model.config.pool or "")
        if pool is None:
            continue  # said of the model
        found = serving.placement_problems(
            model.config, model.memory, pool, f"models[{index}]", nodes=model.nodes, fast_network=True
        )
        problems += found
        if not found:
            rate = ReadRate(gb_s=config.read_mb_s / 1000 * model.nodes, source="existing.read_mb_s of the stack")
            plans[index] = serving.plan_serving(
                model.config, model.memory, nodes=model.nodes, pool=pool, rate=rate, notice=_NO_SPOT
            )
    return plans, problems


def _filled(pool: PoolPlan, plans: Iterable[ServingPlan]) -> int:
    """Nodes that the models on a pool fill."""
    return nodes_needed(pool, [(p.replicas * p.group_size, p.gpus_per_pod) for p in plans if p.pool is pool])


def _cloud(site: SiteConfig, config: ExistingConfig, pools: tuple[PoolPlan, ...]) -> CloudPlan:
    return CloudPlan(
        name=EXISTING,
        region="",
        cluster=ClusterConfig(),
        system_instance_type="",
        network=NetworkPlan(
            cidr="",
            service_cidr="",
            pod_cidr="",
            zones=(),
            peered_cidrs=(),
            subnets=(),
            nat_per_zone=False,
            existing_id=None,
        ),
        pools=pools,
        storage=StoragePlan(
            kind="class",
            capacity_gib=config.volume_gib,
            throughput_mb_s_per_tib=0,
            # Another of either is another volume, with nothing on it.
            zone=f"{config.storage_class}-{config.access_mode}",
            node_cache=False,
            keep_data=True,
        ),
        images=site.images,
        spot_notice=_NO_SPOT,
        brings=_BRINGS if config.install_leader_worker_set else _BRINGS | {"lws"},
        gpu_runtime_class=None,
        mig_strategy="mixed",
        allow_replacement=site.allow_replacement,
        aws=site.aws,
        gcp=site.gcp,
        azure=site.azure,
        existing=config,
        hugging_face_token=site.hugging_face_token,
        key_limits=site.key_limits,
        cost=CostEstimate(
            lines=(), usd_per_month=None, note="The cluster is there already: nothing is added to its cost."
        ),
        quotas=(),
    )


def _pool(nodes: ExistingNodesConfig) -> PoolPlan:
    slices = gpus()[nodes.gpu].mig_slices.get(nodes.mig_profile or "", 1)
    tolerations = tuple(Taint(key=taint.key, value=taint.value, effect=taint.effect) for taint in nodes.tolerations)
    return PoolPlan(
        name=nodes.name,
        gpu=nodes.gpu,
        gpus_per_node=nodes.gpus_per_node,
        gpu_resource=nodes.resource,
        units_per_node=nodes.gpus_per_node * slices,
        mig_profile=nodes.mig_profile,
        mig_name=None,
        time_slicing=None,
        vcpus=nodes.vcpus,
        memory_gib=nodes.memory_gib,
        local_nvme_gb=0,
        disk_gib=nodes.disk_gib,
        rdma_interfaces=0,
        fabric=None,
        max_price_usd_h=None,
        node_selector=dict(nodes.node_selector),
        tolerations=tolerations,
        # What its nodes have in common, nobody has said.
        together=(),
        node_groups=(_nodes(nodes.name, nodes.nodes),),
    )


def _cpu_pool(model: "ModelPlan") -> PoolPlan:
    """Any nodes. One "node" is what a pod of this model asks for; there are as many as replicas, so that an update does
    not wait for room for another one."""
    ranks, processes = model.world_size, 2 + min(model.config.max_batch_size, _CPU_MOST_STREAMS)
    memory_mib = math.ceil(sum(rank.total_bytes for rank in model.memory) / GIB * 1024)
    memory_mib += _CPU_POD_MIB + _CPU_PROCESS_MIB * processes + serving.FRONTEND_MIB
    # No pool of the stack can have this name.
    name = f"cpu/{model.name}"
    return PoolPlan(
        name=name,
        gpu="",
        gpus_per_node=ranks,
        gpu_resource=None,
        units_per_node=ranks,
        mig_profile=None,
        mig_name=None,
        time_slicing=None,
        vcpus=math.ceil(ranks * _CPU_RANK_MILLIS / 1000 / serving.USABLE),
        memory_gib=memory_mib / 1024 / serving.USABLE,
        local_nvme_gb=0,
        disk_gib=_CPU_DISK_GIB,
        rdma_interfaces=0,
        fabric=None,
        max_price_usd_h=None,
        node_selector={},
        tolerations=(),
        together=(),
        node_groups=(_nodes(name, max(1, model.config.serving.replicas)),),
    )


def _nodes(name: str, count: int) -> NodeGroupPlan:
    return NodeGroupPlan(
        name=name,
        capacity="on-demand",
        priority=0,
        instance_types=(),
        zones=(),
        min_nodes=0,
        max_nodes=count,
        reservation=None,
        labels={},
        taints=(),
        startup_taints=(),
        allocatable={},
    )


def _warnings(model: "ModelPlan", plan: ServingPlan, wanted: Mapping[str, int]) -> Iterator[str]:
    # Neither network nor image of these nodes is known, and CPU pods have no number of nodes.
    yield from serving.placement_warnings(
        model.config, plan, rdma=True, own_image=True, nodes_filled=-1, notice=_NO_SPOT
    )
    if wanted.get(plan.pool.name, 0) >= sum(group.max_nodes for group in plan.pool.node_groups):
        yield (
            f"the models fill the nodes {plan.pool.name}: another engine has none to be built on, and `pulumi up` "
            "waits for one until it gives up; have one more"
        )
