"""What each rank holds: weights exactly as they are dealt, KV cache, and estimates for the rest."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from planner.config import ModelConfig
from planner.gpus import gpus
from planner.model import ModelFacts
from planner.tensors import Split, Tensor, layer_tensors

MIB, GIB = 1 << 20, 1 << 30

DRIVER_RESERVE = 0.015
"""Part of nominal GPU memory that programs never see: an 80 GiB H100 reports 79.10 GiB (TensorRT-LLM, memory.md)."""

CONTEXT_BYTES = 1 * GIB
"""Estimate: CUDA context and libraries. The log in TensorRT-LLM's memory.md leaves 0.76 GiB to them."""

COLLECTIVES_BYTES = GIB // 2
"""Estimate: NCCL and all-reduce buffers of a rank that has peers."""

CPU_PROCESS_BYTES = 256 * MIB
"""Estimate: one tritonserver with its Python backend process and numpy."""

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Memory of one rank, in bytes. `activation_bytes` and `runtime_bytes` are estimates.

    `capacity_bytes` and `margin_bytes` are None on the CPU backend: the planner does not look at the host.
    `kv_tokens` is what the KV cache holds; a rank fits when that is at least one request of max_seq_len tokens.
    """

    rank: int
    tp_rank: int
    pp_rank: int
    first_layer: int
    layer_count: int
    weights_bytes: int
    kv_bytes_per_token: int
    activation_bytes: int
    runtime_bytes: int
    capacity_bytes: int | None
    kv_tokens: int
    margin_bytes: int | None
    fits: bool

    @property
    def total_bytes(self) -> int:
        """Weights, activations, runtime and a full KV cache."""
        return (
            self.weights_bytes + self.activation_bytes + self.runtime_bytes + self.kv_tokens * self.kv_bytes_per_token
        )


def rank_memory(model: ModelConfig, facts: ModelFacts) -> tuple[RankMemory, ...]:
    """The memory of every rank, rank = pp_rank * TP + tp_rank. The sharding must be legal (planner.sharding)."""
    stages = stage_memory(model, facts)
    return tuple(
        replace(stage, rank=stage.rank + tp_rank, tp_rank=tp_rank)
        for stage in stages
        for tp_rank in range(model.tensor_parallel)
    )


def stage_memory(model: ModelConfig, facts: ModelFacts) -> tuple[RankMemory, ...]:
    """The first rank of every PP stage; its TP peers hold the same, since all padding is equal among them."""
    split = pp_layers(facts.num_layers, model.pipeline_parallel)
    firsts = [sum(split[:stage]) for stage in range(len(split))]
    return tuple(_stage(model, facts, stage, firsts[stage], split[stage]) for stage in range(len(split)))


def pp_layers(layers: int, stages: int) -> list[int]:
    """Layers per PP stage: as even as can be, the first stages one more (TensorRT-LLM, Mapping.pp_layers)."""
    base, extra = divmod(layers, stages)
    return [base + (stage < extra) for stage in range(stages)]


def weight_format(model: ModelConfig, facts: ModelFacts) -> tuple[str, int | None]:
    """Number format of the linear layers, and how many inputs share a scale (None: all of them)."""
    stored = facts.checkpoint_quantization
    if model.backend != "cpu" and stored:
        return stored.weights, stored.group_size
    weights = model.quantization.weights
    # quantize.py's --awq_block_size default; NVFP4 is defined with blocks of 16.
    return weights, {"int4_awq": 128, "w4a8_awq": 128, "nvfp4": 16}.get(weights)


def on_gpu(stages: tuple[RankMemory, ...], model: ModelConfig) -> tuple[RankMemory, ...]:
    """The same stages on `model`'s GPU or MIG slice: what they need does not depend on it, what is left does."""
    return tuple(replace(stage, **_room(model, stage)) for stage in stages)


