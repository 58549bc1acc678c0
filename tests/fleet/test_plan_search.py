"""`fleet plan` with a target as a person or a script calls it: the table, the plots, JSON, --write, and refusals."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fleet import aiconfigurator, plan
from planner.plan import plan_file
from planner.throughput import Throughput

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    # Where it is installed it is asked in a test of its own.
    monkeypatch.setattr(aiconfigurator, "installed", lambda: None)


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    plan.add_parser(parser.add_subparsers())
    args = parser.parse_args(["plan", *arguments])
    return args.run(args)


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = call(*arguments, "--json")
    return code, json.loads(capsys.readouterr().out)


def test_a_model_alone_is_searched_for_on_every_cloud(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    png = tmp_path / "front.png"
    assert call("--model", "llama-3.1-8b", "--tokens-per-second", "5000", "--rows", "3", "--png", str(png)) == 0
    text = capsys.readouterr().out
    for words in ("choices meet the target", "by roofline", "Pareto front", "inter-token latency (ms, estimate)"):
        assert words in text
    for words in ("against the next", "expected interruptions", "egress", "for the engine's build", "of it idle"):
        assert words in text
    assert len([line for line in text.splitlines() if line[:2].strip().isdigit()]) == 3
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert png.stat().st_size > 10_000
    assert list(tmp_path.iterdir()) == [png]


def test_a_model_that_no_laptop_runs_needs_no_target(capsys: pytest.CaptureFixture[str]) -> None:
    code, document = as_json(capsys, "--model", "qwen3-8b")
    assert code == 0
    assert {each["cloud"] for each in document["ranked"]} == {"aws", "gcp", "azure"}
    assert call("--model", "planner/known_models/smollm2-135m.json") == 0
    assert "Legal shardings" in capsys.readouterr().out


def test_json_has_every_choice_with_its_units_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--ttft", "1900", "--itl", "80", "--gpu", "L40S", "--requests-per-second", "5")
    code, document = as_json(capsys, "--model", "llama-3.1-70b", *flags)
    assert code == 0
    assert document["target"]["output_tokens_per_s"] == 5 * 256
    for each in document["ranked"]:
        assert (each["gpu"], each["estimate"].partition(" ")[0]) == ("L40S", "roofline")
        assert each["time_to_first_token_ms_p95"] <= 1900
        assert each["inter_token_latency_ms"] <= 80
        parts = each["usd_per_month"]
        built = each["engine_build_usd_once"] / 3
        total = parts["nodes"] + parts["interruptions"] + parts["egress"] + built
        assert parts["total"] == pytest.approx(total, rel=1e-3)
    assert document["front"]
    assert document["settings"] is None


def test_measured_kernels_come_before_the_roofline_where_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[aiconfigurator.Question] = []

    def estimate(questions: list[aiconfigurator.Question]) -> list[Throughput | None]:
        asked.extend(questions)
        return [_measured(question) if question.model.gpu == "H100-80GB" else None for question in questions]

    monkeypatch.setattr(aiconfigurator, "installed", lambda: Path("python"))
    monkeypatch.setattr(aiconfigurator, "estimate", estimate)
    code, document = as_json(capsys, "--model", "llama-3.1-70b", "--gpu", "H100-80GB", "--itl", "90")
    assert code == 0
    sources = [each["estimate"] for each in document["ranked"]]
    assert sources[0] == "aiconfigurator (a test)"
    # Those that were not asked about are scaled by what those that were reach of their rooflines.
    assert any("as other shapes on this GPU measure" in source for source in sources)
    assert len({question.batch for question in asked}) > 10
    asked.clear()
    assert as_json(capsys, "--model", "llama-3.1-70b", "--gpu", "H100-80GB", "--roofline")[0] == 0
    assert asked == []


def _measured(question: aiconfigurator.Question) -> Throughput:
    batch = question.batch or 1
    return Throughput(
        batch=batch,
        output_tokens_per_s=10.0 * batch,
        time_to_first_token_s=0.2,
        inter_token_latency_s=0.05,
        source="aiconfigurator (a test)",
    )


def test_a_stack_is_searched_on_its_own_cloud_region_and_zones(capsys: pytest.CaptureFixture[str]) -> None:
    code, document = as_json(capsys, "aws-llama-405b", "--tokens-per-second", "1500")
    assert code == 0
    assert {(each["cloud"], each["region"]) for each in document["ranked"]} == {("aws", "us-east-1")}
    assert document["target"]["context_tokens"] == 16_384
    assert document["settings"]


def test_write_puts_the_choice_into_the_stack_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "Pulumi.aws-llama-70b.yaml"
    shutil.copy(ROOT / "stacks" / path.name, path)
    before = path.read_text(encoding="utf-8")
    flags = ("--tokens-per-second", "3000", "--itl", "60", "--quantization", "fp8", "--write")
    code, document = as_json(capsys, str(path), *flags)
    assert code == 0
    after, best = path.read_text(encoding="utf-8"), document["ranked"][0]
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert 0 < len(changed) <= len(document["settings"])
    assert [line for line in before.splitlines() if "#" in line] == [line for line in after.splitlines() if "#" in line]
    plan_of_it = plan_file(path)
    model, infrastructure = plan_of_it.models[0], plan_of_it.infrastructure
    assert infrastructure
    assert model.config.tensor_parallel == best["tensor_parallel"]
    assert model.config.quantization.weights == "fp8"
    assert model.config.serving.replicas == best["replicas"]
    assert infrastructure.pools[0].node_groups[0].instance_types[0] == best["instance_type"]
    assert infrastructure.pools[0].node_groups[0].max_nodes == best["nodes"] + 1
    # A second time there is nothing to write.
    code, document = as_json(capsys, str(path), *flags)
    assert (code, document["settings"], path.read_text(encoding="utf-8")) == (0, {}, after)


def test_a_model_on_a_shared_pool_gets_one_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "Pulumi.small.yaml"
    shutil.copy(ROOT / "stacks" / "Pulumi.aws-small-mig.yaml", path)
    code, document = as_json(capsys, str(path), "--model", "qwen3-8b", "--gpu", "L4", "--write")
    assert code == 0
    assert document["settings"]["models[1].pool"] == "qwen3-8b"
    planned = plan_file(path)
    assert planned.infrastructure
    assert [pool.name for pool in planned.infrastructure.pools] == ["mig", "qwen3-8b"]
    assert planned.models[1].config.gpu == "L4"
    assert planned.models[0].config.mig_profile == "2g.20gb"


def test_what_the_rest_of_the_stack_does_not_allow_is_refused_and_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "Pulumi.slow.yaml"
    text = (ROOT / "stacks" / "Pulumi.aws-llama-405b.yaml").read_text(encoding="utf-8")
    begin, end = text.index("  tritonfleet:storage:"), text.index("  tritonfleet:models:")
    path.write_text(text[:begin] + text[end:], encoding="utf-8")
    before = path.read_bytes()
    # 405 B parameters from elastic NFS load for longer than a stack takes without being told to.
    code, document = as_json(capsys, str(path), "--write", "--quantization", "none")
    assert (code, [problem["key"] for problem in document["problems"]]) == (1, ["storage.shared"])
    assert path.read_bytes() == before


def test_several_models_are_packed_onto_slices(capsys: pytest.CaptureFixture[str]) -> None:
    models = ("--model", "llama-3.1-8b", "--model", "qwen3-8b", "--model", "qwen2.5-7b")
    code, document = as_json(capsys, *models, "--tokens-per-second", "200", "--gpu", "H100-80GB,A100-80GB")
    assert code == 0
    assert document[0]["gpus"] == 1
    assert len(document[0]["models"]) == 3
    prices = [each["usd_per_month_of_nodes"] for each in document]
    assert prices == sorted(prices)
    assert call("aws-small-mig", "--itl", "50") == 0
    text = capsys.readouterr().out
    assert "llama-8b: 1 x" in text
    assert "a machine for each model costs" in text


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--itl", "1"), 1, ("--itl: inter-token latency: 1 ms asked", "nearest feasible: --itl ")),
        (("--budget", "1"), 1, ("--budget: 1 USD per month are not enough", "nearest feasible: --budget ")),
        (("--gpu", "T4", "--ttft", "900"), 1, ("compute capability 7.5", "nearest feasible: without --gpu")),
        (("--ttft", "fast"), 2, ("--ttft: 'fast' is not a number above 0",)),
        (("--tokens-per-second", "-5"), 2, ("--tokens-per-second: '-5' is not a number above 0",)),
        (("--budget", "nan"), 2, ("--budget: 'nan' is not a number above 0",)),
        (("--prompt-tokens", "1e3"), 2, ("--prompt-tokens: '1e3' is not a whole number",)),
        (("--context", "100"), 2, ("--context: a context of 100 tokens", "give --context 1280")),
        (("--context", "999999"), 2, ("the model has 131,072 positions", "give at most 131072")),
        (("--spot-tolerance", "2"), 2, ("--spot-tolerance: '2' is not a share from 0 to 1",)),
        (("--cloud", "amazon"), 2, ("--cloud: 'amazon' is not known",)),
        (("--region", "us-est-1", "--cloud", "aws"), 2, ("did you mean us-",)),
        (("--gpu", "H100", "--itl", "50"), 2, ("give one of H100-80GB, H100-94GB",)),
        (("--quantization", "fp9"), 2, ("did you mean fp8?",)),
        (("--tokens-per-second", "5", "--requests-per-second", "5"), 2, ("give one of the two",)),
        (("--write",), 2, ("there is no stack to write into",)),
        (("--gpus-per-node", "4", "--itl", "50"), 2, ("every number of them is tried",)),
        (("--png", "/nowhere/at/all.png"), 1, ("No such file or directory", "there is no PNG")),
    ],
)
def test_what_cannot_be_is_one_clear_error(
    arguments: tuple[str, ...], code: int, told: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    from fleet.__main__ import main

    assert main(["plan", "--model", "llama-3.1-8b", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("consequence") == 1
    for words in told:
        assert words in captured.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("local", "--itl", "50"), "a cluster that is there has no instance types"),
        (("aws-llama-70b", "--cloud", "gcp"), "a stack says where it runs"),
        (("aws-llama-70b", "--model", "lama-70b"), "did you mean llama-70b?"),
        (("aws-small-mig", "--write"), "one is written at a time"),
        (("aws-llama-70b", "--prompt-tokens", "8190"), "a context of 8,192 tokens, and prompt and answer"),
    ],
)
def test_a_stack_and_a_target_that_contradict_each_other(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) in (1, 2)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"architectures": ["BertModel"]}, "is not a known architecture"),
        ({"hidden_size": None}, "hidden_size: is missing"),
        ({"num_key_value_heads": 5}, "5 KV heads do not divide 32 attention heads"),
    ],
)
def test_a_damaged_config_json_is_refused_before_the_search(
    changed: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = json.loads((ROOT / "planner" / "known_models" / "llama-3.1-8b.json").read_text(encoding="utf-8"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(known | changed), encoding="utf-8")
    assert call("--model", str(path), "--itl", "50") in (1, 2)
    assert told in capsys.readouterr().err
    assert call("--model", str(path)) in (1, 2)
    assert told in capsys.readouterr().err


def test_the_nearest_answer_is_in_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, document = as_json(capsys, "--model", "mixtral-8x7b", "--ttft", "1")
    assert (code, document["limit"]) == (1, "ttft")
    assert document["nearest"]["relaxed"][0].startswith("--ttft ")
    assert document["nearest"]["choice"]["usd_per_million_output_tokens"] > 0
