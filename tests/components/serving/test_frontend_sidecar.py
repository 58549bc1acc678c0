"""The frontend beside the leader: what it is told, what it may use, when it ends, and who reaches it."""

import ast
import subprocess
import sys
from dataclasses import replace

import pytest

from components.serving.config_maps import FRONTEND
from planner.fleet import ServingPlan
from tests.components.serving.stacks import (
    EXAMPLES,
    LARGE,
    MIG,
    TWO_REPLICAS,
    Values,
    container,
    planned,
    served,
    templates,
    variables,
    with_source,
)
from tests.components.serving.test_model_groups import mebibytes, millis
from tests.components.serving.test_serving_files import in_container
from tests.components.world import Recorded

IMAGE = "public.ecr.aws/docker/library/python:3.13.15-slim-trixie"


def frontend(recorded: Recorded, model: str = "llama-405b") -> Values:
    return container(templates(recorded, model)["leader"], "frontend")


@pytest.mark.parametrize("stack", EXAMPLES)
def test_leaders_have_a_frontend_and_workers_none(stack: str) -> None:
    plan = planned(stack)
    recorded = served(plan)
    for model in plan.models:
        pods = templates(recorded, model.name)
        assert [one["name"] for one in pods["leader"]["spec"]["initContainers"]] == ["frontend"]
        assert "frontend" not in repr(pods["worker"])


def test_it_ends_after_triton_and_holds_nothing_up() -> None:
    """The kubelet ends an init container that goes on after all others; a start probe would hold Triton up."""
    one = frontend(served())

    assert one["restartPolicy"] == "Always"
    assert "startupProbe" not in one


def test_nothing_but_its_own_process_restarts_it() -> None:
    """LeaderWorkerSet makes the whole group anew when any container of it restarts."""
    one = frontend(served())

    assert one["command"][:3] == ["python3", "-m", "frontend.keep"]
    assert "livenessProbe" not in one
    probe = one["readinessProbe"]
    assert probe["httpGet"] == {"path": "/readyz", "port": "openai"}
    assert probe["failureThreshold"] * probe["periodSeconds"] <= 30


def test_it_knows_its_model_its_engine_and_its_limits() -> None:
    plan = planned(LARGE)
    (model,) = plan.models
    one = frontend(served(plan))

    assert one["command"][3:] == [
        *("--grpc", "127.0.0.1:8001", "--host", "0.0.0.0", "--port", "9000", "--model", "llama-405b"),
        *("--tokenizer", f"/shared/store/engines/{model.engine.id}/tokenizer"),
        *("--max-seq-len", str(model.config.max_seq_len)),
        *("--max-sequences", str(model.config.max_batch_size + model.config.serving.max_queue_size)),
        *("--api-keys", "/etc/tritonfleet/api-keys/keys.json", "--state", "/run/tritonfleet/state.json"),
        *("--drain-seconds", "1"),
    ]
    assert one["ports"] == [{"name": "openai", "containerPort": 9000}]


def test_the_llm_api_is_asked_in_text() -> None:
    itself = served(with_source(planned(LARGE), "bucket://llama/405b", backend="pytorch"))

    assert frontend(itself)["command"][-3:] == ["--engine-model", "tensorrt_llm_bls", "--text"]


def test_every_option_is_one_that_the_frontend_knows() -> None:
    command = frontend(served())["command"]
    done = subprocess.run(
        [sys.executable, "-m", "frontend", "--help"], cwd=FRONTEND.parent, capture_output=True, text=True, check=True
    )
    options = {word for word in command if word.startswith("--")}
    assert not {option for option in options if f"{option} " not in done.stdout.replace("]", " ")}


def test_it_sees_the_packages_the_code_the_keys_and_the_group_and_writes_nothing() -> None:
    recorded = served()
    leader = templates(recorded, "llama-405b")["leader"]
    mounts = {mount["mountPath"]: mount for mount in frontend(recorded)["volumeMounts"]}

    assert all(mount["readOnly"] for mount in mounts.values())
    assert mounts.keys() == {
        *("/opt/tritonfleet/frontend", "/shared", "/run/tritonfleet", "/etc/tritonfleet/api-keys"),
    }
    assert mounts["/shared"]["name"] == "shared"
    assert mounts["/run/tritonfleet"]["name"] in {
        mount["name"] for mount in container(leader)["volumeMounts"] if mount["mountPath"] == "/run/tritonfleet"
    }
    (keys,) = [v["secret"] for v in leader["spec"]["volumes"] if v["name"] == "api-keys"]
    assert keys == {"secretName": "api-keys", "defaultMode": 0o440}
    assert "subPath" not in mounts["/etc/tritonfleet/api-keys"], "a file mounted by itself never changes"
    files = {path.relative_to(FRONTEND).as_posix(): path.read_text() for path in FRONTEND.rglob("*.py")}
    files |= {path.relative_to(FRONTEND).as_posix(): path.read_text() for path in (FRONTEND / "static").iterdir()}
    seen = in_container(recorded, leader, "frontend")
    assert seen == {f"/opt/tritonfleet/frontend/{name}": text for name, text in files.items()}


