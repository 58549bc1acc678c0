"""From stack to plan: what is decided, and what is refused because the model's facts forbid it."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from sample_models import GPU, LOCAL, planned

from planner.errors import PlanError
from planner.plan import plan_file
from planner.sources import KNOWN_MODELS

ROOT = Path(__file__).parents[2]


def refusal(base: dict[str, Any], **changed: Any) -> dict[str, str]:
    with pytest.raises(PlanError) as refused:
        planned(base, **changed)
    found: dict[str, str] = {}
    for problem in refused.value.problems:
        found[problem.key] = found.get(problem.key, "") + f"{problem.what}; {problem.fix}"
    return found


def test_the_local_stack_is_three_ranks_on_one_host() -> None:
    plan = plan_file(ROOT / "stacks" / "Pulumi.local.yaml").models[0]
    assert (plan.world_size, plan.nodes, plan.ranks_per_node, len(plan.memory)) == (3, 1, 3, 3)
    assert plan.kv_tokens == plan.config.serving.kv_cache_tokens == 16_384
    assert plan.engine.key["mapping"]["gpus_per_node"] == 3


def test_llamas_with_biases_are_not_for_the_cpu_engine(tmp_path: Path) -> None:
    known = json.loads((KNOWN_MODELS / "smollm2-135m.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(
        json.dumps(known | {"attention_bias": True, "mlp_bias": True}), encoding="utf-8"
    )
    said = refusal(LOCAL, config="config.json", base_dir=tmp_path)["models[0].backend"]
    assert "attention biases" in said
    assert "feed-forward biases" in said


def test_the_same_stack_gives_the_same_plan() -> None:
    path = ROOT / "stacks" / "Pulumi.local.yaml"
    assert plan_file(path) == plan_file(path)


def test_cpu_cache_holds_at_least_one_request_and_zero_is_not_lost() -> None:
    assert planned(LOCAL, max_seq_len=8192, max_batch_size=1).kv_tokens == 8192
    assert planned(LOCAL, max_seq_len=100, max_batch_size=2).kv_tokens == 200
    assert planned(LOCAL, serving={"max_queue_delay_microseconds": 0}).config.serving.max_queue_delay_microseconds == 0


def test_default_length_stops_at_the_models_own(tmp_path: Path) -> None:
    known = json.loads((KNOWN_MODELS / "llama-3.1-8b.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(known | {"max_position_embeddings": 1000}), encoding="utf-8")
    assert planned(GPU).config.max_seq_len == 4096
    assert planned(GPU, config="config.json", base_dir=tmp_path).config.max_seq_len == 1000
    assert refusal(GPU, config="config.json", base_dir=tmp_path, max_seq_len=4096).keys() == {"models[0].max_seq_len"}


def test_groups_over_nodes() -> None:
    plan = planned(GPU, source="hf://meta-llama/Llama-3.1-405B", tensor_parallel=8, pipeline_parallel=2)
    assert (plan.world_size, plan.nodes, plan.ranks_per_node) == (16, 2, 8)
    assert plan.warnings == ()
    crossing = planned(GPU, source="hf://meta-llama/Llama-3.1-405B", tensor_parallel=16)
    assert "crosses the network" in crossing.warnings[0]


def test_a_model_too_large_is_told_what_would_hold_it() -> None:
    found = refusal(GPU, source="hf://meta-llama/Llama-3.1-70B", tensor_parallel=1)
    assert found.keys() == {"models[0].tensor_parallel"}
    assert "H100-80GB has 78.8 GiB" in found["models[0].tensor_parallel"]
    assert found["models[0].tensor_parallel"].endswith("tensor_parallel 2, pipeline_parallel 1")
    assert planned(GPU, source="hf://meta-llama/Llama-3.1-70B", tensor_parallel=2).memory[0].fits


@pytest.mark.parametrize(
    ("base", "changed", "key", "what"),
    [
        (LOCAL, {"tensor_parallel": 2}, "tensor_parallel", "not divisible by 2"),
        (LOCAL, {"max_seq_len": 8193}, "max_seq_len", "8193 tokens, but the model has 8192 positions"),
        (LOCAL, {"source": "hf://Qwen/Qwen3-8B"}, "backend", "cpu does not run qwen3"),
        (LOCAL, {"source": "hf://meta-llama/Llama-3.1-8B", "tensor_parallel": 1}, "backend", "RoPE scaling (llama3)"),
        (
            LOCAL,
            {"source": "hf://HuggingFaceTB/SmolLM2-135M-Instrct"},
            "source",
            "did you mean hf://HuggingFaceTB/SmolLM2",
        ),
        (LOCAL, {"source": "missing.gguf"}, "source", "No such file"),
        (LOCAL, {"config": "missing.json"}, "config", "No such file"),
        (GPU, {"source": "hf://openai/gpt-oss-20b"}, "backend", "tensorrt does not run gpt_oss"),
        (GPU, {"source": "hf://openai/gpt-oss-20b"}, "source", "stored as mxfp4"),
        (
            GPU,
            {"source": "hf://openai/gpt-oss-20b", "backend": "pytorch", "gpu": "A100-80GB"},
            "gpu",
            "need compute capability 9.0",
        ),
        (
            GPU,
            {"source": "hf://openai/gpt-oss-20b", "backend": "pytorch", "quantization": {"weights": "fp8"}},
            "quantization.weights",
            "fp8, but the weights are stored as mxfp4",
        ),
    ],
)
def test_what_the_facts_forbid(base: dict[str, Any], changed: dict[str, Any], key: str, what: str) -> None:
    assert what in refusal(base, **changed)[f"models[0].{key}"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, "null", '{"architectures": ["X"]}', "\xff"])
def test_a_config_json_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    found = refusal(LOCAL, config="config.json", base_dir=tmp_path)
    assert all(key.startswith("models[0].config") for key in found)


def test_faults_of_one_model_and_facts_of_another_come_together(tmp_path: Path) -> None:
    stack = tmp_path / "Pulumi.two.yaml"
    broken, illegal = LOCAL | {"name": "broken", "max_batch_size": 0}, LOCAL | {"tensor_parallel": 2}
    values = {"config": {"tritonfleet:cloud": "existing", "tritonfleet:models": [broken, illegal]}}
    stack.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(PlanError) as refused:
        plan_file(stack)
    assert {problem.key for problem in refused.value.problems} == {
        "models[0].max_batch_size",
        "models[1].tensor_parallel",
    }


def test_what_the_conversion_tools_lack_is_refused_while_planning() -> None:
    gemma: dict[str, Any] = {"source": "hf://google/gemma-2-9b", "pipeline_parallel": 2}
    assert "no --pp_size" in refusal(GPU, **gemma)["models[0].pipeline_parallel"]
    assert planned(GPU, **gemma, quantization={"weights": "fp8"}).world_size == 4, "quantize.py has --pp_size"
    assert planned(GPU, **gemma, backend="pytorch").world_size == 4
    deepseek: dict[str, Any] = {"source": "hf://deepseek-ai/DeepSeek-V2-Lite", "quantization": {"weights": "int8_wo"}}
    assert "no --use_weight_only" in refusal(GPU, **deepseek)["models[0].quantization.weights"]


def test_the_pytorch_backend_takes_weights_as_they_are_stored() -> None:
    stored: dict[str, Any] = {
        "source": "hf://deepseek-ai/DeepSeek-V3",
        "backend": "pytorch",
        "gpu": "H200-141GB",
        "tensor_parallel": 8,
    }
    plain, declared = planned(GPU, **stored), planned(GPU, **stored, quantization={"weights": "fp8"})
    assert declared.memory == plain.memory
    assert declared.warnings == ()
    unseen = planned(GPU, backend="pytorch", quantization={"weights": "fp8"})
    assert "needs them stored so already" in unseen.warnings[0]


def test_nvfp4_on_the_engine_path_carries_a_warning() -> None:
    assert "nvfp4" in planned(GPU, gpu="B200-180GB", quantization={"weights": "nvfp4"}).warnings[0]


def test_planner_imports_neither_the_other_rooms_nor_pulumi() -> None:
    foreign = {"components", "fleet", "frontend", "model_repo", "pulumi", "runtime"}
    ambient = {"os", "time", "datetime", "socket", "urllib", "random", "subprocess"}
    for path in (ROOT / "planner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            if path.name in ("instances.py", "peaks.py", "running_cost.py"):
                roots.discard("datetime")  # they check that dates are dates, and ask no clock
            assert not any(root in foreign or root in ambient or root.startswith("pulumi") for root in roots), path
