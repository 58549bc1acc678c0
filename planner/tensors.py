"""A model's weight tensors and how tensor parallelism splits each: one list for counts, memory and sharding."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from planner.model import Mla, ModelFacts, Moe


class Split(Enum):
    """How TensorRT-LLM deals a tensor to TP ranks (its ColumnLinear, RowLinear, QKV and Embedding)."""

    COLUMN = auto()
    """Outputs are divided."""
    ROW = auto()
    """Inputs are divided; a bias is whole on every rank."""
    KV = auto()
    """Outputs are whole KV heads, repeated where there are fewer than ranks."""
    NONE = auto()
    """Whole on every rank."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """`count` equal matrices [outputs, inputs], each with a bias of [outputs] if `bias`. `linear`: may be quantised."""

    name: str
    outputs: int
    inputs: int
    split: Split
    count: int = 1
    bias: bool = False
    linear: bool = True
    expert: bool = False

    @property
    def elements(self) -> int:
        return self.count * self.outputs * (self.inputs + self.bias)


def parameters(facts: ModelFacts) -> int:
    """All weights of the model, in elements; tied embeddings count once."""
    moe_layers = facts.num_layers - len(facts.moe.dense_layers) if facts.moe else 0
    moe = sum(tensor.elements for tensor in layer_tensors(facts, moe=True)) if moe_layers else 0
    dense = sum(tensor.elements for tensor in layer_tensors(facts, moe=False)) if moe_layers < facts.num_layers else 0
    ends = facts.vocab_size * facts.hidden_size * (1 if facts.tied_embeddings else 2) + facts.hidden_size
    return moe_layers * moe + (facts.num_layers - moe_layers) * dense + ends


def layer_tensors(facts: ModelFacts, *, moe: bool) -> tuple[Tensor, ...]:
    """The tensors of one decoder layer, with experts (`moe`) or a dense feed-forward network."""
    attention = _mla(facts, facts.mla) if facts.mla else _attention(facts)
    experts = facts.moe
    ffn = (
        _experts(facts, experts)
        if moe and experts
        else _ffn("mlp", facts.hidden_size, facts.intermediate_size, facts.mlp_bias)
    )
    norms = _vector("norms", facts.hidden_size, facts.family.norms_per_layer)
    return (*attention, *ffn, norms)


def _attention(facts: ModelFacts) -> Iterator[Tensor]:
    family, hidden = facts.family, facts.hidden_size
    queries, keys = facts.num_heads * facts.head_size, facts.num_kv_heads * facts.head_size
    qkv_bias = family.qkv_bias or facts.attention_bias
    output_bias = family.output_bias or (facts.attention_bias and not family.qkv_bias)
    yield Tensor(name="q", outputs=queries, inputs=hidden, split=Split.COLUMN, bias=qkv_bias)
    yield Tensor(name="kv", outputs=keys, inputs=hidden, split=Split.KV, count=2, bias=qkv_bias)
    yield Tensor(name="o", outputs=hidden, inputs=queries, split=Split.ROW, bias=output_bias)
    if family.qk_norm:
        yield _vector("qk_norm", facts.head_size, 2)
    if family.attention_sinks:
        yield _vector("sinks", facts.num_heads, 1)


def _mla(facts: ModelFacts, mla: Mla) -> Iterator[Tensor]:
    hidden, heads = facts.hidden_size, facts.num_heads
    queries = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    if mla.q_lora_rank is None:
        yield Tensor(name="q", outputs=queries, inputs=hidden, split=Split.COLUMN)
    else:
        yield Tensor(name="q_a", outputs=mla.q_lora_rank, inputs=hidden, split=Split.NONE)
        yield _vector("q_a_norm", mla.q_lora_rank, 1)
        yield Tensor(name="q_b", outputs=queries, inputs=mla.q_lora_rank, split=Split.COLUMN)
    yield Tensor(name="kv_a", outputs=mla.kv_lora_rank + mla.qk_rope_head_dim, inputs=hidden, split=Split.NONE)
    yield _vector("kv_a_norm", mla.kv_lora_rank, 1)
    expanded = heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    yield Tensor(name="kv_b", outputs=expanded, inputs=mla.kv_lora_rank, split=Split.COLUMN)
    yield Tensor(name="o", outputs=hidden, inputs=heads * mla.v_head_dim, split=Split.ROW)


def _experts(facts: ModelFacts, moe: Moe) -> Iterator[Tensor]:
    family = facts.family
    yield Tensor(
        name="router",
        outputs=moe.experts,
        inputs=facts.hidden_size,
        split=Split.NONE,
        bias=family.router_bias,
        linear=False,
    )
    if moe.selection_bias:
        yield _vector("selection_bias", moe.experts, 1)
    yield from _ffn("experts", facts.hidden_size, moe.expert_size, family.expert_bias, count=moe.experts)
    if moe.shared_size:
        yield from _ffn("shared", facts.hidden_size, moe.shared_size, bias=False)


def _ffn(name: str, hidden: int, size: int, bias: bool, count: int = 1) -> Iterator[Tensor]:
    expert = name == "experts"
    yield Tensor(
        name=f"{name}.gate_up",
        outputs=size,
        inputs=hidden,
        split=Split.COLUMN,
        count=2 * count,
        bias=bias,
        expert=expert,
    )
    yield Tensor(
        name=f"{name}.down", outputs=hidden, inputs=size, split=Split.ROW, count=count, bias=bias, expert=expert
    )


def _vector(name: str, length: int, count: int) -> Tensor:
    return Tensor(name=name, outputs=length, inputs=1, split=Split.NONE, count=count, linear=False)
