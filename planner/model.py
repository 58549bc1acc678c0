"""What a model is, from its own configuration: dimensions, attention, experts, and how it is already quantised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from planner.errors import PlanError, Problem, did_you_mean, shown
from planner.untyped import as_list, as_mapping

Backend = Literal["cpu", "tensorrt", "pytorch"]
_GPU = frozenset[Backend]({"tensorrt", "pytorch"})
_PYTORCH = frozenset[Backend]({"pytorch"})


@dataclass(frozen=True, kw_only=True)
class Family:
    """What differs between families. Biases and norms are counts of tensors that other families lack.

    `backends`: TensorRT-LLM 1.2.1 builds engines for what its MODEL_MAP names; the rest run on the PyTorch backend;
    the CPU engine computes Llama's layers. `engine_pipeline`, `engine_weight_only`: whether the family's
    convert_checkpoint.py has --pp_size and --use_weight_only.
    """

    name: str
    backends: frozenset[Backend] = _GPU
    engine_pipeline: bool = True
    engine_weight_only: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    norms_per_layer: int = 2
    attention_sinks: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    tied_by_default: bool = False


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(name="llama", backends=_GPU | frozenset[Backend]({"cpu"})),
    "MistralForCausalLM": Family(name="mistral"),
    "MixtralForCausalLM": Family(name="mixtral"),
    "Qwen2ForCausalLM": Family(name="qwen2", qkv_bias=True),
    "Qwen3ForCausalLM": Family(name="qwen3", qk_norm=True),
    "Qwen3MoeForCausalLM": Family(name="qwen3_moe", qk_norm=True),
    "DeepseekV2ForCausalLM": Family(name="deepseek_v2", engine_weight_only=False),
    "DeepseekV3ForCausalLM": Family(name="deepseek_v3", backends=_PYTORCH),
    "Gemma2ForCausalLM": Family(name="gemma2", engine_pipeline=False, norms_per_layer=4, tied_by_default=True),
    "Phi3ForCausalLM": Family(name="phi3", engine_pipeline=False),
    "GptOssForCausalLM": Family(
        name="gpt_oss",
        backends=_PYTORCH,
        qkv_bias=True,
        output_bias=True,
        attention_sinks=True,
        router_bias=True,
        expert_bias=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Moe:
    """Experts of a layer. `shared_size` is the width of the experts that every token passes through (0: none)."""

    experts: int
    experts_per_token: int
    expert_size: int
    shared_size: int
    selection_bias: bool
    dense_layers: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): KV is cached as one latent vector per token."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, kw_only=True)
class CheckpointQuantization:
    """How the published weights are stored. `weights` is a format of planner.memory; `method` is the file's word."""

    method: str
    weights: str
    group_size: int | None


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A decoder-only transformer. Sizes are in elements, lengths in tokens."""

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    tied_embeddings: bool
    norm_epsilon: float
    rotary_base: float
    rope_scaling: str | None
    attention_bias: bool
    mlp_bias: bool
    moe: Moe | None
    mla: Mla | None
    checkpoint_quantization: CheckpointQuantization | None

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture]


def facts_from_hf(config: Mapping[str, Any], key: str) -> ModelFacts:
    """Facts from the content of a Hugging Face config.json; `key` names it in errors. Raises PlanError."""
    return _Reader(config, key).facts()


# Beyond any published model; a larger number is a damaged file, and would make every later sum meaningless.
_LARGEST = {"num_hidden_layers": 10_000, "num_attention_heads": 65_536, "n_routed_experts": 65_536}
_LARGEST_OF_OTHERS = 1 << 28

_STORED_WEIGHTS = {"gptq": "int4_gptq", "awq": "int4_awq", "fp8": "fp8", "mxfp4": "mxfp4"}
_COST = "memory and sharding cannot be computed; nothing was planned"


class _Reader:
    def __init__(self, config: Mapping[str, Any], key: str) -> None:
        self.config = config
        self.key = key
        self.problems: list[Problem] = []

    def facts(self) -> ModelFacts:
        architecture = self._architecture()
        family = FAMILIES[architecture]
        layers, hidden = self.integer("num_hidden_layers"), self.integer("hidden_size")
        heads = self.integer("num_attention_heads")
        # Of these two alone, Transformers' own default is one KV head per query head.
        kv_heads = self.integer("num_key_value_heads", heads if family.name in ("llama", "phi3") else None)
        mla = self._mla() if family.name.startswith("deepseek") else None
        moe = self._moe(family, layers)
        facts = ModelFacts(
            architecture=architecture,
            num_layers=layers,
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=heads if mla else kv_heads,
            head_size=mla.qk_nope_head_dim + mla.qk_rope_head_dim if mla else self._head_size(hidden, heads),
            intermediate_size=self.integer("intermediate_size"),
            vocab_size=self.integer("vocab_size"),
            max_position_embeddings=self.integer("max_position_embeddings"),
            tied_embeddings=self.flag("tie_word_embeddings", family.tied_by_default),
            norm_epsilon=self.number("rms_norm_eps", 1e-6),
            rotary_base=self._rotary_base(),
            rope_scaling=self._rope_scaling(),
            attention_bias=self.flag("attention_bias", False),
            mlp_bias=self.flag("mlp_bias", False),
            moe=moe,
            mla=mla,
            checkpoint_quantization=self._quantization(),
        )
        if not self.problems and not mla and heads % kv_heads:
            what = f"{kv_heads} KV heads do not divide {heads} attention heads"
            self.refuse("num_key_value_heads", what, "correct the file: query heads share KV heads in equal groups")
        if self.problems:
            raise PlanError(self.problems)
        return facts

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.config.get(name)
        if value is None and default is not None:
            return default
        largest = _LARGEST.get(name, _LARGEST_OF_OTHERS)
        if value is None:
            self.refuse(name, "is missing", f"give a complete config.json; a model of this family has {name}")
        elif isinstance(value, bool) or not isinstance(value, int):
            self.refuse(name, f"{shown(value)} is not an integer", "correct the file")
        elif not 1 <= value <= largest:
            self.refuse(name, f"{shown(value)} is not between 1 and {largest}", "correct the file")
        else:
            return value
        # Any positive number lets reading go on to the other problems; PlanError follows in any case.
        return 1

    def count(self, name: str, default: int) -> int:
        """Like `integer`, but 0 is a value."""
        return 0 if self.config.get(name) == 0 else self.integer(name, default or 1) if name in self.config else default

    def number(self, name: str, default: float) -> float:
        value = self.config.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            self.refuse(name, f"{shown(value)} is not a positive number", "correct the file")
            return default
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, f"{shown(value)} is not true or false", "correct the file")
            return default
        return value

    def refuse(self, name: str, what: str, fix: str) -> None:
        self.problems.append(Problem(key=f"{self.key}.{name}", what=what, consequence=_COST, fix=fix))

    def _architecture(self) -> str:
        listed = as_list(self.config.get("architectures"))
        name = listed[0] if len(listed) == 1 else None
        if isinstance(name, str) and name in FAMILIES:
            return name
        known = ", ".join(FAMILIES)
        if name is None:
            self.refuse("architectures", "is not a list of one name", f"give one of {known}")
        else:
            fix = did_you_mean(str(name), FAMILIES, f"known are {known}; a new family is an entry in planner/model.py")
            self.refuse("architectures", f"{shown(name)} is not a known architecture", fix)
        raise PlanError(self.problems)

    def _head_size(self, hidden: int, heads: int) -> int:
        if self.config.get("head_dim") is not None:
            return self.integer("head_dim")
        if not self.problems and hidden % heads:
            what = f"{hidden} is not a multiple of the {heads} attention heads, and there is no head_dim"
            self.refuse("hidden_size", what, "add head_dim, or correct the file")
        return max(1, hidden // heads)

    def _rotary_base(self) -> float:
        nested = as_mapping(self.config.get("rope_parameters")).get("rope_theta")
        if self.config.get("rope_theta") is None and isinstance(nested, int | float) and not isinstance(nested, bool):
            return float(nested)
        return self.number("rope_theta", 10_000.0)

    def _rope_scaling(self) -> str | None:
        scaling = as_mapping(self.config.get("rope_scaling")) or as_mapping(self.config.get("rope_parameters"))
        kind = scaling.get("rope_type") or scaling.get("type")
        return kind if isinstance(kind, str) and kind != "default" else None

    def _mla(self) -> Mla:
        return Mla(
            q_lora_rank=self.integer("q_lora_rank") if self.config.get("q_lora_rank") is not None else None,
            kv_lora_rank=self.integer("kv_lora_rank"),
            qk_nope_head_dim=self.integer("qk_nope_head_dim"),
            qk_rope_head_dim=self.integer("qk_rope_head_dim"),
            v_head_dim=self.integer("v_head_dim"),
        )

    def _moe(self, family: Family, layers: int) -> Moe | None:
        readers = {
            "mixtral": self._mixtral,
            "gpt_oss": self._mixtral,
            "qwen3_moe": self._qwen3_moe,
            "deepseek_v2": self._deepseek,
            "deepseek_v3": self._deepseek,
        }
        read = readers.get(family.name)
        moe = read(min(layers, _LARGEST["num_hidden_layers"])) if read else None
        if moe and moe.experts_per_token > moe.experts:
            what = f"{moe.experts_per_token} experts per token, but only {moe.experts} experts"
            self.refuse("num_experts_per_tok", what, "correct the file")
        return moe

    def _mixtral(self, _layers: int) -> Moe:
        return Moe(
            experts=self.integer("num_local_experts"),
            experts_per_token=self.integer("num_experts_per_tok"),
            expert_size=self.integer("intermediate_size"),
            shared_size=0,
            selection_bias=False,
            dense_layers=frozenset(),
        )

    def _qwen3_moe(self, layers: int) -> Moe:
        step = self.integer("decoder_sparse_step", 1)
        raw = self.config.get("mlp_only_layers")
        listed = as_list(raw)
        if listed != (raw or []) or not all(isinstance(layer, int) for layer in listed):
            self.refuse("mlp_only_layers", "is not a list of layer numbers", "correct the file")
            listed = []
        return Moe(
            experts=self.integer("num_experts"),
            experts_per_token=self.integer("num_experts_per_tok"),
            expert_size=self.integer("moe_intermediate_size"),
            shared_size=0,
            selection_bias=False,
            dense_layers=frozenset(layer for layer in range(layers) if layer in listed or (layer + 1) % step),
        )

    def _deepseek(self, layers: int) -> Moe:
        first = self.count("first_k_dense_replace", 0)
        frequency = self.integer("moe_layer_freq", 1)
        expert_size = self.integer("moe_intermediate_size")
        return Moe(
            experts=self.integer("n_routed_experts"),
            experts_per_token=self.integer("num_experts_per_tok"),
            expert_size=expert_size,
            shared_size=self.count("n_shared_experts", 0) * expert_size,
            # DeepSeek-V3 balances experts by a bias that only takes part in their selection (arXiv:2412.19437).
            selection_bias=self.config.get("topk_method") == "noaux_tc",
            dense_layers=frozenset(layer for layer in range(layers) if layer < first or layer % frequency),
        )

    def _quantization(self) -> CheckpointQuantization | None:
        if self.config.get("quantization_config") is None:
            return None
        raw = as_mapping(self.config["quantization_config"])
        method = raw.get("quant_method")
        if not isinstance(method, str):
            self.refuse(
                "quantization_config.quant_method", "is missing", "give the method the weights were quantised by"
            )
            return None
        weights, group = self._stored_format(raw, method)
        if weights is None:
            known = [*_STORED_WEIGHTS, "compressed-tensors", "modelopt"]
            fix = did_you_mean(method, known, f"use an unquantised checkpoint, or one of {', '.join(known)}")
            self.refuse("quantization_config", f"{shown(method)} with these settings is not known", fix)
            return None
        return CheckpointQuantization(method=method, weights=weights, group_size=group)

    def _stored_format(self, raw: dict[str, Any], method: str) -> tuple[str | None, int | None]:
        if method in ("compressed-tensors", "modelopt"):
            return _grouped_format(raw)
        bits = raw.get("bits")
        if bits is not None and bits != 4 and method in ("gptq", "awq"):
            return ("int8_wo", None) if bits == 8 and method == "gptq" else (None, None)
        block = _positive(next(reversed(as_list(raw.get("weight_block_size"))), None))
        if method == "fp8" and block:
            return "fp8_block", block
        default = {"gptq": 128, "awq": 128, "mxfp4": 32}.get(method)
        return _STORED_WEIGHTS.get(method), _positive(raw.get("group_size")) or default


def _grouped_format(raw: dict[str, Any]) -> tuple[str | None, int | None]:
    """compressed-tensors and ModelOpt both list `config_groups`, each with a number format of `weights`."""
    first = next(iter(as_mapping(raw.get("config_groups")).values()), None)
    weights = as_mapping(as_mapping(first).get("weights"))
    if not weights:
        algorithm = str(raw.get("quant_algo")).lower()
        return {"fp8": ("fp8", None), "nvfp4": ("nvfp4", 16)}.get(algorithm, (None, None))
    formats = {("float", 8): "fp8", ("int", 8): "int8_wo", ("int", 4): "int4_gptq", ("float", 4): "nvfp4"}
    number = (str(weights.get("type")), _positive(weights.get("num_bits")) or 0)
    return formats.get(number), _positive(weights.get("group_size"))


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20 else None
