"""Memory per rank: exact where it is computed, and held to a published measurement where it is estimated."""

from typing import Any

import pytest
from sample_models import case

from planner import memory
from planner.memory import GIB, MIB, pp_layers, rank_memory, stage_memory
from planner.tensors import parameters


@pytest.mark.parametrize("name", ["llama-3.1-8b", "mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v2-lite", "gemma-2-9b"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (1, 2), (2, 1), (4, 3)])
def test_sharded_weights_sum_to_the_model_plus_what_is_repeated(name: str, tp: int, pp: int) -> None:
    model, facts = case(name, "pytorch", tensor_parallel=tp, pipeline_parallel=pp)
    total = sum(rank.weights_bytes for rank in rank_memory(model, facts))
    once = 2 * parameters(facts)
    if facts.tied_embeddings and pp > 1:
        once += 2 * facts.vocab_size * facts.hidden_size
    # Norms, routers and MLA's down-projections are whole on each TP rank; nothing else is.
    assert once <= total <= once * (1 if tp == 1 else 1.04)
    assert tp > 1 or total == once


def test_smollm2_float32_to_the_byte() -> None:
    model, facts = case("smollm2-135m", "cpu", tensor_parallel=1)
    assert [rank.weights_bytes for rank in rank_memory(model, facts)] == [4 * 134_515_008]
    # With two stages the tied embedding is held twice: as embedding first, as LM head last.
    model, facts = case("smollm2-135m", "cpu", pipeline_parallel=2)
    first, last = rank_memory(model, facts)
    assert first.weights_bytes + last.weights_bytes == 4 * (134_515_008 + 49152 * 576)
    assert last.weights_bytes - first.weights_bytes == 4 * 576, "the final norm is on the last stage"


def test_smollm2_tp3_splits_all_but_the_norms() -> None:
    model, facts = case("smollm2-135m", "cpu", tensor_parallel=3)
    norms = (2 * 30 + 1) * 576
    each = 4 * ((134_515_008 - norms) // 3 + norms)
    assert [rank.weights_bytes for rank in rank_memory(model, facts)] == [each] * 3


def test_kv_heads_are_repeated_when_fewer_than_ranks() -> None:
    per_token = {
        tp: rank_memory(*case("llama-3.1-70b", tensor_parallel=tp, gpus_per_node=64))[0].kv_bytes_per_token
        for tp in (1, 4, 8, 16)
    }
    assert per_token == {1: 2 * 80 * 8 * 128 * 2, 4: 2 * 80 * 2 * 128 * 2, 8: 2 * 80 * 128 * 2, 16: 2 * 80 * 128 * 2}


def test_latent_attention_is_not_divided_by_tensor_parallel() -> None:
    for tp in (1, 8):
        model, facts = case("deepseek-v3", "pytorch", gpu="H200-141GB", tensor_parallel=tp)
        assert rank_memory(model, facts)[0].kv_bytes_per_token == 61 * (512 + 64) * 2


def test_kv_formats_halve_the_cache() -> None:
    whole = rank_memory(*case("llama-3.1-8b"))[0]
    halved = rank_memory(*case("llama-3.1-8b", quantization={"kv_cache": "fp8"}))[0]
    assert whole.kv_bytes_per_token == 2 * halved.kv_bytes_per_token
    assert halved.kv_tokens > 1.9 * whole.kv_tokens


def test_quantised_weights_shrink_as_their_bits_do() -> None:
    model, facts = case("llama-3.1-70b", gpu="B200-180GB")
    whole = rank_memory(model, facts)[0].weights_bytes
    linear = whole - 2 * (2 * 128256 * 8192)
    for fmt, bits in {"fp8": 8, "int8_wo": 8, "int8_sq": 8, "int4_wo": 4, "int4_awq": 4.125, "nvfp4": 4.5}.items():
        model, facts = case("llama-3.1-70b", gpu="B200-180GB", quantization={"weights": fmt})
        saved = whole - rank_memory(model, facts)[0].weights_bytes
        assert saved == pytest.approx(linear * (1 - bits / 16), rel=0.003), fmt


@pytest.mark.parametrize(("name", "gib"), [("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8), ("deepseek-v3", 627.0)])
def test_stored_formats_give_the_size_of_the_published_checkpoint(name: str, gib: float) -> None:
    """gpt-oss: model card, table 1. DeepSeek-V3: 688.6 GB of files less 15.3 GB of multi-token prediction module."""
    model, facts = case(name, "pytorch", gpu="B200-180GB")
    total = sum(rank.weights_bytes for rank in rank_memory(model, facts))
    assert total / GIB == pytest.approx(gib, rel=0.003)


def test_estimates_against_a_published_log() -> None:
    """TensorRT-LLM memory.md: a Llama-2-7B in FP8 with FP8 KV cache on an 80 GiB H100.

    Seen there: engine 6695 MiB, execution context 1134 MiB, total 79.10 GiB, KV cache 259840 tokens.
    """
    model, facts = case(
        "llama-2-7b", quantization={"weights": "fp8", "kv_cache": "fp8"}, build={"tokens_per_block": 64}
    )
    rank = rank_memory(model, facts)[0]
    assert rank.weights_bytes / MIB == pytest.approx(6695, rel=0.01)
    assert rank.kv_bytes_per_token == 262_144
    assert 1134 <= rank.activation_bytes / MIB <= 1134 * 1.2
    assert rank.capacity_bytes is not None
    assert 0.98 * 79.10 <= rank.capacity_bytes / GIB <= 79.10
    # Conservative, but by little.
    assert 0.97 * 259_840 <= rank.kv_tokens <= 259_840


def test_tensorrt_keeps_the_whole_embedding_on_every_first_rank() -> None:
    engine, facts = case("llama-3.1-8b", "tensorrt", tensor_parallel=2)
    torch, _ = case("llama-3.1-8b", "pytorch", tensor_parallel=2)
    more = rank_memory(engine, facts)[0].weights_bytes - rank_memory(torch, facts)[0].weights_bytes
    assert more == 2 * 128256 * 4096 // 2


def test_a_slice_has_its_own_memory_and_no_reserve_on_top() -> None:
    model, facts = case("smollm2-135m", mig_profile="1g.10gb")
    assert rank_memory(model, facts)[0].capacity_bytes == int(9.75 * GIB)
    assert memory.DRIVER_RESERVE > 0


def test_stages_get_layers_first_stages_first() -> None:
    assert pp_layers(30, 4) == [8, 8, 7, 7]
    model, facts = case("smollm2-135m", "cpu", pipeline_parallel=4)
    assert [(stage.first_layer, stage.layer_count) for stage in stage_memory(model, facts)] == [
        (0, 8),
        (8, 8),
        (16, 7),
        (23, 7),
    ]


def test_ranks_are_numbered_stage_by_stage() -> None:
    ranks = rank_memory(*case("llama-3.1-8b", tensor_parallel=2, pipeline_parallel=2))
    assert [(rank.rank, rank.pp_rank, rank.tp_rank) for rank in ranks] == [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)]


def test_a_larger_share_or_fewer_batched_tokens_leave_more_cache() -> None:
    def tokens(**changed: Any) -> int:
        return rank_memory(*case("llama-3.1-8b", **changed))[0].kv_tokens

    usual = tokens()
    assert tokens(serving={"kv_cache_free_gpu_mem_fraction": 0.5}) == pytest.approx(usual * 5 / 9, rel=0.001)
    assert tokens(max_num_tokens=65536) < usual < tokens(max_num_tokens=1024)
    assert usual % 32 == 0
