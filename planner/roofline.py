"""The time of an iteration from data-sheet peaks: bytes over bandwidth, FLOP over arithmetic, messages over links."""

from dataclasses import dataclass
from functools import lru_cache

from planner.config import ModelConfig
from planner.gpus import gpus
from planner.interconnect import Interconnect, Links, links
from planner.memory import DTYPE_BYTES, RankMemory, weight_format
from planner.model import ModelFacts
from planner.peaks import Peaks, peaks
from planner.tensors import Split, layer_tensors

SOURCE = "roofline (data-sheet peaks times general efficiencies; nothing measured of this model)"

MEMORY_EFFICIENCY = 0.8
"""Part of the peak memory bandwidth that reading weights and KV cache reaches."""

MATH_EFFICIENCY = {16: 0.75, 8: 0.62, 4: 0.45}
"""Part of the dense peak that large GEMMs reach, by the bits of the format they compute in."""

ATTENTION_EFFICIENCY = 0.45
"""Part of the 16-bit dense peak that attention over prompts reaches."""

LAYER_S = 50e-6
"""What the launches and small kernels of a layer cost at least, seconds."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A PP stage on one rank. Bytes and FLOP are of that rank, per iteration or per token as named."""

    layers: int
    dense_bytes: float
    expert_bytes: float
    token_bytes: float
    kv_bytes: int
    experts: int
    experts_per_token: int
    dense_flop: float
    expert_flop: float
    head_flop: float
    attention_flop: float
    memory_bytes_per_s: float
    linear_flop_per_s: float
    head_flop_per_s: float
    attention_flop_per_s: float
    hidden_bytes: int
    last: bool
    links: Links

    def seconds(self, sequences: float, context: float, prefill: float, prompt: int) -> float:
        """One iteration of this stage."""
        tokens = sequences + prefill
        read = self.dense_bytes / self.memory_bytes_per_s
        linear = max(read, tokens * self.dense_flop / self.linear_flop_per_s)
        if self.experts:
            touched = 1 - (1 - self.experts_per_token / self.experts) ** tokens
            # Grouped GEMMs of few tokens per expert hide little of their reading.
            linear += touched * self.expert_bytes / self.memory_bytes_per_s
            linear += tokens * self.expert_flop / self.linear_flop_per_s
        head = (sequences + prefill / prompt) * self.head_flop / self.head_flop_per_s
        moved = tokens * self.token_bytes + sequences * context * self.kv_bytes
        attention = prefill * prompt / 2 * self.attention_flop / self.attention_flop_per_s
        size = tokens * self.hidden_bytes
        collectives = 2 * self.layers * self.links.all_reduce_s(size)
        hop = 0.0 if self.last else size / self.links.tensor_parallel / self.links.stage_bytes_per_s
        return linear + head + moved / self.memory_bytes_per_s + attention + collectives + hop + self.layers * LAYER_S


@dataclass(frozen=True, kw_only=True)
class RooflineSteps:
    """planner.throughput.Steps of a roofline: the stages that can be the slowest, and how many there are of all."""

    slowest: tuple[Stage, ...]
    stages: int
    prompt_tokens: int

    def seconds(self, sequences: float, context: float, prefill: float) -> float:
        return self.stages * max(
            stage.seconds(sequences, context, prefill, self.prompt_tokens) for stage in self.slowest
        )


def steps(
    model: ModelConfig,
    facts: ModelFacts,
    memory: tuple[RankMemory, ...],
    prompt_tokens: int,
    found: Interconnect,
) -> RooflineSteps:
    """The roofline of a resolved model on a GPU."""
    if not model.gpu:
        raise ValueError("a throughput needs a GPU")
    firsts = [rank for rank in memory if rank.tp_rank == 0]
    # The last stage has the LM head, the first ones a layer more where layers do not divide: one of the two is slowest.
    slowest = [firsts[-1], *firsts[:-1][:1]]
    peak = peaks()[model.gpu]
    between = links(model, peak, found)
    return RooflineSteps(
        slowest=tuple(_stage(model, facts, rank, peak, between) for rank in slowest),
        stages=len(firsts),
        prompt_tokens=prompt_tokens,
    )


