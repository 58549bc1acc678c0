"""How a model's groups run on their pool: what a pod asks for, how long it may take to start and to end."""

import math
from collections.abc import Iterator, Sequence

from planner.clouds.facts import ReadRate
from planner.config import ModelConfig
from planner.config_problems import Finding
from planner.errors import Problem
from planner.fleet import PoolPlan, ServingPlan, SpotNotice
from planner.memory import GIB, RankMemory
from planner.object_sources import object_source

# Share of a node's CPUs and memory that pods may ask for: the kubelet, DaemonSets and drivers take the rest.
USABLE = 0.8
SHM_GIB_PER_GPU = 4

# Of a leader's pod, for its frontend, which holds 87 MiB when few ask it (measured).
FRONTEND_CPU_MILLIS, FRONTEND_MIB = 200, 512

# Nodes of a group come one after another; one that has its node waits for the last.
NODE_START_SECONDS = 900
# Launching ranks, loading kernels, allocating the KV cache and capturing CUDA graphs; an allowance, not a measurement.
INITIALISE_SECONDS = 300

# Allowances, not measurements; a build that is done ends by itself, so they only bound one that is stuck.
COMPILE_SECONDS_PER_GB = 20
# A conversion reads the checkpoint and writes its own; the compiler reads that and writes the engine.
BUILD_PASSES = 4

# Of the end of a pod: until every proxy has stopped sending to it, and from the end of the drain until the last rank is
# gone. Where a pod has less than SHORT_SECONDS for all of it, the second figures: requests in flight get the rest.
SHORT_SECONDS = 60
PRESTOP_SECONDS, SHORT_PRESTOP_SECONDS = 5, 2
EXIT_SECONDS, SHORT_EXIT_SECONDS = 15, 5
DRAIN_WITHOUT_NOTICE_SECONDS = 300


