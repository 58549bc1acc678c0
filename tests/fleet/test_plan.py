"""`fleet plan` as a person or a script calls it: tables with units, JSON, exit codes, no traceback."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from fleet import plan
from fleet.local import checkpoint_path
from planner.plan import plan_file, plan_model
from planner.stack_file import load_stack
from runtime.build import build_engine

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "100")


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    plan.add_parser(parser.add_subparsers())
    args = parser.parse_args(["plan", *arguments])
    return args.run(args)


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = call(*arguments, "--json")
    return code, json.loads(capsys.readouterr().out)


def test_local_stack_by_name_and_by_path_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert as_json(capsys, "local") == as_json(capsys, "stacks/Pulumi.local.yaml")


def test_json_is_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    code, document = as_json(capsys, "local")
    expected = plan_file(ROOT / "stacks" / "Pulumi.local.yaml").models[0]
    [model] = document["models"]
    assert code == 0
    assert model["engine"] == expected.engine.document()
    assert model["parameters"] == 134_515_008
    assert [rank["weights_bytes"] for rank in model["memory"]] == [rank.weights_bytes for rank in expected.memory]
    legal = {(o["tensor_parallel"], o["pipeline_parallel"]) for o in model["shardings"] if not o["refused"]}
    assert legal == {(tp, pp) for tp in (1, 3) for pp in range(1, 31)}


def test_table_shows_shardings_memory_key_and_estimates(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("local") == 0
    text = capsys.readouterr().out
    assert "134,515,008 parameters" in text
    assert 'refused by "TP divides the 9 attention heads": TP 2, TP 4' in text
    assert "60 in all" in text
    assert "Memory of each rank, TP 3 x PP 1, in GiB" in text
    assert "engine key 7b03eb949529026c" in text
    assert "* activations and runtime are estimates" in text
    weights = [line.split()[2] for line in text.splitlines() if line.split()[1:2] == ["0-29"]]
    assert weights == ["0.17"] * 3


def test_a_cloud_stack_also_shows_nodes_prices_and_quotas(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("aws-llama-405b") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "h100-on-demand p5.48xlarge use1-az6 0-3 8 gpu 2 110.08 32 efa" in text
    assert "Estimate: GPU nodes only" in text
    assert "the account must allow 576 vCPU of 'All P5 Spot Instance Requests'" in text
    code, document = as_json(capsys, "aws-llama-405b")
    assert code == 0
    lines = {line["node_group"]: line for line in document["infrastructure"]["cost"]["lines"]}
    assert lines["h100-spot"]["usd_per_hour"] < lines["h100-on-demand"]["usd_per_hour"] == 110.08


def test_a_model_on_a_gpu_gets_the_smallest_sharding_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, document = as_json(capsys, "--model", "llama-3.1-70b", "--gpu", "H100-80GB")
    [model] = document["models"]
    assert code == 0
    assert (model["config"]["tensor_parallel"], model["config"]["pipeline_parallel"]) == (2, 1)
    assert model["config"]["backend"] == "tensorrt"
    assert model["engine"] is None, "no revision is pinned, so there is no key to promise"


def test_a_family_without_engines_goes_to_the_pytorch_backend(capsys: pytest.CaptureFixture[str]) -> None:
    code, document = as_json(capsys, "--model", "hf://deepseek-ai/DeepSeek-R1", "--gpu", "H200-141GB")
    [model] = document["models"]
    assert (code, model["config"]["backend"], model["world_size"]) == (0, "pytorch", 8)


def test_a_config_json_can_be_asked_about(capsys: pytest.CaptureFixture[str]) -> None:
    config = "planner/known_models/qwen3-30b-a3b.json"
    code, document = as_json(capsys, "--model", config, "--gpu", "L4", "--gpus-per-node", "4")
    [model] = document["models"]
    assert (code, model["world_size"], model["config"]["gpus_per_node"]) == (0, 4, 4)
    # 61 GB of weights over three 22 GiB GPUs would leave no room for the rest.
    assert [o["memory"]["fits"] for o in model["shardings"] if o["memory"] and o["tensor_parallel"] == 2][:1] == [False]


def test_what_fits_nowhere_is_refused_with_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = json.loads((ROOT / "planner" / "known_models" / "llama-3.1-405b.json").read_text(encoding="utf-8"))
    giant = tmp_path / "config.json"
    giant.write_text(json.dumps(known | {"num_hidden_layers": 1260}), encoding="utf-8")
    assert call("--model", str(giant), "--gpu", "L4") == 1
    text = capsys.readouterr().out
    assert "No sharding up to 128 ranks fits L4" in text
    assert "Legal shardings" in text
    assert "yes" not in text


def test_a_fault_in_a_config_json_is_named_by_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = json.loads((ROOT / "planner" / "known_models" / "llama-3.1-8b.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(known | {"num_hidden_layers": 10**9}), encoding="utf-8")
    assert call("--model", str(tmp_path / "config.json"), "--gpu", "L4") == 1
    assert "--model: num_hidden_layers: 1000000000 is not between 1 and 10000" in capsys.readouterr().err


def test_kernels_that_a_gpu_lacks_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--model", "deepseek-v3", "--gpu", "A30-24GB") == 1
    assert "--gpu: weights stored as fp8 need compute capability 9.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give either a stack or --model"),
        (("local", "--model", "smolm2"), "did you mean smollm2?"),
        (("locl",), "did you mean local?"),
        (("a\0b",), "no stack named"),
        (("local", "--gpu", "L4"), "a stack names its own GPUs"),
        (("--model", "lama-3.1-8b"), "did you mean llama-3.1-8b?"),
        (("--model", "llama-3.1-8b", "--gpu", "H100"), "give one of H100-80GB, H100-94GB"),
        (("--model", "llama-3.1-8b", "--gpu", "L4", "--gpus-per-node", "0"), "give at least 1"),
        (("--model", "qwen3-8b", "--gpus-per-node", "8"), "is for GPU backends"),
    ],
)
def test_a_wrong_command_line_is_usage(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.out == ""


def test_a_refused_stack_is_1_with_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "Pulumi.bad.yaml"
    text = (ROOT / "stacks" / "Pulumi.local.yaml").read_text(encoding="utf-8")
    path.write_text(
        text.replace("tensor_parallel: 3", "tensor_parallel: 2").replace("cloud: existing", "cloud: exsting")
    )
    code, document = as_json(capsys, str(path))
    assert code == 1
    assert {problem["key"] for problem in document["problems"]} == {"cloud", "models[0].tensor_parallel"}
    assert call(str(path)) == 1
    assert "did you mean existing?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [("missing.yaml",), ("--model", "missing.json"), ("--model", "/"), ("local", "--model", "smollm2")]
)
def test_what_cannot_be_read_or_run_is_refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 1
    assert "nothing was planned" in capsys.readouterr().err


def test_planned_weights_are_the_bytes_of_the_engine_that_gets_built(tmp_path: Path) -> None:
    model = load_stack(ROOT / "stacks" / "Pulumi.local.yaml").models[0].model_copy(update={"pipeline_parallel": 2})
    planned = plan_model(model, base_dir=ROOT, key="models[0]")
    checkpoint = checkpoint_path(planned.config, ROOT)
    engine = build_engine(planned.engine.document(), checkpoint, tmp_path, lambda _line: None)
    built = [tensor_bytes(engine / f"rank{rank.rank}.safetensors") for rank in planned.memory]
    assert built == [rank.weights_bytes for rank in planned.memory]


def tensor_bytes(path: Path) -> int:
    """The size of all tensors: a safetensors file is an 8-byte length, a JSON header of that length, and the data."""
    content = path.read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")
