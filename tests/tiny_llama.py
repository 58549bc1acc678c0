"""A random Llama of a few thousand weights in Hugging Face's layout, to shard in ways the real model cannot be."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType] - untyped arrays
from tokenizers import Tokenizer, models

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 101,  # divides over no TP but 1: the padding must not be chosen as a token
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}


def write(folder: Path, *, tokens: int = 101, **changes: object) -> Path:
    """A checkpoint folder; `tokens` is the size of its tokenizer, `changes` those to CONFIG."""
    config = CONFIG | changes
    folder.mkdir(parents=True, exist_ok=True)
    hidden, inner, head = 32, 48, 8
    random = np.random.default_rng(1)

    def weight(*shape: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        return (random.standard_normal(shape) * 0.5).astype(np.float32)

    tensors = {"model.embed_tokens.weight": weight(101, hidden), "lm_head.weight": weight(101, hidden)}
    tensors["model.norm.weight"] = 1 + weight(hidden)
    for layer in range(5):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.self_attn.q_proj.weight": weight(4 * head, hidden),
            f"{prefix}.self_attn.k_proj.weight": weight(2 * head, hidden),
            f"{prefix}.self_attn.v_proj.weight": weight(2 * head, hidden),
            f"{prefix}.self_attn.o_proj.weight": weight(hidden, 4 * head),
            f"{prefix}.mlp.gate_proj.weight": weight(inner, hidden),
            f"{prefix}.mlp.up_proj.weight": weight(inner, hidden),
            f"{prefix}.mlp.down_proj.weight": weight(hidden, inner),
            f"{prefix}.input_layernorm.weight": 1 + weight(hidden),
            f"{prefix}.post_attention_layernorm.weight": 1 + weight(hidden),
        }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    Tokenizer(models.WordLevel({f"t{i}": i for i in range(tokens)}, unk_token="t0")).save(
        str(folder / "tokenizer.json")
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": f"t{config['eos_token_id']}"}))
    return folder
