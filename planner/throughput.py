"""How fast a replica answers: an estimate from the data sheets' bandwidth and arithmetic (a roofline)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from planner.config import ModelConfig
from planner.gpus import gpus
from planner.instances import InstanceType
from planner.memory import DTYPE_BYTES, RankMemory, weight_format
from planner.model import ModelFacts
from planner.peaks import Peaks, peaks
from planner.tensors import Split, layer_tensors

SOURCE = "roofline (data-sheet peaks, no measurement)"

MEMORY_EFFICIENCY = 0.8
MATH_EFFICIENCY = 0.6
ATTENTION_EFFICIENCY = 0.4
LINK_EFFICIENCY = 0.6
LAUNCH_S = 8e-6
"""Estimate: what a layer's kernels cost in time besides their work, seconds per layer and step."""
ALL_REDUCE_S = 10e-6
STEP_S = 1e-3
"""Estimate: scheduling, sampling and detokenising between two steps, seconds."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One request, in tokens."""

    prompt_tokens: int
    output_tokens: int

    @property
    def tokens(self) -> int:
        """What its KV cache holds at its end."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, kw_only=True)
class Interconnect:
    """What a replica's ranks speak over. `nvlink` is that of the GPU's data sheet; without it, PCIe through the host.

    `network_gbps` is of a whole node, Gbit/s; 0 where nothing is known, which is then counted as 10.
    """

    nvlink: bool
    network_gbps: float = 0.0
    rdma: bool = False


def interconnect(instance: InstanceType) -> Interconnect:
    """The interconnect of an instance type. Azure's NC sizes have PCIe cards of GPUs that others have on boards."""
    bridged = instance.cloud == "azure" and instance.name.startswith("Standard_NC")
    return Interconnect(
        nvlink=peaks()[instance.gpu].nvlink_gb_s > 0 and not bridged,
        network_gbps=instance.network_gbps or 0.0,
        rdma=instance.rdma != "none",
    )


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """An estimate for ONE replica that decodes `batch` sequences at once, each finished one replaced by the next.

    `output_tokens_per_s` counts answers only, over the whole replica. `time_to_first_token_s` is a 95th percentile
    for prompts that arrive at random at the rate that keeps `batch` sequences decoding; waiting for one of the
    `batch` places is not in it. `inter_token_latency_s` is the mean. `source` says what the figures rest on.
    """

    batch: int
    output_tokens_per_s: float
    time_to_first_token_s: float
    inter_token_latency_s: float
    source: str


def throughput(
    model: ModelConfig,
    facts: ModelFacts,
    memory: tuple[RankMemory, ...],
    workload: Workload,
    *,
    interconnect: Interconnect,
    batch: int | None = None,
) -> Throughput:
    """The roofline of a resolved model on a GPU; without a `batch`, that of the largest that fits."""
    batch = batch or largest_batch(model, memory, workload)
    stages = tuple(_stages(model, facts, memory, interconnect))
    # Each stage works on one micro-batch of sequences while the others work on theirs.
    share = batch / len(stages)
    arriving = share / workload.output_tokens
    context = workload.prompt_tokens + workload.output_tokens / 2
    step = max(stage.seconds(share, context, arriving * workload.prompt_tokens, workload) for stage in stages)
    decode = max(stage.seconds(share, context, 0, workload) for stage in stages)
    prompt = sum(stage.seconds(share, context, workload.prompt_tokens, workload) for stage in stages)
    alone = max(prompt - decode * len(stages), 0.0)
    return Throughput(
        batch=batch,
        output_tokens_per_s=share / step,
        time_to_first_token_s=step + prompt + _queue_p95(alone / len(stages), 1 - decode / step),
        inter_token_latency_s=step * len(stages),
        source=SOURCE,
    )