def test_the_keys_are_the_frontends_alone() -> None:
    for template in templates(served(), "llama-405b").values():
        assert "api-keys" not in {mount["name"] for mount in container(template)["volumeMounts"]}


def test_it_runs_in_the_small_image_with_the_installed_packages() -> None:
    recorded = served()
    one, job = frontend(recorded), recorded.one("Job", "-environment-").inputs
    installed = job["metadata"]["name"].removeprefix("environment-")

    assert one["image"] == IMAGE
    assert variables(one)["PYTHONPATH"] == f"/opt/tritonfleet:/shared/environments/{installed}"
    assert recorded.one("Job", "-environment-").urn in recorded.one("LeaderWorkerSet").depends_on


@pytest.mark.parametrize("stack", EXAMPLES)
def test_a_leaders_pod_asks_for_no_more_than_a_workers(stack: str) -> None:
    plan = planned(stack)
    recorded = served(plan)
    for model in plan.models:
        assert model.serving
        both = templates(recorded, model.name)
        leader = [container(both["leader"], name)["resources"] for name in ("triton", "frontend")]
        worker = container(both["worker"])["resources"]
        assert sum(millis(one["requests"]["cpu"]) for one in leader) == millis(worker["requests"]["cpu"])
        for kind in ("requests", "limits"):
            assert sum(mebibytes(one[kind]["memory"]) for one in leader) == mebibytes(worker[kind]["memory"])
        assert "nvidia.com" not in repr(leader[1])
        assert "cpu" not in leader[1]["limits"], "one throttled token holds up every stream"
        assert mebibytes(leader[1]["limits"]["memory"]) >= 256


def test_a_tiny_pod_leaves_triton_the_most_of_it() -> None:
    plan = planned(MIG)
    (first, *others) = plan.models
    assert first.serving
    tiny: ServingPlan = replace(first.serving, cpu_millis=400, frontend_cpu_millis=100)
    recorded = served(replace(plan, models=(replace(first, serving=tiny), *others)))

    leader = templates(recorded, first.name)["leader"]
    assert millis(container(leader)["resources"]["requests"]["cpu"]) == 300


@pytest.mark.parametrize("stack", [LARGE, TWO_REPLICAS])
def test_other_code_rolls_the_set(stack: str) -> None:
    recorded = served(planned(stack))
    (code,) = [m for m in recorded.of("ConfigMap") if m.inputs["metadata"]["name"].startswith("frontend-")]
    (group,) = recorded.of("LeaderWorkerSet")
    assert code.urn in group.depends_on
    assert code.inputs["metadata"]["name"] in repr(group.inputs["spec"]["leaderWorkerTemplate"]["leaderTemplate"])


def test_the_pods_packages_are_all_that_the_frontend_and_the_fetch_import() -> None:
    known = {"jinja2": "jinja2", "grpc": "tritonclient", "prometheus_client": "prometheus-client"}
    known |= {"huggingface_hub": "huggingface-hub", "opentelemetry": "opentelemetry-sdk"}
    listed = {
        line.partition("==")[0].partition("[")[0]
        for line in (FRONTEND.parent / "requirements" / "pods.in").read_text().splitlines()
        if "==" in line
    }
    fetch = {"fetch", "hub", "hub_errors", "object_store", "object_errors", "blob_cache", "parts", "checkpoint_files"}
    runtime = [FRONTEND.parent / "runtime" / f"{name}.py" for name in fetch]
    for path in [*FRONTEND.glob("*.py"), *runtime]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {name.partition(".")[0] for name in names} - {"frontend", "runtime", *sys.stdlib_module_names}:
                assert known.get(name, name) in listed, f"{path.name} imports {name}"
