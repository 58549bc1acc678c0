"""Questions to aiconfigurator: one process for all, and a clear word where it is absent or fails."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fleet import aiconfigurator
from fleet.aiconfigurator import Question, estimate
from planner.config import ModelConfig
from planner.memory import rank_memory
from planner.model import facts_from_hf
from planner.throughput import Interconnect, Workload, throughput
from runtime.errors import Refusal

KNOWN = Path(__file__).parents[2] / "planner" / "known_models"


def question(
    name: str = "llama-3.1-8b",
    gpu: str = "H100-80GB",
    tp: int = 1,
    nvlink: bool = True,
    prompt: int = 1000,
    batch: int | None = None,
    **more: Any,
) -> Question:
    facts = facts_from_hf(json.loads((KNOWN / f"{name}.json").read_text(encoding="utf-8")), name)
    model = ModelConfig.model_validate(
        {
            "name": "model",
            "source": "hf://some/model",
            "backend": "pytorch",
            "gpu": gpu,
            "tensor_parallel": tp,
            "max_seq_len": 4096,
            **more,
        }
    )
    return Question(
        model=model,
        facts=facts,
        memory=rank_memory(model, facts),
        workload=Workload(prompt_tokens=prompt, output_tokens=500),
        interconnect=Interconnect(nvlink=nvlink),
        batch=batch,
    )


@pytest.fixture
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of .venv/aiconfigurator, empty."""
    monkeypatch.setattr(aiconfigurator, "ENVIRONMENT", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("own_environment")
def test_it_says_that_it_is_absent() -> None:
    assert aiconfigurator.installed() is None
    with pytest.raises(Refusal, match="not installed") as refused:
        estimate([question()])
    assert "make aiconfigurator" in refused.value.fix


@pytest.mark.usefixtures("own_environment")
def test_what_it_cannot_know_is_not_asked() -> None:
    unknown = [
        question(gpu="L4"),
        question(mig_profile="3g.40gb"),
        question("gemma-2-9b"),
        question("mixtral-8x7b", quantization={"weights": "int8_wo"}),
    ]
    # Were one of them asked, this would refuse: there is nothing to ask.
    assert estimate(unknown) == [None] * len(unknown)
    assert estimate([]) == []


@pytest.mark.parametrize("said", ["", "no JSON", "{}", '{"answers": []}'])
def test_a_process_that_answers_nonsense_is_one_error(own_environment: Path, said: str) -> None:
    python = own_environment / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!{sys.executable}\nprint({said!r})\n", encoding="utf-8")
    python.chmod(0o755)
    with pytest.raises(Refusal, match="gave no answer") as refused:
        estimate([question()])
    assert "use the roofline" in refused.value.fix


def test_a_process_that_breaks_off_is_quoted(own_environment: Path) -> None:
    python = own_environment / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!{sys.executable}\nraise SystemExit('no module aiconfigurator_core')\n", encoding="utf-8")
    python.chmod(0o755)
    with pytest.raises(Refusal, match="no module aiconfigurator_core"):
        estimate([question()])


@pytest.fixture
def package() -> None:
    if aiconfigurator.installed() is None:
        pytest.skip("no .venv/aiconfigurator: `make aiconfigurator` installs NVIDIA's measured kernels (0.7 GB)")


@pytest.mark.usefixtures("package")
def test_measured_and_roofline_answer_the_same_question() -> None:
    asked = [
        question(),
        question(gpu="T4"),
        question("llama-3.1-70b", tp=4, quantization={"weights": "fp8", "kv_cache": "fp8"}),
        question("deepseek-v3", "H200-141GB", tp=8),
        question("phi-3-mini-4k"),
        question(prompt=200),
        question(batch=16),
    ]
    found = estimate(asked)
    assert found[1] is None, "no measurements of a T4"
    assert found[4] is None, "no measurements of heads of 96 elements: it refuses, and does not guess"
    for one, answer in zip(asked, found, strict=True):
        if answer is None:
            continue
        assert answer.source.startswith("aiconfigurator 0.12.0 (kernels of TensorRT-LLM ")
        other = throughput(one.model, one.facts, one.memory, one.workload, interconnect=one.interconnect)
        if one.batch is None:
            assert answer.batch == other.batch
            assert 0.5 < answer.output_tokens_per_s / other.output_tokens_per_s < 1.6
    whole, short, few = found[0], found[5], found[6]
    assert whole
    assert short
    assert few
    assert few.batch == 16
    assert few.inter_token_latency_s < whole.inter_token_latency_s
    assert short.output_tokens_per_s > whole.output_tokens_per_s


@pytest.mark.usefixtures("package")
def test_messages_over_pcie_are_not_those_of_its_one_host() -> None:
    pcie, board = estimate(
        [question("llama-3.1-70b", "A100-80GB", tp=4, nvlink=nvlink, batch=64) for nvlink in (False, True)]
    )
    assert pcie
    assert board
    assert "all-reduce by bandwidth" in pcie.source
    assert pcie.inter_token_latency_s > 1.2 * board.inter_token_latency_s
