import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.build import build_engine
from runtime.errors import Refusal
from runtime.pytorch_engine import llm_args
from runtime.spec import Spec
from runtime.store import check_loadable
from tests.runtime.sample_engines import GPU_KEY, h100_host, spec_of

LIMITS = {"max_batch_size": 64, "max_seq_len": 4096, "max_num_tokens": 8192}
KEY: dict[str, Any] = GPU_KEY | {"backend": "pytorch", "build": LIMITS}

# Fields of TorchLlmArgs and of its KvCacheConfig (TensorRT-LLM 1.2.1) that may appear; others are refused at load.
FIELDS = {
    *("model", "backend", "dtype", "tensor_parallel_size", "pipeline_parallel_size", "gpus_per_node"),
    *("max_batch_size", "max_seq_len", "max_num_tokens", "kv_cache_config"),
}
KV_CACHE_FIELDS = {"dtype", "tokens_per_block"}

HF_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "eos_token_id": 128001,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(HF_CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def publish(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Spec], Path]:
    monkeypatch.setattr("runtime.build.host_facts", h100_host)
    return lambda spec: build_engine(spec, checkpoint, tmp_path / "store")


def test_an_engine_is_its_arguments_and_loads_like_any_other(publish: Callable[[Spec], Path], checkpoint: Path) -> None:
    spec = spec_of(KEY)
    engine = publish(spec)
    assert check_loadable(engine, world_size=2, host=h100_host())["engine"] == spec["engine"]
    assert sorted(path.name for path in engine.iterdir()) == [
        "config.json",
        "llm_args.yaml",
        "manifest.json",
        "tokenizer",
    ]
    config = json.loads((engine / "config.json").read_text())
    pretrained = config["pretrained_config"]
    assert config["version"] == "1.2.1"
    assert pretrained["mapping"] == {"world_size": 2, "tp_size": 2, "pp_size": 1, "cp_size": 1, "gpus_per_node": 4}
    assert (pretrained["head_size"], pretrained["num_key_value_heads"], pretrained["rotary_base"]) == (128, 8, 500000.0)
    yaml = pytest.importorskip("ruamel.yaml").YAML(typ="safe")
    arguments = yaml.load(engine / "llm_args.yaml")
    assert arguments == llm_args(checkpoint, spec)
    assert arguments["model"] == str(checkpoint)
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (2, 1)
    assert {name: arguments[name] for name in LIMITS} == LIMITS


@pytest.mark.parametrize("kv_cache", ["none", "fp8"])
@pytest.mark.parametrize("flags", [{}, {"tokens_per_block": 64}])
def test_only_fields_of_the_llm_api_are_written(checkpoint: Path, kv_cache: str, flags: dict[str, int]) -> None:
    arguments = llm_args(checkpoint, spec_of(KEY, quantization={"kv_cache": kv_cache}, build=flags))
    assert set(arguments) <= FIELDS
    assert set(arguments["kv_cache_config"]) <= KV_CACHE_FIELDS
    assert arguments["kv_cache_config"]["dtype"] == ("fp8" if kv_cache == "fp8" else "auto")


def test_an_int8_kv_cache_is_refused(checkpoint: Path) -> None:
    with pytest.raises(Refusal, match="no int8 KV cache"):
        llm_args(checkpoint, spec_of(KEY, quantization={"kv_cache": "int8"}))


@pytest.mark.parametrize(
    ("weights", "file", "content", "algorithm"),
    [
        ("fp8", "hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "FP8"),
        ("nvfp4", "hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, "NVFP4"),
        (
            "fp8",
            "config.json",
            HF_CONFIG | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            "FP8_BLOCK_SCALES",
        ),
        (
            "int4_awq",
            "config.json",
            HF_CONFIG | {"quantization_config": {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}},
            "W4A16_AWQ",
        ),
        ("none", "config.json", HF_CONFIG | {"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
    ],
)
def test_quantisation_is_the_checkpoints_own(
    publish: Callable[[Spec], Path], checkpoint: Path, weights: str, file: str, content: dict[str, Any], algorithm: str
) -> None:
    (checkpoint / file).write_text(json.dumps(content))
    engine = publish(spec_of(KEY, quantization={"weights": weights}))
    config = json.loads((engine / "config.json").read_text())
    assert config["pretrained_config"]["quantization"]["quant_algo"] == algorithm


@pytest.mark.parametrize("weights", ["fp8", "nvfp4", "int8_wo", "int8_sq"])
def test_weights_that_the_checkpoint_does_not_hold_are_refused(publish: Callable[[Spec], Path], weights: str) -> None:
    with pytest.raises(Refusal, match=f"counts on {weights} weights, and .* holds unquantised"):
        publish(spec_of(KEY, quantization={"weights": weights}))


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_broken_checkpoint_is_refused(publish: Callable[[Spec], Path], checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(Refusal, match=r"no readable config\.json"):
        publish(spec_of(KEY))
