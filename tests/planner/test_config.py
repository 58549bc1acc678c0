"""The stack file: strict, all errors at once, each naming its key, the consequence and the fix."""

import time
from pathlib import Path
from typing import Any

import pytest
from sample_models import GPU, LOCAL, stack

from planner.errors import PlanError, Problem
from planner.parsing import stack_from_mapping
from planner.stack_file import load_stack


def refused(values: dict[str, Any]) -> dict[str, Problem]:
    with pytest.raises(PlanError) as refusal:
        stack_from_mapping(values)
    for problem in refusal.value.problems:
        assert problem.key
        assert problem.what
        assert problem.consequence
        assert problem.fix
    return {problem.key: problem for problem in refusal.value.problems}


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "Pulumi.test.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def file_problem(path: Path) -> Problem:
    with pytest.raises(PlanError) as refusal:
        load_stack(path)
    return refusal.value.problems[0]


def test_the_shipped_local_stack_loads() -> None:
    model = load_stack(Path(__file__).parents[2] / "stacks" / "Pulumi.local.yaml").models[0]
    assert (model.name, model.backend, model.dtype, model.tensor_parallel) == ("smollm2", "cpu", "float32", 3)
    assert (model.max_batch_size, model.max_seq_len) == (8, 2048)


def test_defaults_follow_the_backend() -> None:
    model = stack_from_mapping(stack(GPU)).models[0]
    assert (model.dtype, model.max_batch_size, model.max_num_tokens, model.gpus_per_node) == ("bfloat16", 2048, 8192, 8)
    assert (model.serving.max_queue_size, model.serving.kv_cache_free_gpu_mem_fraction) == (64, 0.9)


def test_all_problems_of_all_models_come_at_once() -> None:
    values = {
        "clod": "existing",
        "models": [
            LOCAL | {"tensor_parallel": "3", "gpu": "H100-80GB"},
            GPU | {"name": "Llama_8B", "quantization": {"weights": "fp4"}, "tensor_paralel": 2},
            GPU | {"gpu": "A100-80GB", "quantization": {"weights": "fp8"}},
        ],
    }
    assert refused(values).keys() == {
        "cloud",
        "clod",
        "models[0].tensor_parallel",
        "models[0].gpu",
        "models[1].name",
        "models[1].quantization.weights",
        "models[1].tensor_paralel",
        "models[2].quantization.weights",
    }


def test_unknown_keys_get_the_close_one() -> None:
    problems = refused(stack(LOCAL, tensor_paralel=3, serving={"max_queue": 3}, zzz=1))
    assert problems["models[0].tensor_paralel"].fix == "did you mean tensor_parallel?"
    assert problems["models[0].serving.max_queue"].fix == "did you mean max_queue_size?"
    assert "ignored" in problems["models[0].zzz"].consequence
    assert "tensor_parallel" in problems["models[0].zzz"].fix


@pytest.mark.parametrize(
    ("changed", "key", "what"),
    [
        ({"tensor_parallel": 0}, "tensor_parallel", "0 is out of range"),
        ({"tensor_parallel": True}, "tensor_parallel", "True is a boolean, not an integer"),
        ({"tensor_parallel": 3.0}, "tensor_parallel", "3.0 is a number, not an integer"),
        ({"tensor_parallel": 10**5000}, "tensor_parallel", "an integer of 16610 bits"),
        ({"max_batch_size": 0}, "max_batch_size", "0 is out of range"),
        ({"serving": {"max_queue_size": 0}}, "serving.max_queue_size", "0 is out of range"),
        (
            {"serving": {"kv_cache_free_gpu_mem_fraction": float("nan")}},
            "serving.kv_cache_free_gpu_mem_fraction",
            "nan is a number, not a finite number",
        ),
        ({"serving": {"enable_kv_cache_reuse": 1}}, "serving.enable_kv_cache_reuse", "1 is an integer, not true or"),
        ({"serving": []}, "serving", "[] is a list, not a mapping of keys"),
        ({"name": "a\n"}, "name", "is not a short DNS label"),
        ({"name": "A"}, "name", "is not a short DNS label"),
        ({"name": "7b"}, "name", "is not a short DNS label"),
        ({"name": "a" * 41}, "name", "is not a short DNS label"),
        ({"backend": "gpu"}, "backend", "'gpu' is not one of cpu, tensorrt, pytorch"),
        ({"source": "ftp://x/y"}, "source", "unknown scheme 'ftp'"),
        ({"source": "s4://bucket/prefix"}, "source", "unknown scheme 's4'"),
        ({"source": "hf://llama"}, "source", "is not hf://ORG/NAME"),
        ({"source": "file://x"}, "source", "absolute path"),
        ({"revision": None}, "revision", "is missing"),
        ({"revision": "main"}, "revision", "main moves"),
        ({"revision": 0.1}, "revision", "0.1 is a number, not a string"),
        ({"dtype": "bfloat16"}, "dtype", "float32"),
        ({"quantization": {"kv_cache": "fp8"}}, "quantization.kv_cache", "CPU engine keeps float32"),
        ({"build": {"multiple_profiles": True}}, "build", "is for GPU backends"),
        ({"gpus_per_node": 8}, "gpus_per_node", "is for GPU backends"),
        ({"serving": {"kv_cache_tokens": 100}}, "serving.kv_cache_tokens", "100 tokens"),
    ],
)
def test_each_rule_for_a_cpu_model(changed: dict[str, Any], key: str, what: str) -> None:
    problems = refused(stack(LOCAL, **changed))
    assert problems.keys() == {f"models[0].{key}"}
    assert what in problems[f"models[0].{key}"].what


