"""The CPU engine's shards: complete, equal to the whole however they are cut, and refused where they cannot be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType] - untyped arrays

from runtime import cpu_engine
from runtime.errors import Refusal
from tests import tiny_llama
from tests.cpu_world import decode

PROMPTS = [[1, 5, 9, 14], [3], [7, 7, 7, 7, 7, 7, 7, 7, 7, 20]]
STEPS = 40


def build(checkpoint: Path, out: Path, tp: int, pp: int) -> Path:
    out.mkdir()
    spec = {"key": {"mapping": {"tensor_parallel": tp, "pipeline_parallel": pp}}}
    cpu_engine.build(checkpoint, spec, out, lambda _: None)
    return out


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (4, 1), (1, 2), (1, 5), (4, 2)])
def test_every_sharding_decodes_the_same(tmp_path: Path, tp: int, pp: int) -> None:
    """TP 4 repeats the two KV heads, PP 2 deals five layers unevenly, and 101 tokens are padded for every TP."""
    checkpoint = tiny_llama.write(tmp_path / "model")
    whole = decode(build(checkpoint, tmp_path / "whole", 1, 1), PROMPTS, STEPS, keep=3)
    forced = whole.tokens.tolist()
    sharded = decode(build(checkpoint, tmp_path / "sharded", tp, pp), PROMPTS, STEPS, keep=3, forced=forced)

    assert np.abs(sharded.logits - whole.logits).max() < 1e-3 * np.abs(whole.logits).max()
    assert ((sharded.tokens == whole.tokens) | (whole.gap < 1e-2)).all()
    assert len(np.unique(whole.tokens)) > 10, "a model that repeats itself proves nothing"


def test_the_shards_hold_every_weight_once(tmp_path: Path) -> None:
    checkpoint = tiny_llama.write(tmp_path / "model", num_key_value_heads=2)
    engine = build(checkpoint, tmp_path / "engine", 2, 2)
    read = cast("Callable[[Path], dict[str, Any]]", load_file)
    source = read(checkpoint / "model.safetensors")
    ranks = [read(engine / f"rank{rank}.safetensors") for rank in range(4)]

    joined = np.concatenate([rank["transformer.vocab_embedding.weight"] for rank in ranks[:2]])
    assert (joined[:101] == source["model.embed_tokens.weight"]).all()
    assert not joined[101:].any()
    down = np.concatenate([rank["transformer.layers.4.mlp.proj.weight"] for rank in ranks[2:]], axis=1)
    assert (down == source["model.layers.4.mlp.down_proj.weight"]).all()
    held = [{int(name.split(".")[2]) for name in rank if ".layers." in name} for rank in ranks]
    assert held == [{0, 1, 2}, {0, 1, 2}, {3, 4}, {3, 4}]


def test_an_engine_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    checkpoint = tiny_llama.write(tmp_path / "model")
    first, second = (build(checkpoint, tmp_path / name, 2, 1) for name in ("a", "b"))

    for path in sorted(path for path in first.rglob("*") if path.is_file()):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


@pytest.mark.parametrize(
    ("tp", "pp", "reason"), [(3, 1, "4 attention heads"), (8, 1, "4 attention heads"), (1, 6, "5 layers")]
)
def test_an_impossible_sharding_is_refused_with_its_reason(tmp_path: Path, tp: int, pp: int, reason: str) -> None:
    checkpoint = tiny_llama.write(tmp_path / "model")

    with pytest.raises(Refusal, match=reason):
        build(checkpoint, tmp_path / "engine", tp, pp)


def test_the_rotary_base_is_found_where_either_transformers_writes_it(tmp_path: Path) -> None:
    old = tiny_llama.write(tmp_path / "old", rope_theta=5000.0)
    new = tiny_llama.write(tmp_path / "new", rope_parameters={"rope_type": "default", "rope_theta": 7000.0})
    config = json.loads((new / "config.json").read_text())
    del config["rope_theta"]
    (new / "config.json").write_text(json.dumps(config))

    for checkpoint, base in ((old, 5000.0), (new, 7000.0)):
        engine = build(checkpoint, tmp_path / f"engine of {checkpoint.name}", 1, 1)
        assert json.loads((engine / "config.json").read_text())["pretrained_config"]["rotary_base"] == base


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_llama.write(tmp_path / "model", tokens=150)

    with pytest.raises(Refusal, match="token id 149, the model only 101 tokens"):
        build(checkpoint, tmp_path / "engine", 1, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0}},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
    ],
)
def test_what_the_engine_would_compute_wrongly_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    checkpoint = tiny_llama.write(tmp_path / "model", **change)

    with pytest.raises(Refusal, match="CPU backend does not compute"):
        build(checkpoint, tmp_path / "engine", 1, 1)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path, smollm2_gguf: Path) -> None:
    folder = tiny_llama.write(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    cut = tmp_path / "cut.gguf"
    with smollm2_gguf.open("rb") as whole, cut.open("wb") as part:
        shutil.copyfileobj(whole, part, 1 << 20)
        part.truncate(50 << 20)
    empty = tmp_path / "empty.gguf"
    empty.touch()

    for number, checkpoint in enumerate((folder, cut, empty)):
        with pytest.raises(Refusal, match="cannot be read"):
            build(checkpoint, tmp_path / f"engine{number}", 1, 1)


def test_a_checkpoint_that_lacks_a_weight_or_a_field_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = tiny_llama.write(tmp_path / "model", num_hidden_layers=6)
    with pytest.raises(Refusal, match=r"lacks 'model.layers.5.self_attn.q_proj.weight'"):
        build(folder, tmp_path / "engine", 1, 1)
    config = json.loads((folder / "config.json").read_text())
    del config["intermediate_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refusal, match="lacks 'intermediate_size'"):
        build(folder, tmp_path / "engine2", 1, 1)


def test_the_tokenizer_of_the_gguf_round_trips_text(smollm2_gguf: Path) -> None:
    from tokenizers import Tokenizer

    from runtime.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(smollm2_gguf)
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer)
    for text in ("Hello, world! 2026", "naïve café — 東京 🦊", "  two  spaces\n\ttab", "x = [1, 22, 333]"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("<|im_start|>user").ids[0] == 1
    assert [tokenizer.decode([i]) for i in tokenizer.encode("1234").ids] == ["1", "2", "3", "4"]
    assert json.loads(checkpoint.tokenizer)["model"]["type"] == "BPE"
    assert checkpoint.tokenizer_config["eos_token"] == "<|im_end|>"
