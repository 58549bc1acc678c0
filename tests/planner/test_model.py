"""Facts from config.json, held to the parameter counts that the models are published with."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.errors import PlanError, Problem
from planner.model import FAMILIES, ModelFacts, facts_from_hf
from planner.sources import KNOWN_MODELS
from planner.tensors import parameters

PUBLISHED = {
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,  # without the multi-token prediction module
    "gemma-2-9b": 9_241_705_984,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.1-405b-fp8": 405_853_388_800,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "phi-3-mini-4k": 3_821_079_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m": 134_515_008,
}


def config(name: str) -> dict[str, Any]:
    return json.loads((KNOWN_MODELS / f"{name}.json").read_text(encoding="utf-8"))


def facts(name: str, **changed: Any) -> ModelFacts:
    return facts_from_hf(config(name) | changed, name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_is_the_published_one(name: str) -> None:
    assert parameters(facts(name)) == PUBLISHED[name]


def test_every_known_model_has_a_published_count_and_every_family_a_known_model() -> None:
    assert {path.stem for path in KNOWN_MODELS.glob("*.json")} == PUBLISHED.keys()
    assert {facts(name).architecture for name in PUBLISHED} == FAMILIES.keys()


def test_untying_embeddings_adds_one_embedding() -> None:
    tied, untied = facts("smollm2-135m"), facts("smollm2-135m", tie_word_embeddings=False)
    assert parameters(untied) - parameters(tied) == 49152 * 576


def test_qwen3_moe_dense_layers_follow_step_and_list() -> None:
    sparse = facts("qwen3-30b-a3b", decoder_sparse_step=2, mlp_only_layers=[1]).moe
    assert sparse is not None
    assert sparse.dense_layers == frozenset(range(0, 48, 2)) | {1}


@pytest.mark.parametrize(
    ("quantization", "weights", "group"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, "int4_gptq", 64),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4_awq", 128),
        ({"quant_method": "fp8"}, "fp8", None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", 128),
        ({"quant_method": "mxfp4"}, "mxfp4", 32),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", 16),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"type": "int", "num_bits": 4, "group_size": 128}}},
            },
            "int4_gptq",
            128,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 8}}},
            },
            "fp8",
            None,
        ),
    ],
)
def test_stored_quantisation_is_read(quantization: dict[str, Any], weights: str, group: int | None) -> None:
    stored = facts("llama-3.1-8b", quantization_config=quantization).checkpoint_quantization
    assert stored is not None
    assert (stored.weights, stored.group_size) == (weights, group)


@pytest.mark.parametrize(
    ("name", "changed", "key"),
    [
        ("llama-3.1-8b", {"num_hidden_layers": None}, "num_hidden_layers"),
        ("llama-3.1-8b", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("llama-3.1-8b", {"hidden_size": True}, "hidden_size"),
        ("llama-3.1-8b", {"vocab_size": 0}, "vocab_size"),
        ("llama-3.1-8b", {"num_key_value_heads": 5}, "num_key_value_heads"),
        ("llama-3.1-8b", {"hidden_size": 4097}, "hidden_size"),
        ("llama-3.1-8b", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ("llama-3.1-8b", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ("llama-3.1-8b", {"architectures": ["LlamaForCausalML"]}, "architectures"),
        ("llama-3.1-8b", {"architectures": []}, "architectures"),
        ("llama-3.1-8b", {"quantization_config": {"quant_method": "hqq"}}, "quantization_config"),
        ("llama-3.1-8b", {"quantization_config": 4}, "quantization_config.quant_method"),
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ("deepseek-v3", {"kv_lora_rank": "512"}, "kv_lora_rank"),
    ],
)
def test_a_missing_or_contradictory_field_is_named(name: str, changed: dict[str, Any], key: str) -> None:
    with pytest.raises(PlanError) as refusal:
        facts(name, **changed)
    assert f"{name}.{key}" in [problem.key for problem in refusal.value.problems]


def test_all_faults_are_told_at_once_and_a_close_name_is_offered() -> None:
    with pytest.raises(PlanError) as refusal:
        facts("llama-3.1-8b", hidden_size="4096", vocab_size=-1, max_position_embeddings=None)
    assert [problem.key.split(".")[-1] for problem in refusal.value.problems] == [
        "hidden_size",
        "vocab_size",
        "max_position_embeddings",
    ]
    with pytest.raises(PlanError, match=r"did you mean LlamaForCausalLM\?"):
        facts("llama-3.1-8b", architectures=["LlamaForCausalML"])


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(PUBLISHED)), data=st.data())
def test_any_junk_in_config_json_is_facts_or_a_plan_error(name: str, data: st.DataObject) -> None:
    original = config(name)
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(original)), JUNK, max_size=3))
    problems: tuple[Problem, ...] = ()
    try:
        facts = facts_from_hf(original | changed, name)
    except PlanError as refusal:
        problems = refusal.problems
    else:
        assert parameters(facts) > 0
    assert all(problem.key.startswith(f"{name}.") for problem in problems)


def test_known_models_name_their_repository() -> None:
    for path in Path(KNOWN_MODELS).glob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["_source"].startswith("hf://")
