"""The roofline: what holds of any machine, and arithmetic done by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.batching import Run, run_seconds
from planner.config import ModelConfig
from planner.gpus import CATALOG, gpus
from planner.instances import instances
from planner.interconnect import PCIE_EFFICIENCY, Interconnect, interconnect, links
from planner.memory import rank_memory
from planner.model import ModelFacts, facts_from_hf
from planner.peaks import peaks, read_peaks
from planner.roofline import MEMORY_EFFICIENCY
from planner.throughput import Throughput, Workload, largest_batch, throughput

KNOWN = CATALOG.parent / "known_models"
CHAT = Workload(prompt_tokens=1000, output_tokens=500)
NVLINK = Interconnect(nvlink=True, network_gbps=3200, rdma=True)


def facts(name: str) -> ModelFacts:
    return facts_from_hf(json.loads((KNOWN / f"{name}.json").read_text(encoding="utf-8")), name)


def config(gpu: str | None, tp: int = 1, pp: int = 1, **more: Any) -> ModelConfig:
    values: Mapping[str, Any] = {
        "name": "model",
        "source": "hf://some/model",
        "backend": "pytorch",
        "gpu": gpu,
        "tensor_parallel": tp,
        "pipeline_parallel": pp,
        "max_seq_len": 4096,
        **more,
    }
    return ModelConfig.model_validate(values)


def roofline(
    name: str, model: ModelConfig, workload: Workload = CHAT, found: Interconnect = NVLINK, batch: int | None = None
) -> Throughput:
    known = facts(name)
    return throughput(model, known, rank_memory(model, known), workload, interconnect=found, batch=batch)


FP8 = {"weights": "fp8", "kv_cache": "fp8"}


def test_one_sequence_reads_all_weights_for_each_token() -> None:
    one = roofline("llama-3.1-8b", config("H100-80GB"), batch=1)
    # 8.03e9 weights less the embedding's 0.53e9, of two bytes, and the KV cache of one sequence, which is little.
    read = 2 * 7.5e9 / (3350e9 * MEMORY_EFFICIENCY)
    assert read < one.inter_token_latency_s < 1.5 * read
    assert one.batch == 1
    assert one.output_tokens_per_s == pytest.approx(1 / one.inter_token_latency_s)
    assert "roofline" in one.source


@given(
    name=st.sampled_from(["llama-3.1-8b", "mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "gpt-oss-20b"]),
    gpu=st.sampled_from(sorted(name for name, gpu in gpus().items() if gpu.capability >= (8, 0))),
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 4096),
    prompt=st.integers(1, 30_000),
    output=st.integers(1, 4000),
    nvlink=st.booleans(),
)
def test_more_sequences_answer_more_in_all_and_each_later(
    name: str, gpu: str, tp: int, pp: int, batch: int, prompt: int, output: int, nvlink: bool
) -> None:
    model, load = config(gpu, tp, pp), Workload(prompt_tokens=prompt, output_tokens=output)
    few = roofline(name, model, load, Interconnect(nvlink=nvlink), batch)
    many = roofline(name, model, load, Interconnect(nvlink=nvlink), 2 * batch)
    assert many.output_tokens_per_s >= few.output_tokens_per_s * 0.999
    assert many.inter_token_latency_s >= few.inter_token_latency_s
    assert 0 < few.inter_token_latency_s <= few.time_to_first_token_s < float("inf")


def test_faster_parts_answer_sooner() -> None:
    model = config("A100-80GB", 4)
    joined, through_host = (roofline("llama-3.1-70b", model, found=Interconnect(nvlink=link)) for link in (True, False))
    assert joined.batch == through_host.batch
    assert joined.output_tokens_per_s > 1.3 * through_host.output_tokens_per_s
    assert (
        roofline("llama-3.1-8b", config("H200-141GB"), batch=64).output_tokens_per_s
        > roofline("llama-3.1-8b", config("H100-80GB"), batch=64).output_tokens_per_s
    )


def test_a_group_over_two_nodes_pays_for_the_network() -> None:
    across = config("H100-80GB", 16, quantization=FP8)
    fast, slow = (
        roofline("llama-3.1-405b", across, found=Interconnect(nvlink=True, network_gbps=gbps, rdma=gbps > 100))
        for gbps in (3200, 100)
    )
    assert fast.output_tokens_per_s > 2 * slow.output_tokens_per_s
    # Stages send far less than all-reduces do.
    stages = config("H100-80GB", 8, 2, quantization=FP8)
    assert (
        roofline("llama-3.1-405b", stages, found=Interconnect(nvlink=True, network_gbps=100)).output_tokens_per_s
        > 2 * slow.output_tokens_per_s
    )


def test_a_mig_slice_has_its_part_of_the_gpu() -> None:
    whole = roofline("llama-3.1-8b", config("H100-80GB", quantization=FP8), batch=8)
    half = roofline("llama-3.1-8b", config("H100-80GB", mig_profile="3g.40gb", quantization=FP8), batch=8)
    eighth = roofline("llama-3.1-8b", config("H100-80GB", mig_profile="1g.20gb", quantization=FP8), batch=8)
    # Decoding is bound by bandwidth, of which 3g.40gb has four eighths and 1g.20gb two.
    assert 1.5 < half.inter_token_latency_s / whole.inter_token_latency_s < 2.1
    assert 2.2 < eighth.inter_token_latency_s / whole.inter_token_latency_s < 5


def test_the_largest_batch_is_what_memory_and_the_engine_allow() -> None:
    model, known = config("H100-80GB"), facts("llama-3.1-8b")
    memory = rank_memory(model, known)
    free = memory[0].kv_tokens
    # 1500 tokens fill 47 blocks of 32.
    assert largest_batch(model, memory, CHAT) == free // (47 * 32)
    assert largest_batch(config("H100-80GB", max_batch_size=7), memory, CHAT) == 7
    eager = config("H100-80GB", serving={"batch_scheduler_policy": "max_utilization"})
    assert largest_batch(eager, memory, CHAT) == free // (40 * 32)
    assert roofline("llama-3.1-8b", model).batch == free // (47 * 32)
    assert roofline("llama-3.1-8b", model, Workload(prompt_tokens=1000, output_tokens=500, requests=5)).batch == 5


def test_the_host_is_waited_for_between_stages() -> None:
    load = Workload(prompt_tokens=16, output_tokens=64)
    many = config("RTX-PRO-6000-96GB", 1, 4, max_batch_size=1024)
    engine = config("RTX-PRO-6000-96GB", 1, 4, max_batch_size=1024, backend="tensorrt")
    found = Interconnect(nvlink=False)
    python, compiled = (roofline("llama-3.1-8b", model, load, found, batch=4096) for model in (many, engine))
    # Four stages, 1024 sequences each, 25 us less for a sequence.
    assert python.inter_token_latency_s - compiled.inter_token_latency_s == pytest.approx(4 * 1024 * 25e-6)


def test_a_model_without_a_gpu_has_no_roofline() -> None:
    model, known = config(None, backend="cpu"), facts("smollm2-135m")
    with pytest.raises(ValueError, match="needs a GPU"):
        throughput(model, known, rank_memory(model, known), CHAT, interconnect=NVLINK)


def run(requests: float, slots: float, tokens: int = 1 << 20, prompt: int = 100, output: int = 64) -> Run:
    return Run(
        requests=requests,
        prompt_tokens=prompt,
        output_tokens=output,
        slots=slots,
        max_num_tokens=tokens,
        kv_sequences=slots,
    )


def one_second(_sequences: float, _context: float, _prefill: float) -> float:
    return 1.0


def test_a_run_takes_a_step_for_each_token_of_each_wave() -> None:
    assert run_seconds(run(10, 10), one_second) == 64
    assert run_seconds(run(25, 10), one_second) == 3 * 64


def test_a_run_computes_every_token_once() -> None:
    done = {"decoded": 0.0, "prompts": 0.0, "context": 0.0}

    def step(sequences: float, context: float, prefill: float) -> float:
        done["decoded"] += sequences
        done["prompts"] += prefill
        done["context"] += sequences * context
        return 1.0

    # At most 250 prompt tokens an iteration beside the 8 that decode, and 8 of 20 at once.
    run_seconds(run(20, 8, tokens=258), step)
    assert done["decoded"] == pytest.approx(20 * 64)
    assert done["prompts"] == pytest.approx(20 * 100)
    assert done["context"] / done["decoded"] == pytest.approx(100 + 32, rel=0.01)


def test_few_prompts_an_iteration_delay_a_run() -> None:
    quick, throttled = (run_seconds(run(100, 50, tokens=tokens), one_second) for tokens in (1 << 20, 100))
    assert throttled > 1.3 * quick


def test_an_all_reduce_over_pcie_passes_its_ring() -> None:
    four = links(config("L40S", 4), peaks()["L40S"], Interconnect(nvlink=True))
    # L40S has no NVLink whatever the interconnect says; 1.5 times the message passes each link of a ring of four.
    size = 64e6
    assert not four.over_nvlink
    assert four.all_reduce_s(size) == pytest.approx(1.5 * size / (32e9 * PCIE_EFFICIENCY) + 6 * 10e-6)
    assert links(config("L40S"), peaks()["L40S"], Interconnect(nvlink=False)).all_reduce_s(size) == 0


def test_instances_say_what_joins_their_gpus() -> None:
    assert interconnect(instances("aws")["p5.48xlarge"]).nvlink
    assert interconnect(instances("aws")["p5.48xlarge"]).rdma
    assert not interconnect(instances("aws")["g6e.48xlarge"]).nvlink
    cards = next(size for name, size in instances("azure").items() if "NC96ads_A100" in name)
    assert not interconnect(cards).nvlink


def test_every_gpu_has_its_peaks() -> None:
    assert peaks().keys() == gpus().keys()
    assert all(peak.tflops_8 > peak.tflops_16 for peak in peaks().values() if peak.fp8)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("L4,300,", "L4,fast,", "column memory_gb_s: 'fast' is not a number"),
        ("L4,300,", "L4,0,", "column memory_gb_s: '0' is below 1"),
        ("L4,300,", "L9,300,", "column gpu: 'L9' is not in gpus.csv"),
        ("L4,300,121,242,y,", "L4,300,121,242,maybe,", "column fp8: 'maybe' is not y or n"),
        ("L40S,864", "L4,864", "column gpu: 'L4' is not in gpus.csv, or is listed twice"),
    ],
)
def test_malformed_peaks_are_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (CATALOG / "gpu_peaks.csv").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "gpu_peaks.csv").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        read_peaks(tmp_path / "gpu_peaks.csv")


def test_a_gpu_without_peaks_is_named(tmp_path: Path) -> None:
    lines = (CATALOG / "gpu_peaks.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "gpu_peaks.csv").write_text("\n".join(line for line in lines if not line.startswith("T4,")))
    with pytest.raises(ValueError, match="no row for T4"):
        read_peaks(tmp_path / "gpu_peaks.csv")
