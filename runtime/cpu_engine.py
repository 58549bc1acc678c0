"""Builds the CPU engine: shards a Llama-family checkpoint over TP x PP ranks, one float32 safetensors file each.

Shards follow TensorRT-LLM's layout: rank = pp_rank * tp_size + tp_rank; attention heads and the feed-forward width
are split by column over TP, their output projections by row; KV heads are repeated where there are fewer than TP;
layers are dealt to PP stages in order, the first stages taking one more where they do not divide; the vocabulary is
padded to a multiple of TP and its rows split over TP (embedding on the first stage, LM head on the last).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.checkpoint import Array, Checkpoint, read_checkpoint
from runtime.errors import Refusal

FORMAT = "1"


def build(checkpoint: Path, spec: dict[str, Any], out: Path, progress: Callable[[str], None]) -> None:
    """Write config.json, rank<r>.safetensors and tokenizer/ into `out`; raises Refusal for what cannot be sharded."""
    try:
        _build(checkpoint, spec, out, progress)
    except KeyError as missing:
        raise Refusal(
            f"the checkpoint {checkpoint} lacks {missing}",
            "an engine built from it would be incomplete; nothing was built",
            "fetch the checkpoint again, whole: its config.json and every weight file",
        ) from missing


def _build(checkpoint: Path, spec: dict[str, Any], out: Path, progress: Callable[[str], None]) -> None:
    from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType] - untyped arrays

    source = read_checkpoint(checkpoint)
    mapping = spec["key"]["mapping"]
    tp, pp = int(mapping["tensor_parallel"]), int(mapping["pipeline_parallel"])
    config = _engine_config(source.config, tp, pp)
    _check_sharding(config["pretrained_config"], tp, pp)
    _check_tokenizer(source, config["pretrained_config"]["vocab_size"], checkpoint)

    for rank in range(tp * pp):
        progress(f"sharding rank {rank + 1} of {tp * pp}")
        save_file(_rank_tensors(source, config["pretrained_config"], rank), out / f"rank{rank}.safetensors")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer = out / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text(source.tokenizer, encoding="utf-8")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps(source.tokenizer_config, indent=2) + "\n", encoding="utf-8"
    )


def _engine_config(hf: dict[str, Any], tp: int, pp: int) -> dict[str, Any]:
    heads = int(hf["num_attention_heads"])
    eos = hf.get("eos_token_id")
    return {
        "version": FORMAT,
        "pretrained_config": {
            "architecture": "LlamaForCausalLM",
            "dtype": "float32",
            "vocab_size": int(hf["vocab_size"]),
            "hidden_size": int(hf["hidden_size"]),
            "intermediate_size": int(hf["intermediate_size"]),
            "num_hidden_layers": int(hf["num_hidden_layers"]),
            "num_attention_heads": heads,
            "num_key_value_heads": int(hf.get("num_key_value_heads") or heads),
            "head_size": int(hf.get("head_dim") or hf["hidden_size"] // heads),
            "norm_epsilon": float(hf["rms_norm_eps"]),
            "rotary_base": float(hf.get("rope_theta", 10000.0)),
            "max_position_embeddings": int(hf["max_position_embeddings"]),
            "tie_word_embeddings": bool(hf.get("tie_word_embeddings", False)),
            "eos_token_id": eos[0] if isinstance(eos, list) else eos,
            "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
            "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp, "cp_size": 1, "gpus_per_node": tp * pp},
        },
        "build_config": {},
    }


def _check_sharding(c: dict[str, Any], tp: int, pp: int) -> None:
    heads, kv_heads, layers = c["num_attention_heads"], c["num_key_value_heads"], c["num_hidden_layers"]
    reason = None
    if heads % tp:
        reason = f"{heads} attention heads do not divide over TP {tp}"
    elif kv_heads % tp and tp % kv_heads:
        reason = f"{kv_heads} KV heads neither divide over TP {tp} nor repeat evenly"
    elif c["intermediate_size"] % tp:
        reason = f"the feed-forward width {c['intermediate_size']} does not divide over TP {tp}"
    elif pp > layers:
        reason = f"{layers} layers cannot fill {pp} pipeline stages"
    if reason:
        raise Refusal(
            f"this model cannot be sharded TP {tp} x PP {pp}: {reason}",
            "no engine was built",
            f"choose a TP that divides {heads} and a PP of at most {layers}; `python -m fleet plan` lists them",
        )


def _check_tokenizer(source: Checkpoint, vocab_size: int, path: Path) -> None:
    from tokenizers import Tokenizer

    vocabulary: dict[str, int] = Tokenizer.from_str(source.tokenizer).get_vocab(with_added_tokens=True)
    largest = max(vocabulary.values())
    if largest >= vocab_size:
        raise Refusal(
            f"the tokenizer of {path} has token id {largest}, the model only {vocab_size} tokens",
            "the first such token in a prompt would fail, and answers would be gibberish",
            "put the tokenizer.json that was published with these weights beside them",
        )


def _rank_tensors(source: Checkpoint, c: dict[str, Any], rank: int) -> dict[str, Array]:
    """The tensors of one rank, by TensorRT-LLM's checkpoint names; shapes [out_local, in_local]."""
    tp, pp = c["mapping"]["tp_size"], c["mapping"]["pp_size"]
    stage, part = divmod(rank, tp)
    vocab = -(-c["vocab_size"] // tp)

    def rows(name: str) -> Array:
        weight = source.tensor(name)
        return _contiguous(weight[len(weight) // tp * part : len(weight) // tp * (part + 1)])

    def columns(name: str) -> Array:
        weight = source.tensor(name)
        return _contiguous(np.split(weight, tp, axis=1)[part])

    def vocab_rows(name: str) -> Array:
        weight = source.tensor(name)[vocab * part : vocab * (part + 1)]
        return _contiguous(np.pad(weight, ((0, vocab - len(weight)), (0, 0))))

    def kv_rows(name: str) -> Array:
        weight = source.tensor(name).reshape(c["num_key_value_heads"], c["head_size"], -1)
        each = max(1, c["num_key_value_heads"] // tp)
        first = part * c["num_key_value_heads"] // tp
        return _contiguous(weight[first : first + each].reshape(each * c["head_size"], -1))

    tensors: dict[str, Array] = {}
    for layer in stage_layers(c["num_hidden_layers"], pp, stage):
        hf, ours = f"model.layers.{layer}", f"transformer.layers.{layer}"
        qkv = [
            rows(f"{hf}.self_attn.q_proj.weight"),
            kv_rows(f"{hf}.self_attn.k_proj.weight"),
            kv_rows(f"{hf}.self_attn.v_proj.weight"),
        ]
        tensors[f"{ours}.attention.qkv.weight"] = np.concatenate(qkv)
        tensors[f"{ours}.attention.dense.weight"] = columns(f"{hf}.self_attn.o_proj.weight")
        tensors[f"{ours}.mlp.gate_up.weight"] = np.concatenate(
            [rows(f"{hf}.mlp.gate_proj.weight"), rows(f"{hf}.mlp.up_proj.weight")]
        )
        tensors[f"{ours}.mlp.proj.weight"] = columns(f"{hf}.mlp.down_proj.weight")
        tensors[f"{ours}.input_layernorm.weight"] = source.tensor(f"{hf}.input_layernorm.weight")
        tensors[f"{ours}.post_layernorm.weight"] = source.tensor(f"{hf}.post_attention_layernorm.weight")
    if stage == 0:
        tensors["transformer.vocab_embedding.weight"] = vocab_rows("model.embed_tokens.weight")
    if stage == pp - 1:
        tensors["transformer.ln_f.weight"] = source.tensor("model.norm.weight")
        if not c["tie_word_embeddings"]:
            tensors["lm_head.weight"] = vocab_rows("lm_head.weight")
        elif pp > 1:
            tensors["lm_head.weight"] = vocab_rows("model.embed_tokens.weight")
    return tensors


def stage_layers(layers: int, pp: int, stage: int) -> range:
    """The layers of one pipeline stage; the first `layers % pp` stages hold one more."""
    base, extra = divmod(layers, pp)
    start = stage * base + min(stage, extra)
    return range(start, start + base + (stage < extra))


def _contiguous(array: npt.NDArray[np.float32]) -> Array:
    return np.ascontiguousarray(array, dtype=np.float32)
