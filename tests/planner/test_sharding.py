"""Legal and illegal shardings, each illegal one with its reason."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_models import case

from planner.memory import pp_layers
from planner.sharding import check, legal_tensor_parallel, options, smallest_that_fits, warnings


def reasons(name: str, backend: str = "tensorrt", **changed: object) -> list[tuple[str, str]]:
    return [(problem.key, problem.what) for problem in check(*case(name, backend, **changed), "models[0]")]


def test_smollm2_splits_by_1_or_3_and_up_to_30_stages() -> None:
    model, facts = case("smollm2-135m", "cpu")
    legal = {(option.tensor_parallel, option.pipeline_parallel) for option in options(model, facts) if option.memory}
    assert legal == {(tp, pp) for tp in (1, 3) for pp in range(1, 31)}
    refused = {option.tensor_parallel: option.refused for option in options(model, facts) if option.refused}
    assert sorted(refused) == [2, 4, 5, 6, 7, 8, 9]
    assert "9 attention heads are not divisible by 2" in [reason.what for reason in refused[2]]
    # 9 divides the heads and repeats the KV heads evenly, but not the feed-forward width of 1536.
    assert [reason.what for reason in refused[9]] == ["feed-forward width 1536 is not divisible by 9"]


def test_every_broken_rule_is_named_with_its_key_and_a_fix() -> None:
    problems = check(*case("smollm2-135m", "cpu", tensor_parallel=2, pipeline_parallel=31), "models[4]")
    assert [problem.key for problem in problems] == [
        "models[4].tensor_parallel",
        "models[4].tensor_parallel",
        "models[4].pipeline_parallel",
    ]
    assert problems[0].fix == "give one of 1, 3"
    assert problems[-1].fix == "give at most 30"


def test_kv_heads_divide_or_are_repeated() -> None:
    assert reasons("qwen2.5-7b", tensor_parallel=4) == []
    assert reasons("qwen2.5-7b", tensor_parallel=28, gpus_per_node=28) == [
        ("models[0].tensor_parallel", "feed-forward width 18944 is not divisible by 28")
    ]
    assert "models[0].tensor_parallel" in dict(reasons("qwen2.5-7b", tensor_parallel=7, gpus_per_node=7))
    assert legal_tensor_parallel(*case("llama-3.1-70b")) == [1, 2, 4, 8, 16, 32, 64]


def test_latent_attention_has_no_kv_heads_to_divide() -> None:
    assert legal_tensor_parallel(*case("deepseek-v2-lite"))[-1] == 16


def test_a_scale_is_not_split_between_ranks() -> None:
    quantization = {"weights": "int4_awq"}
    # 11008 / 2 = 43 * 128, but 11008 / 4 = 21.5 * 128.
    assert reasons("llama-2-7b", tensor_parallel=2, quantization=quantization) == []
    assert reasons("llama-2-7b", tensor_parallel=4) == []
    found = reasons("llama-2-7b", tensor_parallel=4, quantization=quantization)
    assert len(found) == 1
    assert "2752 inputs of mlp.down per rank are not a multiple of the 128" in found[0][1]


def test_deepseek_v3_stops_at_16_ranks_because_of_its_block_scales() -> None:
    assert legal_tensor_parallel(*case("deepseek-v3", "pytorch", gpu="H200-141GB")) == [1, 2, 4, 8, 16]


def test_ranks_fill_equal_nodes() -> None:
    assert reasons("llama-3.1-8b", tensor_parallel=4, pipeline_parallel=3) == [
        ("models[0].gpus_per_node", "12 ranks do not fill nodes of 8 GPUs")
    ]
    assert reasons("llama-3.1-8b", tensor_parallel=4, pipeline_parallel=3, gpus_per_node=4) == []
    assert reasons("llama-3.1-8b", tensor_parallel=4, pipeline_parallel=4) == []


def test_a_mig_slice_takes_one_rank() -> None:
    assert reasons("smollm2-135m", mig_profile="1g.10gb") == []
    assert reasons("smollm2-135m", mig_profile="1g.10gb", tensor_parallel=3) == [
        ("models[0].tensor_parallel", "3 ranks on MIG slices")
    ]
    assert reasons("smollm2-135m", mig_profile="1g.10gb", pipeline_parallel=2)[0][0] == "models[0].pipeline_parallel"


def test_tensor_parallel_over_nodes_is_allowed_with_a_warning() -> None:
    crossing, facts = case("llama-3.1-405b", tensor_parallel=16)
    inside, _ = case("llama-3.1-405b", tensor_parallel=8, pipeline_parallel=2)
    assert check(crossing, facts, "m") == check(inside, facts, "m") == []
    assert "crosses the network" in warnings(crossing)[0]
    assert warnings(inside) == ()


def test_smallest_that_fits_fills_a_node_and_prefers_tensor_parallel() -> None:
    chosen = smallest_that_fits(*case("deepseek-v3", "pytorch", gpu="H200-141GB"))
    assert chosen is not None
    assert (chosen.tensor_parallel, chosen.pipeline_parallel) == (8, 1)
    across = smallest_that_fits(*case("llama-3.1-405b"))
    assert across is not None
    assert (across.tensor_parallel, across.pipeline_parallel) == (8, 2)


def test_listing_the_largest_model_takes_no_time() -> None:
    begun = time.perf_counter()
    assert len(options(*case("llama-3.1-405b"))) > 100
    assert time.perf_counter() - begun < 2


@settings(max_examples=200)
@given(layers=st.integers(1, 10_000), data=st.data())
def test_layers_are_dealt_evenly_in_order_and_all_of_them(layers: int, data: st.DataObject) -> None:
    split = pp_layers(layers, data.draw(st.integers(1, layers)))
    assert sum(split) == layers
    assert max(split) - min(split) <= 1
    assert split == sorted(split, reverse=True)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "gemma-2-9b"])
def test_every_listed_sharding_passes_its_own_check(name: str) -> None:
    model, facts = case(name)
    for option in options(model, facts):
        degrees = {"tensor_parallel": option.tensor_parallel, "pipeline_parallel": option.pipeline_parallel}
        assert (option.memory is None) == bool(check(model.model_copy(update=degrees), facts, "m"))