def _stage(model: ModelConfig, facts: ModelFacts, rank: RankMemory, peak: Peaks, between: Links) -> Stage:
    tp, last = model.tensor_parallel, model.pipeline_parallel - 1
    compute, bandwidth = _mig_shares(model)
    weights, _ = weight_format(model, facts)
    width = DTYPE_BYTES[model.dtype]
    moe_layers = _moe_layers(facts, rank.first_layer, rank.layer_count)
    dense, experts = _elements(facts, tp, rank.layer_count, moe_layers)
    expert_bytes = experts * _bits(weights, width) / 8
    used = facts.moe.experts_per_token / facts.moe.experts if facts.moe else 0.0
    # Of the embedding only the rows of the step's tokens are read.
    embedding = facts.vocab_size * facts.hidden_size * width
    unread = embedding if rank.pp_rank == 0 and not (facts.tied_embeddings and last == 0) else 0
    bits, flop_per_s = _arithmetic(weights, peak)
    return Stage(
        layers=rank.layer_count,
        dense_bytes=max(rank.weights_bytes - expert_bytes - unread, 0.0),
        expert_bytes=expert_bytes,
        token_bytes=width * _activations(facts, tp, rank.layer_count, moe_layers),
        kv_bytes=rank.kv_bytes_per_token,
        experts=facts.moe.experts if facts.moe and moe_layers else 0,
        experts_per_token=facts.moe.experts_per_token if facts.moe else 0,
        dense_flop=2 * dense,
        expert_flop=2 * experts * used,
        head_flop=2 * facts.hidden_size * facts.vocab_size / tp if rank.pp_rank == last else 0.0,
        attention_flop=4 * rank.layer_count * facts.num_heads / tp * facts.head_size,
        memory_bytes_per_s=peak.memory_gb_s * 1e9 * bandwidth * MEMORY_EFFICIENCY,
        linear_flop_per_s=flop_per_s * compute * MATH_EFFICIENCY[bits],
        head_flop_per_s=peak.tflops_16 * 1e12 * compute * MATH_EFFICIENCY[16],
        attention_flop_per_s=peak.tflops_16 * 1e12 * compute * ATTENTION_EFFICIENCY,
        hidden_bytes=facts.hidden_size * width,
        last=rank.pp_rank == last,
        links=between,
    )


def _arithmetic(weights: str, peak: Peaks) -> tuple[int, float]:
    """Bits and FLOP/s that a weight format computes in; weight-only formats, and what a GPU has no unit for: 16."""
    if weights == "nvfp4" and peak.tflops_4:
        return 4, peak.tflops_4 * 1e12
    eight = weights == "int8_sq" or (weights in ("fp8", "fp8_block", "w4a8_awq", "nvfp4") and peak.fp8)
    if eight and peak.tflops_8:
        return 8, peak.tflops_8 * 1e12
    return 16, peak.tflops_16 * 1e12


def _bits(weights: str, width: int) -> float:
    """Bits of a stored weight with its share of the scales."""
    bits = {"fp8": 8, "fp8_block": 8, "int8_wo": 8, "int8_sq": 8, "int4_wo": 4, "mxfp4": 4.25, "nvfp4": 4.5}
    return bits.get(weights, 4.25 if weights.startswith(("int4", "w4")) else 8 * width)


def _mig_shares(model: ModelConfig) -> tuple[float, float]:
    """The parts of a GPU's arithmetic and of its bandwidth that a MIG profile has.

    Arithmetic goes by compute slices of seven (A30: four), bandwidth by memory slices of eight.
    """
    if not model.mig_profile or not model.gpu:
        return 1.0, 1.0
    gpu = gpus()[model.gpu]
    slices = max(int(profile.partition("g")[0]) for profile in gpu.mig_gib)
    compute = int(model.mig_profile.partition("g")[0]) / slices
    gib = gpu.mig_gib[model.mig_profile]
    return compute, max(1, round(8 * gib * 1024 / gpu.memory_mib)) / 8 if gib else compute


def _moe_layers(facts: ModelFacts, first: int, count: int) -> int:
    return sum(layer not in facts.moe.dense_layers for layer in range(first, first + count)) if facts.moe else 0


def _activations(facts: ModelFacts, tp: int, layers: int, moe_layers: int) -> float:
    """Elements that the kernels between GEMMs move for one token: norms, residuals, activations.

    Estimate: eight times the hidden size and three times the inner one; a token's way to its experts and back moves it
    four times for each of them.
    """
    dense = 8 * facts.hidden_size + 3 * facts.intermediate_size / tp
    if facts.moe is None:
        return layers * dense
    chosen = facts.moe.experts_per_token
    inner = chosen * facts.moe.expert_size + facts.moe.shared_size
    experts = (8 + 4 * chosen) * facts.hidden_size + 3 * inner / tp
    return moe_layers * experts + (layers - moe_layers) * dense


@lru_cache(maxsize=4096)
def _elements(facts: ModelFacts, tp: int, layers: int, moe_layers: int) -> tuple[float, float]:
    """Linear weights of a rank's layers: of the experts that tokens choose among, and all the others' first."""
    dense = experts = 0.0
    for moe, count in ((True, moe_layers), (False, layers - moe_layers)):
        for tensor in layer_tensors(facts, moe=moe) if count else ():
            part = 1 if tensor.split is Split.NONE else tp
            if tensor.expert:
                experts += count * tensor.elements / part
            elif tensor.inputs > 1:
                dense += count * tensor.elements / part
    return dense, experts
