"""Every way to run a model on one GPU type: format, sharding, MIG profile. What is legal, fits and leaves a margin."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from planner import sharding
from planner.clouds import cloud_facts
from planner.config import ModelConfig, QuantizationConfig
from planner.gpus import gpus
from planner.instances import InstanceType
from planner.memory import GIB, RankMemory, on_gpu, stage_memory, weight_format
from planner.model import ModelFacts
from planner.model_problems import cross_field_problems
from planner.plan import suitability_problems
from planner.pools import has_fast_network
from planner.target import Target

MARGIN = 0.02
"""Share of a GPU's memory that a fit must leave: activations, runtime and NCCL buffers are estimates."""

NODES_PER_GROUP = (1, 2, 3, 4, 6, 8)
"""Sizes of groups that are tried, in nodes."""

MIG_MAX_NUM_TOKENS, MIG_MAX_BATCH_SIZE = 2048, 64
"""What a slice's step may hold at most: the defaults of whole GPUs take gigabytes for activations and logits."""

MAX_BATCH_SIZE = 512
"""Of a model whose stack does not say: more sequences gain little throughput, and their logits cost memory."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One replica's form. `model` is resolved but for its revision; `memory` is of the first rank of each PP stage.

    It runs on any of `instances`, which have the same GPU and as many of it. `nodes` are of one group; `per_node`
    groups share a node where it is one. `weights` is the number format of the linear layers, as it lies in memory.
    """

    model: ModelConfig
    weights: str
    memory: tuple[RankMemory, ...]
    nodes: int
    per_node: int
    instances: tuple[InstanceType, ...]

    @property
    def kv_tokens(self) -> int:
        return min(rank.kv_tokens for rank in self.memory)

    @property
    def weights_bytes(self) -> int:
        """Of a whole replica."""
        return sum(rank.weights_bytes for rank in self.memory) * self.model.tensor_parallel

    @property
    def format(self) -> str:
        """The number format of the linear layers by name, the model's own where it is not quantised."""
        return self.model.dtype if self.weights == "none" else self.weights

    @property
    def name(self) -> str:
        """For tables: `TP8 PP2 fp8`."""
        return sharding_name(self.model, self.weights)