def plan_serving(
    model: ModelConfig,
    memory: tuple[RankMemory, ...],
    *,
    nodes: int,
    pool: PoolPlan,
    rate: ReadRate,
    notice: SpotNotice,
) -> ServingPlan:
    """How groups of `nodes` pods of the model run on `pool`."""
    gpus_per_pod = model.world_size // nodes
    share = gpus_per_pod / pool.units_per_node
    memory_mib = math.floor(pool.memory_gib * 1024 * USABLE * share)
    cpu_millis = math.floor(pool.vcpus * 1000 * USABLE * share)
    load = math.ceil(sum(rank.weights_bytes for rank in memory) / 1e9 / rate.gb_s)
    grace = grace_seconds(pool, notice)
    short = grace < SHORT_SECONDS
    prestop, end = (SHORT_PRESTOP_SECONDS, SHORT_EXIT_SECONDS) if short else (PRESTOP_SECONDS, EXIT_SECONDS)
    fabric = pool.fabric
    of_pod, of_node = (fabric.hugepages_pod_mib, fabric.hugepages_mib) if fabric else (0, 0)
    return ServingPlan(
        pool=pool,
        replicas=model.serving.replicas,
        group_size=nodes,
        gpus_per_pod=gpus_per_pod,
        rdma_per_pod=math.floor(pool.rdma_interfaces * share),
        hugepages_mib=min(of_pod, math.floor(of_node * share) // 2 * 2),
        shm_mib=min(SHM_GIB_PER_GPU * 1024 * gpus_per_pod, memory_mib // 4),
        cpu_millis=cpu_millis,
        memory_mib=memory_mib,
        # Small pods share one core or two with many neighbours.
        frontend_cpu_millis=min(FRONTEND_CPU_MILLIS, cpu_millis // 4),
        frontend_memory_mib=min(FRONTEND_MIB, memory_mib // 4),
        load_seconds=load,
        load_source=rate.source,
        # Twice the estimate: storage is shared, and its throughput a figure of its maker.
        startup_seconds=2 * load + INITIALISE_SECONDS + (NODE_START_SECONDS if nodes > 1 else 0),
        prestop_seconds=prestop,
        drain_seconds=grace - prestop - end,
        grace_seconds=grace,
        log_level=model.serving.log_level,
    )


def build_seconds(weights_bytes: int, load_seconds: float) -> float:
    """What the build of an engine works, without waiting for its node: an allowance from the weights' size."""
    return BUILD_PASSES * load_seconds + COMPILE_SECONDS_PER_GB * weights_bytes / 1e9


def grace_seconds(pool: PoolPlan, notice: SpotNotice) -> int:
    """From SIGTERM to SIGKILL: inside the spot notice where nodes may be spot, else long enough for long answers."""
    if any(group.capacity == "spot" for group in pool.node_groups):
        return notice.pod_seconds
    return DRAIN_WITHOUT_NOTICE_SECONDS + PRESTOP_SECONDS + EXIT_SECONDS


def placement_problems(
    model: ModelConfig,
    memory: tuple[RankMemory, ...],
    pool: PoolPlan,
    key: str,
    *,
    nodes: int,
    fast_network: bool,
    fast_types: Sequence[str] = (),
) -> list[Problem]:
    """Why the model's groups cannot run on the pool as sharded; over a `fast_network` all-reduce may cross nodes, and
    `fast_types` are instance types that have one."""
    found = [*_sharing(model, memory, pool), *_placement(model, pool, nodes, fast_network, fast_types)]
    return [Problem(key=f"{key}.{field}", what=what, consequence=cost, fix=fix) for field, what, cost, fix in found]


def _sharing(model: ModelConfig, memory: tuple[RankMemory, ...], pool: PoolPlan) -> Iterator[Finding]:
    """Time-sliced pods share a GPU's memory, and nothing holds one to its part."""
    if not pool.time_slicing:
        return
    share = f"1/{pool.time_slicing} of the GPU of pool {pool.name}"
    for rank in memory:
        needed, part = rank.weights_bytes + rank.activation_bytes + rank.runtime_bytes, rank.capacity_bytes or 0
        if needed > part / pool.time_slicing:
            what = f"{model.name} needs about {needed / GIB:.1f} GiB (estimate), more than {share}"
            yield "pool", what, "the pods of one GPU would run out of memory while they load", "lower time_slicing"
            return
    fraction = model.serving.kv_cache_free_gpu_mem_fraction
    if fraction > 1 / pool.time_slicing:
        what = f"{fraction}, on {share}"
        cost = "the first pod's KV cache would take the memory of the others, which then fail to load"
        fix = f"give at most {1 / pool.time_slicing:.2f}"
        yield "serving.kv_cache_free_gpu_mem_fraction", what, cost, fix


def _placement(
    model: ModelConfig, pool: PoolPlan, nodes: int, fast_network: bool, fast_types: Sequence[str]
) -> Iterator[Finding]:
    if model.gpus_per_node > pool.gpus_per_node:
        what = f"{model.gpus_per_node}, and a node of pool {pool.name} has {pool.gpus_per_node}"
        yield "gpus_per_node", what, "no node could hold a pod of the group", "remove it: the pool decides"
        return
    if pool.time_slicing and model.world_size > 1:
        what = f"{model.world_size} ranks on time-sliced GPUs of pool {pool.name}"
        cost = "two ranks of the group could share one GPU and its memory"
        yield "tensor_parallel", what, cost, "use one rank, or a pool without time_slicing"
    if nodes == 1:
        return
    if model.tensor_parallel > model.gpus_per_node and not fast_network:
        what = f"tensor parallel {model.tensor_parallel} spans nodes without a fast interconnect"
        cost = "each layer's all-reduce would cross the network, tens of times slower than inside a node"
        fix = f"give tensor_parallel: {model.gpus_per_node} and more pipeline_parallel"
        fix += f", or a pool of {' or '.join(fast_types)}" if fast_types else ""
        yield "tensor_parallel", what, cost, fix
    zones = pool.node_groups[0].zones
    if len(zones) > 1:
        what = f"{nodes} nodes for one replica, on pool {pool.name} in {len(zones)} zones"
        cost = "a group could be spread over zones, which costs latency at each token and money for each byte"
        yield "pool", what, cost, f"give pool {pool.name} one zone, for example `zones: [{zones[0]}]`"


def placement_warnings(
    model: ModelConfig, serving: ServingPlan, *, rdma: bool, own_image: bool, nodes_filled: int, notice: SpotNotice
) -> Iterator[str]:
    """What is allowed but slow or risky where the model runs."""
    if serving.group_size > 1 and not rdma:
        yield f"{serving.group_size} nodes without RDMA: pipeline stages exchange activations over ordinary Ethernet"
    fabric = serving.pool.fabric
    if fabric and serving.rdma_per_pod and not own_image:
        yield f"{fabric.resource or fabric.kind} needs {fabric.image_needs}"
    if fabric and serving.rdma_per_pod and fabric.exception:
        yield f"pods over {fabric.kind} cannot meet the restricted Pod Security Standard: {fabric.exception}"
    spot = any(group.capacity == "spot" for group in serving.pool.node_groups)
    if spot and serving.load_seconds > notice.seconds:
        yield (
            f"loading takes about {serving.load_seconds} s (estimate), longer than the {notice.seconds} s "
            "notice of spot nodes: with one replica each reclaim is an outage"
            if serving.replicas == 1
            else f"loading takes about {serving.load_seconds} s (estimate) after each reclaim of a spot node"
        )
    if sum(group.max_nodes for group in serving.pool.node_groups) <= nodes_filled:
        yield (
            f"the models fill pool {serving.pool.name} whole: another engine has no node to be built on, and `pulumi "
            "up` waits for one until it gives up; give max_nodes one more"
        )
    if spot and len(serving.pool.node_groups) == 1:
        yield "spot without a fallback: while there is no spot capacity, nothing is served"
    if model.source.startswith("hf://") and model.revision and len(model.revision) < 40:
        yield f"revision {model.revision} is not a full commit hash; a tag can be moved"
    if object_source(model.source) and model.revision and not model.revision.startswith(("sha256:", "etags:")):
        yield f"revision {model.revision} is a name: sha256:… of a SHA256SUMS there would pin every byte"