def _stage(model: ModelConfig, facts: ModelFacts, stage: int, first: int, count: int) -> RankMemory:
    needs = RankMemory(
        rank=stage * model.tensor_parallel,
        tp_rank=0,
        pp_rank=stage,
        first_layer=first,
        layer_count=count,
        weights_bytes=_weights(model, facts, stage, first, count),
        kv_bytes_per_token=_kv_bytes_per_token(model, facts, count),
        activation_bytes=_activation_bytes(model, facts),
        runtime_bytes=_runtime_bytes(model, facts),
        capacity_bytes=None,
        kv_tokens=0,
        margin_bytes=None,
        fits=False,
    )
    return replace(needs, **_room(model, needs))


def _room(model: ModelConfig, needs: RankMemory) -> dict[str, Any]:
    """What the device leaves for the KV cache of a stage."""
    capacity = _capacity_bytes(model)
    if capacity is None:
        kv_tokens = model.serving.kv_cache_tokens or 0
        return {"kv_tokens": kv_tokens, "fits": kv_tokens >= model.max_seq_len}
    left = capacity - needs.weights_bytes - needs.activation_bytes - needs.runtime_bytes
    free, per_token = max(0, left), needs.kv_bytes_per_token
    budget = int(free * model.serving.kv_cache_free_gpu_mem_fraction)
    block = model.build.tokens_per_block
    kv_tokens = budget // per_token // block * block
    return {
        "capacity_bytes": capacity,
        "kv_tokens": kv_tokens,
        # Below zero by as much as the rank lacks, were nothing but one request in the cache.
        "margin_bytes": (budget if free else left) - model.max_seq_len * per_token,
        "fits": kv_tokens >= model.max_seq_len,
    }


def _weights(model: ModelConfig, facts: ModelFacts, stage: int, first: int, count: int) -> int:
    tp = model.tensor_parallel
    fmt, group = weight_format(model, facts)
    width = DTYPE_BYTES[model.dtype]
    if facts.moe is None:
        moe_layers = 0
    else:
        moe_layers = sum(layer not in facts.moe.dense_layers for layer in range(first, first + count))
    total = moe_layers * _layer_bytes(facts, tp, fmt, group, width, moe=True) if moe_layers else 0
    if count > moe_layers:
        total += (count - moe_layers) * _layer_bytes(facts, tp, fmt, group, width, moe=False)
    return total + width * _end_elements(model, facts, stage)