@dataclass(frozen=True, kw_only=True)
class Miss:
    """The shape that lacked least memory; `needed_bytes` are of its fullest rank, one request in the cache."""

    model: ModelConfig
    weights: str
    needed_bytes: int
    capacity_bytes: int

    def __str__(self) -> str:
        device = " ".join(filter(None, (self.model.gpu, self.model.mig_profile)))
        needed, capacity = self.needed_bytes / GIB, self.capacity_bytes / GIB
        where = f"{sharding_name(self.model, self.weights)} on {device}"
        return f"closest: {where}, where a rank needs {needed:.1f} GiB (estimate) of {capacity:.1f}"


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What can be, how many were refused by which limit, the reasons in words, and what missed by least memory."""

    found: tuple[Shape, ...]
    refused: Counter[str]
    reasons: tuple[str, ...]
    miss: Miss | None


def sharding_name(model: ModelConfig, weights: str) -> str:
    """The degrees of parallelism, PP where there is any, and the format."""
    pp = f" PP{model.pipeline_parallel}" if model.pipeline_parallel > 1 else ""
    return f"TP{model.tensor_parallel}{pp} {model.dtype if weights == 'none' else weights}"


def shapes_of(model: ModelConfig, facts: ModelFacts, target: Target, types: Iterable[InstanceType]) -> Shapes:
    """Every shape of the model on the instance types; `model` gives all that the search does not vary."""
    return _Search(model, facts, target).shapes(types)


class _Search:
    def __init__(self, model: ModelConfig, facts: ModelFacts, target: Target) -> None:
        update: dict[str, object] = {"max_seq_len": target.context_tokens}
        if "max_batch_size" not in model.model_fields_set:
            update["max_batch_size"] = MAX_BATCH_SIZE
        self.facts, self.target = facts, target
        self.model = model.model_copy(update=update)
        self.refused = Counter[str]()
        self.reasons: dict[str, None] = {}
        self.miss: Miss | None = None
        self.stages: dict[object, tuple[RankMemory, ...]] = {}
        self.degrees: dict[str, list[int]] = {}

    def shapes(self, types: Iterable[InstanceType]) -> Shapes:
        devices: dict[tuple[str, int, str | None], list[InstanceType]] = {}
        for type_ in types:
            devices.setdefault((type_.gpu, type_.gpu_count, None), []).append(type_)
            for profile in _profiles(type_):
                devices.setdefault((type_.gpu, type_.gpu_count, profile), []).append(type_)
        found = [
            shape
            for (gpu, count, profile), instances in devices.items()
            for shape in self._on(gpu, count, profile, tuple(instances))
        ]
        return Shapes(found=tuple(found), refused=self.refused, reasons=tuple(self.reasons), miss=self.miss)

    def _on(self, gpu: str, count: int, profile: str | None, types: tuple[InstanceType, ...]) -> Iterator[Shape]:
        update: dict[str, object] = {"gpu": gpu, "gpus_per_node": count, "mig_profile": profile}
        if profile:
            update["max_num_tokens"] = min(self.model.max_num_tokens, MIG_MAX_NUM_TOKENS)
            update["max_batch_size"] = min(self.model.max_batch_size, MIG_MAX_BATCH_SIZE)
        for quantization in self._formats(gpu):
            model = self.model.model_copy(update=update | {"quantization": quantization})
            problems = [*cross_field_problems(model, "model"), *suitability_problems(model, self.facts, "model")]
            if problems:
                self.refused["format"] += 1
                self.reasons |= {f"{problem.what}: {problem.consequence}": None for problem in problems}
                continue
            enough = NODES_PER_GROUP[-1]
            for tp, pp, nodes in sorted(self._degrees(model), key=lambda each: each[2]):
                # Where fewer nodes hold a replica, more of them serve better as more replicas.
                shape = self._sharded(model, tp, pp, nodes, types) if nodes <= 2 * enough else None
                if shape:
                    enough = min(enough, nodes)
                    yield shape

    def _formats(self, gpu: str) -> Iterator[QuantizationConfig]:
        """Weights and the KV cache that goes with them: in FP8 where weights are, which needs no format of its own."""
        stored = self.facts.checkpoint_quantization
        if stored or self.model.backend == "pytorch":
            # As they are stored; the PyTorch backend quantises nothing.
            fp8 = stored is not None and stored.weights.startswith("fp8") and gpus()[gpu].capability >= (8, 9)
            yield QuantizationConfig(kv_cache="fp8" if fp8 and "fp8" in self.target.formats else "none")
            return
        for weights in self.target.formats:
            kv_cache = "fp8" if weights in ("fp8", "w4a8_awq", "nvfp4") else "none"
            yield QuantizationConfig.model_validate({"weights": weights, "kv_cache": kv_cache})

    def _degrees(self, model: ModelConfig) -> Iterator[tuple[int, int, int]]:
        """TP, PP and nodes such that ranks fill nodes, or divide one."""
        per_node = model.gpus_per_node
        for tp in self._legal_tp(model):
            if model.mig_profile:
                if tp == 1:
                    yield 1, 1, 1
                continue
            worlds = [(world, 1) for world in range(1, per_node) if per_node % world == 0]
            worlds += [(per_node * nodes, nodes) for nodes in NODES_PER_GROUP]
            for world, nodes in worlds:
                if world % tp == 0 and world // tp <= self.facts.num_layers:
                    yield tp, world // tp, nodes

    def _legal_tp(self, model: ModelConfig) -> list[int]:
        weights = model.quantization.weights
        if weights not in self.degrees:
            self.degrees[weights] = sharding.legal_tensor_parallel(model, self.facts)
        return self.degrees[weights]

    def _sharded(
        self, model: ModelConfig, tp: int, pp: int, nodes: int, types: tuple[InstanceType, ...]
    ) -> Shape | None:
        if tp > model.gpus_per_node:
            # All-reduce over an ordinary network is refused where the model is placed (planner.serving).
            types = tuple(type_ for type_ in types if has_fast_network(type_))
        if not types:
            self.refused["network"] += 1
            return None
        model = model.model_copy(update={"tensor_parallel": tp, "pipeline_parallel": pp})
        problems = sharding.check(model, self.facts, "model")
        if problems:
            self.refused["sharding"] += 1
            self.reasons |= {f"{problem.what}: {problem.consequence}": None for problem in problems}
            return None
        stages, (weights, _) = self._memory(model), weight_format(model, self.facts)
        fullest = min(stages, key=lambda stage: (stage.kv_tokens, stage.margin_bytes or 0))
        capacity, margin = fullest.capacity_bytes or 0, fullest.margin_bytes or 0
        if not fullest.fits or margin < MARGIN * capacity:
            self.refused["memory"] += 1
            miss = Miss(model=model, weights=weights, needed_bytes=capacity - margin, capacity_bytes=capacity)
            if self.miss is None or miss.needed_bytes / capacity < self.miss.needed_bytes / self.miss.capacity_bytes:
                self.miss = miss
            return None
        per_node = max(1, model.gpus_per_node // model.world_size)
        if model.mig_profile and model.gpu:
            per_node = model.gpus_per_node * gpus()[model.gpu].mig_slices[model.mig_profile]
        # As a pool gives them: of a larger node the group has no more than it needs (planner.cloud_choice).
        own = 1 if model.mig_profile else min(model.gpus_per_node, model.world_size)
        model = model.model_copy(update={"gpus_per_node": own})
        return Shape(model=model, weights=weights, memory=stages, nodes=nodes, per_node=per_node, instances=types)

    def _memory(self, model: ModelConfig) -> tuple[RankMemory, ...]:
        key = (
            model.tensor_parallel,
            model.pipeline_parallel,
            model.quantization.weights,
            model.quantization.kv_cache,
            model.max_num_tokens,
            model.max_batch_size,
        )
        if key not in self.stages:
            self.stages[key] = stage_memory(model, self.facts)
        return on_gpu(self.stages[key], model)


def _profiles(type_: InstanceType) -> list[str]:
    """MIG profiles that the type's cloud makes of it and whose usable memory is known: parts of the GPU, without those
    that have media engines."""
    if not type_.mig_capable:
        return []
    gpu = gpus()[type_.gpu]
    made = cloud_facts(type_.cloud).mig.profiles(gpu)
    whole = max((profile.partition("g")[0] for profile in gpu.mig_gib), default="")
    parts = [name for name in made if "+" not in name and name.partition("g")[0] != whole]
    return [name for name in parts if gpu.mig_gib[name]]
