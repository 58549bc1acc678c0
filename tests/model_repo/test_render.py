"""Rendered files: golden, parsed back, and consistent with one another."""

# pyright: basic
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from model_repo.render import render, write
from planner.plan import ModelPlan

ModelConfig: Any = model_config_pb2.ModelConfig  # pyright: ignore[reportAttributeAccessIssue] made at import
GOLDEN = Path(__file__).parents[1] / "golden/model_repo"
BACKENDS = ("cpu", "tensorrt", "pytorch")
ENGINE = "/store/engines/0123456789abcdef"


@pytest.fixture(scope="module", params=BACKENDS)
def files(request, plan_of) -> dict[str, bytes]:
    return render(plan_of(request.param), ENGINE)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request) -> str:
    return request.param


def configs(files: dict[str, bytes]) -> dict[str, Any]:
    return {
        name.split("/")[0]: text_format.Parse(content.decode(), ModelConfig())
        for name, content in files.items()
        if name.endswith("config.pbtxt")
    }


def test_golden(plan_of, backend):
    """`UPDATE_GOLDEN=1 pytest tests/model_repo` writes the files anew; the diff is reviewed."""
    rendered = {
        name: content
        for name, content in render(plan_of(backend), ENGINE).items()
        if not name.endswith((".py", ".keep"))
    }
    folder = GOLDEN / backend
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.rmtree(folder, ignore_errors=True)
        write(rendered, folder)
    golden = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert rendered == golden


def test_every_model_is_whole(files):
    """A name, a version directory, and the python files that its model.py imports."""
    for name, config in configs(files).items():
        assert config.name == name
        code = [path for path in files if path.startswith(f"{name}/1/")]
        assert code, name
        if config.backend == "python":
            assert f"{name}/1/model.py" in code
    assert {"ensemble", "tensorrt_llm", "tensorrt_llm_bls"} <= set(configs(files))


def test_no_placeholder_and_no_empty_parameter(files):
    assert not any(b"${" in content for name, content in files.items() if name.endswith(".pbtxt"))
    for config in configs(files).values():
        assert all(value.string_value not in ("", "None") for value in config.parameters.values())


def test_ensemble_maps_tensors_that_exist_with_their_types(files):
    models = configs(files)
    ensemble = models["ensemble"]
    known = {tensor.name: tensor.data_type for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        inputs = {tensor.name: tensor for tensor in models[step.model_name].input}
        outputs = {tensor.name: tensor.data_type for tensor in models[step.model_name].output}
        for tensor, source in step.input_map.items():
            assert inputs[tensor].data_type == known[source], f"{step.model_name}.{tensor}"
        assert {name for name, tensor in inputs.items() if not tensor.optional} <= set(step.input_map)
        known |= {target: outputs[tensor] for tensor, target in step.output_map.items()}
    assert {tensor.name: tensor.data_type for tensor in ensemble.output}.items() <= known.items()


def test_every_client_input_is_used_by_the_ensemble(files):
    ensemble = configs(files)["ensemble"]
    used = {source for step in ensemble.ensemble_scheduling.step for source in step.input_map.values()}
    assert {tensor.name for tensor in ensemble.input} <= used


def test_client_interface_is_one_for_all_backends(plan_of):
    shapes = set()
    for backend in BACKENDS:
        models = configs(render(plan_of(backend), ENGINE))
        for name in ("ensemble", "tensorrt_llm_bls"):
            tensors = [(t.name, t.data_type, *t.dims) for t in [*models[name].input, *models[name].output]]
            shapes.add(tuple(tensors))
            assert models[name].max_batch_size > 0
    assert len(shapes) == 1


def test_one_postprocessing_instance_whatever_the_batch(plan_of):
    for backend in ("cpu", "tensorrt"):
        models = configs(render(plan_of(backend, max_batch_size=512), ENGINE))
        assert models["postprocessing"].instance_group[0].count == 1


SERVING = st.fixed_dictionaries(
    {},
    optional={
        "max_queue_size": st.integers(1, 1000),
        "kv_cache_free_gpu_mem_fraction": st.floats(0.1, 1.0),
        "enable_kv_cache_reuse": st.booleans(),
        "enable_chunked_context": st.booleans(),
        "batch_scheduler_policy": st.sampled_from(["guaranteed_no_evict", "max_utilization"]),
        "max_queue_delay_microseconds": st.integers(0, 1000),
    },
)


@settings(max_examples=50, deadline=None)
@given(serving=SERVING, backend=st.sampled_from(("tensorrt", "pytorch")))
def test_serving_changes_the_repository_but_not_the_engine(plan_of, serving, backend):
    plain, changed = plan_of(backend), plan_of(backend, serving=serving)
    assert plain.engine == changed.engine
    files = render(changed, ENGINE)
    assert files == render(changed, ENGINE)
    if changed.config.serving == plain.config.serving:
        assert files == render(plain, ENGINE)


@pytest.mark.parametrize(
    ("field", "value", "backend", "where", "name"),
    [
        ("kv_cache_free_gpu_mem_fraction", 0.5, "tensorrt", "tensorrt_llm", "kv_cache_free_gpu_mem_fraction"),
        ("enable_kv_cache_reuse", False, "tensorrt", "tensorrt_llm", "enable_kv_cache_reuse"),
        ("enable_chunked_context", False, "tensorrt", "tensorrt_llm", "enable_chunked_context"),
        ("batch_scheduler_policy", "max_utilization", "tensorrt", "tensorrt_llm", "batch_scheduler_policy"),
        ("kv_cache_tokens", 4096, "cpu", "tensorrt_llm", "cpu_kv_cache_tokens"),
        ("max_queue_size", 7, "cpu", "tensorrt_llm", "max_queue_size"),
    ],
)
def test_serving_field_reaches_its_parameter(plan_of, field, value, backend, where, name):
    config = configs(render(plan_of(backend, serving={field: value}), ENGINE))[where]
    assert config.parameters[name].string_value == str(value).lower()


def test_queue_limit_is_where_requests_wait(plan_of):
    for backend in BACKENDS:
        models = configs(render(plan_of(backend, serving={"max_queue_size": 7}), ENGINE))
        limited = [m for m in models.values() if m.dynamic_batching.default_queue_policy.max_queue_size == 7]
        assert "tensorrt_llm_bls" in {model.name for model in limited}


def test_paths_are_the_engines(files):
    for config in configs(files).values():
        for name in ("gpt_model_path", "tokenizer_dir"):
            if name in config.parameters:
                assert config.parameters[name].string_value.startswith(ENGINE)
    if "tensorrt_llm/1/serving.json" in files:
        assert json.loads(files["tensorrt_llm/1/serving.json"])["llm_args"] == f"{ENGINE}/llm_args.yaml"


def test_write_replaces_whole(tmp_path):
    out = tmp_path / "repository"
    write({"a/1/model.py": b"old", "gone": b""}, out)
    write({"a/1/model.py": b"new"}, out)
    assert [p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()] == ["a/1/model.py"]
    assert (out / "a/1/model.py").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_failed_write_leaves_what_was_there(tmp_path):
    out = tmp_path / "repository"
    write({"a": b"old"}, out)
    with pytest.raises(FileExistsError):
        write({"a": b"new", "a/b": b""}, out)
    assert (out / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_plan_is_only_read(plan_of):
    plan: ModelPlan = plan_of("cpu")
    before = repr(plan)
    render(plan, ENGINE)
    assert repr(plan) == before
