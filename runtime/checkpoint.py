"""A Llama-family checkpoint on disk, read tensor by tensor as float32: a GGUF file or a Hugging Face folder."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import Refusal

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What the CPU engine needs of a model.

    `config` has the keys of Hugging Face's LlamaConfig; `tensor` maps a Hugging Face tensor name to its float32
    values, shape [out, in] for a linear layer; `tokenizer` is the text of a tokenizer.json.
    """

    config: dict[str, Any]
    tensor: Callable[[str], Array]
    tokenizer: str
    tokenizer_config: dict[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`; raises Refusal when it is missing, damaged, or of a family the CPU engine lacks."""
    if not path.exists():
        raise Refusal(
            f"no checkpoint at {path}",
            "there are no weights to build an engine from",
            "give the path of a .gguf file or of a Hugging Face folder (config.json, *.safetensors, tokenizer.json)",
        )
    from safetensors import SafetensorError

    try:
        return _hugging_face(path) if path.is_dir() else _gguf(path)
    except (OSError, ValueError, KeyError, IndexError, SafetensorError) as error:
        raise Refusal(
            f"the checkpoint {path} cannot be read ({type(error).__name__}: {error})",
            "an engine built from it would be incomplete; nothing was built",
            "fetch the checkpoint again: the file is truncated, or it is not a GGUF file or Hugging Face folder",
        ) from error


def _hugging_face(folder: Path) -> Checkpoint:
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # Transformers 5 keeps the rotary base and its scaling together in rope_parameters.
    rotary: dict[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rotary.get("rope_type", rotary.get("type"))
    _require_llama(str(config.get("model_type")), None if scaling == "default" else scaling, folder)
    config.setdefault("rope_theta", rotary.get("rope_theta", 10000.0))
    for name, known in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if config.get(name, known) != known:
            raise _not_computed(f"{name} {config[name]!r}", folder)
    files: dict[str, Any] = {}  # the open shard of each tensor
    for shard in sorted(folder.glob("*.safetensors")):
        opened: Any = safe_open(shard, framework="np")
        files |= dict.fromkeys(opened.keys(), opened)
    tokenizer_config = folder / "tokenizer_config.json"

    def tensor(name: str) -> Array:
        return np.asarray(files[name].get_tensor(name)).astype(np.float32)

    return Checkpoint(
        config=config,
        tensor=tensor,
        tokenizer=(folder / "tokenizer.json").read_text(encoding="utf-8"),
        tokenizer_config=json.loads(tokenizer_config.read_text(encoding="utf-8")) if tokenizer_config.exists() else {},
    )


def _gguf(path: Path) -> Checkpoint:
    import gguf
    from gguf.quants import dequantize  # pyright: ignore[reportUnknownVariableType] - untyped arrays

    reader = gguf.GGUFReader(path)

    def field(name: str, default: Any = None) -> Any:
        found = reader.get_field(name)
        return default if found is None else found.contents()

    architecture = str(field("general.architecture"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    # llama.cpp stores Llama 3's scaling as a tensor of factors, and names no type.
    scaling = "llama3" if "rope_freqs.weight" in tensors else field(f"{architecture}.rope.scaling.type")
    _require_llama(architecture, scaling, path)
    heads = int(field("llama.attention.head_count"))
    kv_heads = int(field("llama.attention.head_count_kv", heads))
    tokens: list[str] = field("tokenizer.ggml.tokens")
    eos = int(field("tokenizer.ggml.eos_token_id"))

    def tensor(name: str) -> Array:
        stored = tensors[_gguf_name(name)]
        values = np.asarray(dequantize(stored.data, stored.tensor_type), dtype=np.float32)
        permuted = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        return _half_rotary(values, permuted) if permuted else values

    hidden = int(field("llama.embedding_length"))
    return Checkpoint(
        config={
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(tokens),
            "hidden_size": hidden,
            "intermediate_size": int(field("llama.feed_forward_length")),
            "num_hidden_layers": int(field("llama.block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": int(field("llama.attention.key_length", hidden // heads)),
            "rms_norm_eps": float(field("llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": float(field("llama.rope.freq_base", 10000.0)),
            "max_position_embeddings": int(field("llama.context_length")),
            "tie_word_embeddings": "output.weight" not in tensors,
            "eos_token_id": eos,
        },
        tensor=tensor,
        tokenizer=_gguf_tokenizer(tokens, field, path),
        tokenizer_config={
            "bos_token": tokens[int(field("tokenizer.ggml.bos_token_id", eos))],
            "eos_token": tokens[eos],
            "pad_token": tokens[int(field("tokenizer.ggml.padding_token_id", eos))],
            "add_bos_token": bool(field("tokenizer.ggml.add_bos_token", False)),
            "chat_template": field("tokenizer.chat_template"),
        },
    )


def _require_llama(family: str, rope_scaling: object, path: Path) -> None:
    if family != "llama":
        raise _not_computed(f"model family {family!r}", path)
    if rope_scaling not in (None, "none"):
        raise _not_computed(f"RoPE scaling {rope_scaling!r}", path)


def _not_computed(what: str, path: Path) -> Refusal:
    return Refusal(
        f"{path} has {what}, which the CPU backend does not compute",
        "its answers would be wrong",
        "serve it with backend tensorrt or pytorch, or choose a plain Llama-family model",
    )


_GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    return f"blk.{layer[1]}.{_GGUF_NAMES[layer[2]]}.weight" if layer else _GGUF_NAMES[name]


def _half_rotary(weight: Array, heads: int) -> Array:
    """GGUF interleaves the rotary pairs of Q and K; Hugging Face keeps the two halves apart. [heads*d, in] both."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)


def _gguf_tokenizer(tokens: list[str], field: Callable[..., Any], path: Path) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind, pre = field("tokenizer.ggml.model"), field("tokenizer.ggml.pre")
    if (kind, pre) != ("gpt2", "smollm"):
        raise Refusal(
            f"{path} has the tokenizer {kind!r} with pre-tokenizer {pre!r}, which is not known here",
            "prompts would be split into other tokens than the model was trained on",
            "use the model's Hugging Face folder instead, which carries a tokenizer.json",
        )
    merges = [tuple(merge.split(" ", 1)) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # gguf's token type for <|im_start|> and its like
    special = [tokens[i] for i, kind in enumerate(field("tokenizer.ggml.token_type")) if kind == control]
    tokenizer.add_special_tokens(  # pyright: ignore[reportUnknownMemberType]
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    return tokenizer.to_str()