def _end_elements(model: ModelConfig, facts: ModelFacts, stage: int) -> int:
    """Embedding on the first stage, final norm and LM head on the last; both kept in the model's dtype."""
    tp, last = model.tensor_parallel, model.pipeline_parallel - 1
    vocabulary_slice = -(-facts.vocab_size // tp) * facts.hidden_size
    # convert_checkpoint.py splits the embedding only with --use_parallel_embedding, which is off by default.
    embedding = facts.vocab_size * facts.hidden_size if model.backend == "tensorrt" else vocabulary_slice
    shared = facts.tied_embeddings and last == 0 and model.backend != "tensorrt"
    elements = embedding if stage == 0 else 0
    if stage == last:
        elements += facts.hidden_size + (0 if shared else vocabulary_slice)
    return elements


@lru_cache(maxsize=4096)
def _layer_bytes(facts: ModelFacts, tp: int, fmt: str, group: int | None, width: int, *, moe: bool) -> int:
    return sum(_tensor_bytes(tensor, facts, tp, fmt, group, width) for tensor in layer_tensors(facts, moe=moe))


def _tensor_bytes(tensor: Tensor, facts: ModelFacts, tp: int, fmt: str, group: int | None, width: int) -> int:
    outputs, inputs = tensor.outputs, tensor.inputs
    if tensor.split is Split.COLUMN:
        outputs = -(-outputs // tp)
    elif tensor.split is Split.ROW:
        inputs = -(-inputs // tp)
    elif tensor.split is Split.KV:
        outputs = -(-facts.num_kv_heads // tp) * facts.head_size
    quantised = tensor.linear and (tensor.expert or fmt != "mxfp4")
    matrix = _matrix_bytes(fmt if quantised else "none", outputs, inputs, group, width)
    return tensor.count * (matrix + (outputs * width if tensor.bias else 0))


def _matrix_bytes(fmt: str, outputs: int, inputs: int, group: int | None, width: int) -> int:
    """Values and scales of one matrix. Scales as in TensorRT-LLM's quantised layers and the OCP MX specification."""
    elements = outputs * inputs
    groups = outputs * -(-inputs // group) if group else 0
    match fmt:
        case "fp8":
            return elements + 8
        case "fp8_block":
            return elements + 4 * -(-outputs // (group or 1)) * -(-inputs // (group or 1))
        case "int8_wo":
            return elements + 2 * outputs
        case "int8_sq":
            return elements + 8 * outputs
        case "int4_wo":
            return elements // 2 + 2 * outputs
        case "int4_awq" | "w4a8_awq":
            return elements // 2 + 2 * groups + 2 * inputs
        case "int4_gptq":
            return elements // 2 + 4 * groups
        case "nvfp4":
            return elements // 2 + groups + 8
        case "mxfp4":
            return elements // 2 + groups
        case _:
            return elements * width


def _kv_bytes_per_token(model: ModelConfig, facts: ModelFacts, layers: int) -> int:
    """2 * layers * ceil(KV heads / TP) * head size * width (TensorRT-LLM, memory.md); MLA caches one latent vector.

    MLA: kv_lora_rank + qk_rope_head_dim per layer, whole on every TP rank (arXiv:2405.04434, section 2.1).
    A sliding window (Gemma 2, gpt-oss) would hold less; it is counted as full attention.
    """
    width = 1 if model.quantization.kv_cache != "none" else DTYPE_BYTES[model.dtype]
    if facts.mla:
        return layers * (facts.mla.kv_lora_rank + facts.mla.qk_rope_head_dim) * width
    return 2 * layers * -(-facts.num_kv_heads // model.tensor_parallel) * facts.head_size * width


def _activation_bytes(model: ModelConfig, facts: ModelFacts) -> int:
    """Estimate: the tensors of one layer alive at once, for the most tokens of a step.

    TensorRT reuses memory between layers, so one layer counts, and TP divides what it splits (memory.md). Alive at
    once: 4 of hidden size, Q, K and V twice (before and after RoPE), 3 of the feed-forward width. For Llama-2-7B and
    8192 tokens that is 1156 MiB; memory.md's log shows 1134 MiB for such a model.
    """
    tp = model.tensor_parallel
    tokens = model.max_seq_len if model.backend == "cpu" else model.max_num_tokens
    heads = facts.num_heads + 2 * max(facts.num_kv_heads, tp)
    width_per_token = 4 * facts.hidden_size + (2 * heads * facts.head_size + 3 * facts.intermediate_size) // tp
    if facts.moe:
        routed = facts.moe.experts_per_token * (facts.hidden_size + 3 * facts.moe.expert_size // tp)
        width_per_token = max(width_per_token, 4 * facts.hidden_size + 2 * heads * facts.head_size // tp + routed)
    return tokens * width_per_token * DTYPE_BYTES[model.dtype]


def _runtime_bytes(model: ModelConfig, facts: ModelFacts) -> int:
    """Estimate: context, collectives, and float32 logits of a full batch."""
    logits = 4 * model.max_batch_size * model.build.max_beam_width * facts.vocab_size
    if model.backend == "cpu":
        return CPU_PROCESS_BYTES + logits
    return CONTEXT_BYTES + logits + (COLLECTIVES_BYTES if model.world_size > 1 else 0)


def _capacity_bytes(model: ModelConfig) -> int | None:
    gpu = gpus()[model.gpu] if model.gpu else None
    if gpu is None:
        return None
    slice_gib = gpu.mig_gib.get(model.mig_profile) if model.mig_profile else None
    # The catalogue's MIG figures are what nvidia-smi reports as usable; a whole GPU's is nominal.
    return int(slice_gib * GIB) if slice_gib else int(gpu.memory_mib * MIB * (1 - DRIVER_RESERVE))