def largest_batch(model: ModelConfig, memory: tuple[RankMemory, ...], workload: Workload) -> int:
    """Sequences that the fullest rank's KV cache and max_batch_size allow at once, at least 1.

    A sequence needs all its blocks to its last token: guaranteed_no_evict admits no more. With PP, max_batch_size is
    that of a micro-batch.
    """
    block = model.build.tokens_per_block
    needed = -(-workload.tokens // block) * block
    fitting = min(rank.kv_tokens for rank in memory) // needed
    return max(1, min(fitting, model.max_batch_size * model.pipeline_parallel))


def _queue_p95(service: float, load: float) -> float:
    """95th percentile of the wait in a queue of equal jobs that arrive at random (M/D/1 in its diffusion limit)."""
    if load <= 0.05:
        return 0.0
    return service / (2 * (1 - load)) * math.log(load / 0.05)


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A PP stage on one rank; bytes and FLOP are of that rank and per step or token as named."""

    layers: int
    dense_bytes: float
    expert_bytes: float
    experts: int
    experts_per_token: int
    dense_flop: float
    head_flop: float
    attention_flop: float
    kv_bytes: int
    memory_bytes_per_s: float
    linear_flop_per_s: float
    attention_flop_per_s: float
    link_s_per_token: float
    link_s: float
    hop_s_per_token: float

    def seconds(self, sequences: float, context: float, prefill: float, workload: Workload) -> float:
        """One step: `sequences` decode one token each at a mean `context`, and `prefill` prompt tokens pass too."""
        tokens = sequences + prefill
        if tokens <= 0:
            return 0.0
        touched = 1 - (1 - self.experts_per_token / self.experts) ** tokens if self.experts else 0.0
        read = (self.dense_bytes + touched * self.expert_bytes) / self.memory_bytes_per_s
        ends = sequences + prefill / workload.prompt_tokens
        linear = max(read, (tokens * self.dense_flop + ends * self.head_flop) / self.linear_flop_per_s)
        decode_attention = sequences * context * self.kv_bytes / self.memory_bytes_per_s
        prefill_attention = prefill * workload.prompt_tokens / 2 * self.attention_flop / self.attention_flop_per_s
        links = tokens * (self.link_s_per_token + self.hop_s_per_token) + self.link_s
        return linear + decode_attention + prefill_attention + links + self.layers * LAUNCH_S + STEP_S


def _stages(
    model: ModelConfig, facts: ModelFacts, memory: tuple[RankMemory, ...], links: Interconnect
) -> Iterator[_Stage]:
    if not model.gpu:
        raise ValueError("a throughput needs a GPU")
    tp, peak = model.tensor_parallel, peaks()[model.gpu]
    part = _mig_share(model)
    weights, _ = weight_format(model, facts)
    width = DTYPE_BYTES[model.dtype]
    last = model.pipeline_parallel - 1
    link, latency = _tp_link(model, peak, links)
    ring = 2 * (tp - 1) / tp * facts.hidden_size * width * 2 / link if tp > 1 else 0.0
    hop = facts.hidden_size * width / _pp_link(model, peak, links) if last else 0.0
    for rank in (rank for rank in memory if rank.tp_rank == 0):
        moe_layers = _moe_layers(facts, rank.first_layer, rank.layer_count)
        dense, experts, active = _elements(facts, tp, rank.layer_count, moe_layers)
        expert_bytes = experts * _bits(weights, width) / 8
        embedding = facts.vocab_size * facts.hidden_size * width
        unread = embedding if rank.pp_rank == 0 and not (facts.tied_embeddings and last == 0) else 0
        yield _Stage(
            layers=rank.layer_count,
            dense_bytes=max(rank.weights_bytes - expert_bytes - unread, 0.0),
            expert_bytes=expert_bytes,
            experts=facts.moe.experts if facts.moe else 0,
            experts_per_token=facts.moe.experts_per_token if facts.moe else 0,
            dense_flop=2 * (dense + active),
            head_flop=2 * facts.hidden_size * facts.vocab_size / tp if rank.pp_rank == last else 0.0,
            attention_flop=4 * rank.layer_count * facts.num_heads / tp * facts.head_size,
            kv_bytes=rank.kv_bytes_per_token,
            memory_bytes_per_s=peak.memory_gb_s * 1e9 * part * MEMORY_EFFICIENCY,
            linear_flop_per_s=_tflops(weights, peak) * 1e12 * part * MATH_EFFICIENCY,
            attention_flop_per_s=peak.tflops_16 * 1e12 * part * ATTENTION_EFFICIENCY,
            link_s_per_token=rank.layer_count * ring,
            link_s=rank.layer_count * 2 * latency if tp > 1 else 0.0,
            hop_s_per_token=hop / tp,
        )


def _tflops(weights: str, peak: Peaks) -> float:
    """The arithmetic of a weight format; weight-only formats compute in 16 bits, as does what a GPU has no unit for."""
    if weights == "nvfp4" and peak.tflops_4:
        return peak.tflops_4
    eight_bits = weights in ("fp8", "fp8_block", "w4a8_awq", "nvfp4") and peak.fp8
    if eight_bits or weights == "int8_sq":
        return peak.tflops_8 or peak.tflops_16
    return peak.tflops_16


def _bits(weights: str, width: int) -> float:
    """Bits of a stored weight with its share of the scales."""
    bits = {"fp8": 8, "fp8_block": 8, "int8_wo": 8, "int8_sq": 8, "int4_wo": 4, "mxfp4": 4.25, "nvfp4": 4.5}
    return bits.get(weights, 4.25 if weights.startswith(("int4", "w4")) else 8 * width)


def _mig_share(model: ModelConfig) -> float:
    """The part of a GPU's bandwidth and arithmetic that a MIG profile has: its compute slices of seven (A30: four)."""
    if not model.mig_profile or not model.gpu:
        return 1.0
    slices = max(int(profile.partition("g")[0]) for profile in gpus()[model.gpu].mig_gib)
    return int(model.mig_profile.partition("g")[0]) / slices


def _tp_link(model: ModelConfig, peak: Peaks, links: Interconnect) -> tuple[float, float]:
    """Bytes/s of one direction that an all-reduce has, and its latency in seconds."""
    if model.tensor_parallel > model.gpus_per_node:
        return _network(model, links), 3 * ALL_REDUCE_S
    return _within_node(peak, links), ALL_REDUCE_S


def _pp_link(model: ModelConfig, peak: Peaks, links: Interconnect) -> float:
    return _network(model, links) if model.world_size > model.gpus_per_node else _within_node(peak, links)


def _within_node(peak: Peaks, links: Interconnect) -> float:
    one_way = peak.nvlink_gb_s / 2 if links.nvlink and peak.nvlink_gb_s else peak.pcie_gb_s / 2
    return one_way * 1e9 * LINK_EFFICIENCY


def _network(model: ModelConfig, links: Interconnect) -> float:
    return (links.network_gbps or 10) / 8 * 1e9 / model.gpus_per_node * LINK_EFFICIENCY


def _moe_layers(facts: ModelFacts, first: int, count: int) -> int:
    return sum(layer not in facts.moe.dense_layers for layer in range(first, first + count)) if facts.moe else 0


@lru_cache(maxsize=4096)
def _elements(facts: ModelFacts, tp: int, layers: int, moe_layers: int) -> tuple[float, float, float]:
    """Linear weights of a rank: all but the experts', the experts', and those of the experts that one token uses."""
    dense = experts = 0.0
    for moe, count in ((True, moe_layers), (False, layers - moe_layers)):
        for tensor in layer_tensors(facts, moe=moe) if count else ():
            part = 1 if tensor.split is Split.NONE else tp
            if tensor.expert:
                experts += count * tensor.elements / part
            elif tensor.inputs > 1:
                dense += count * tensor.elements / part
    active = experts * facts.moe.experts_per_token / facts.moe.experts if facts.moe else 0.0
    return dense, experts, active