@pytest.mark.parametrize(
    ("changed", "key", "what"),
    [
        ({"gpu": None}, "gpu", "is missing"),
        ({"gpu": "H10-80GB"}, "gpu", "not a known GPU"),
        ({"gpu": "T4"}, "gpu", "compute capability 7.5, below 8.0"),
        ({"gpu": "A10G", "quantization": {"weights": "fp8"}}, "quantization.weights", "needs compute capability 8.9"),
        ({"gpu": "A10G", "quantization": {"kv_cache": "fp8"}}, "quantization.kv_cache", "needs compute capability 8.9"),
        ({"quantization": {"weights": "nvfp4"}}, "quantization.weights", "needs compute capability 10.0"),
        ({"dtype": "float32"}, "dtype", "float32 is for backend: cpu"),
        ({"mig_profile": "1g.11gb"}, "mig_profile", "is not a profile of H100-80GB"),
        ({"gpu": "L4", "mig_profile": "1g.10gb"}, "mig_profile", "L4 has no known MIG profile"),
        ({"gpu": "B200-180GB", "mig_profile": "3g.90gb"}, "mig_profile", "is not known"),
        ({"serving": {"kv_cache_tokens": 8192}}, "serving.kv_cache_tokens", "is for backend: cpu"),
        ({"build": {"use_paged_context_fmha": False}}, "build.use_paged_context_fmha", "chunked context"),
        ({"build": {"tokens_per_block": 33}}, "build.tokens_per_block", "33 is not one of"),
        ({"backend": "pytorch", "build": {}}, "build", "is for backend: tensorrt"),
        ({"backend": "pytorch", "quantization": {"weights": "int8_sq"}}, "quantization.weights", "backend: tensorrt"),
    ],
)
def test_each_rule_for_a_gpu_model(changed: dict[str, Any], key: str, what: str) -> None:
    problems = refused(stack(GPU, **changed))
    assert problems.keys() == {f"models[0].{key}"}
    assert what in problems[f"models[0].{key}"].what


def test_the_family_of_a_gpu_suggests_its_sizes() -> None:
    assert refused(stack(GPU, gpu="H100"))["models[0].gpu"].fix == "give one of H100-80GB, H100-94GB"


def test_two_models_of_one_name() -> None:
    values = {"cloud": "existing", "models": [LOCAL, LOCAL]}
    assert refused(values)["models[1].name"].what == "smollm2 is already the name of models[0]"


def test_no_models_is_refused_in_every_form() -> None:
    forms: list[Any] = [[], None, {}, "smollm2", 0, {"a": 1}]
    for models in forms:
        assert refused({"cloud": "existing", "models": models}).keys() == {"models"}
    assert refused({"cloud": "existing"}).keys() == {"models"}
    assert refused({"cloud": "existing", "models": [3, None]}).keys() == {"models[0]", "models[1]"}


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ("", "config", "the file is empty"),
        ("- a", "config", "no mapping `config`"),
        ("config: 3", "config", "no mapping `config`"),
        ("config:\n  tritonfleet:cloud: existing\n  tritonfleet:cloud: existing\n", "", "line 3"),
        ("config: [", "", "not valid YAML at line"),
        ("config: {when: 2001-99-99}", "", "not valid YAML"),
        (b"\xff\xfe\x00", "", "not UTF-8 text (byte 0)"),
        ("config: " + "[" * 5000, "", "nested too deeply"),
        ("a: " + "x" * (1 << 17), "", "larger than 128 KiB"),
    ],
)
def test_a_file_that_is_no_stack(tmp_path: Path, text: str | bytes, key: str, what: str) -> None:
    path = write(tmp_path, text)
    problem = file_problem(path)
    assert problem.key == (f"{path}: {key}" if key else str(path))
    assert what in problem.what


def test_the_slowest_text_that_is_read_takes_seconds_at_most(tmp_path: Path) -> None:
    begun = time.perf_counter()
    assert file_problem(write(tmp_path, "- a\n" * 32_000)).what == "there is no mapping `config` in it"
    assert file_problem(Path("/dev/zero")).what == "larger than 128 KiB"
    assert time.perf_counter() - begun < 20


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a\0b"])
def test_a_path_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    assert "cannot be read" in file_problem(tmp_path / name).what


def test_a_slip_in_the_namespace_is_not_taken_for_another_program(tmp_path: Path) -> None:
    slips = "config:\n  aws:region: eu-west-1\n  tritonflet:cloud: existing\n  models: []\n  7: x\n"
    with pytest.raises(PlanError) as refusal:
        load_stack(write(tmp_path, slips))
    fixes = {problem.key: problem.fix for problem in refusal.value.problems}
    assert fixes["config.tritonflet:cloud"] == "did you mean tritonfleet:cloud?"
    assert fixes["config.models"] == "did you mean tritonfleet:models?"
    assert "config.7" in fixes
    assert not any("aws" in key for key in fixes)


def test_aliases_that_expand_without_end_are_refused_shortly(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 30)]
    bomb = "\n".join(lines) + "\nconfig: {tritonfleet:cloud: *a29, tritonfleet:models: [*a29, {name: *a29}]}\n"
    with pytest.raises(PlanError) as refusal:
        load_stack(write(tmp_path, bomb))
    assert len(str(refusal.value)) < 10_000
    circle = "config:\n  tritonfleet:cloud: existing\n  tritonfleet:models: &m [*m]\n"
    assert file_problem(write(tmp_path, circle)).key == "models[0]"
