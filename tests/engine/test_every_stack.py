"""Every example stack under the real Pulumi CLI, on a simulated cloud: preview, up, nothing to do, an edit, destroy."""

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.components.existing.api_server import Answers, api_server, kubeconfig
from tests.contract.told import TOLD
from tests.engine.conftest import ROOT, Project
from tests.engine.stories import assert_dependents_went_first, assert_synth_shows_the_same

Values = dict[str, Any]

# aws-llama-405b has a longer story in test_lifecycle.py.
STACKS = sorted({path.name.split(".")[1] for path in (ROOT / "stacks").glob("Pulumi.*.yaml")} - {"aws-llama-405b"})


def other_zones(values: Values) -> None:
    values["tritonfleet:pools"][0]["zones"].pop()


def other_gpu(values: Values) -> None:
    values["tritonfleet:pools"][0] |= {
        "instance_types": ["a2-ultragpu-1g"],
        "zones": ["us-central1-a", "us-central1-c"],
    }


REPLACED: Mapping[str, Callable[[Values], None]] = {
    "aws-small-mig": other_zones,
    "gcp-small-mig": other_gpu,
    "azure-small-mig": other_zones,
}
"""An edit by which a cloud makes the first pool anew."""

NEW_CLUSTER = ("aws-small-mig", "azure-small-mig")
"""Stacks whose cluster another range of Services would replace."""


@pytest.fixture
def kind_cluster(tmp_path: Path) -> Generator[None]:
    """An API server, and the kubeconfig that `stacks/Pulumi.local.yaml` leads to it by."""
    with api_server(Answers()) as url:
        folder = tmp_path / ".kube"
        folder.mkdir()
        kubeconfig(folder / "config", url, contexts=["kind-tritonfleet"])
        yield


@pytest.mark.usefixtures("kind_cluster")
@pytest.mark.parametrize("stack", STACKS)
def test_a_stack_lives_and_dies(new_program: Callable[[str], Project], stack: str) -> None:
    project = new_program(stack)
    project.pulumi("config", "set", "--secret", "tritonfleet:hugging_face_token", "hf_only_for_this_test")
    planned = project.preview()
    assert {operation for operation, _ in planned} == {"create"}
    assert_synth_shows_the_same(project, stack, planned)
    project.pulumi("up", "--yes", "--skip-preview")
    created = project.events()
    assert {operation for operation, _ in created} == {"create"}
    assert {urn for _, urn in created} <= {urn for _, urn in planned}
    assert project.preview() == []

    project.edit(stack, more_capacity)
    project.pulumi("up", "--yes", "--skip-preview")
    edited = project.events()
    assert {operation for operation, _ in edited} == {"update"}
    types = {urn.split("::")[2].rpartition("$")[2] for _, urn in edited}
    assert "kubernetes:leaderworkerset.x-k8s.io/v1:LeaderWorkerSet" in types

    if stack in REPLACED:
        assert_replacement_is_refused(project, stack)

    project.pulumi("state", "unprotect", "--all", "--yes")
    state = project.state()
    project.pulumi("destroy", "--yes", "--skip-preview")
    assert_dependents_went_first(state, project.events())
    assert project.state() == []


def more_capacity(values: Values) -> None:
    for pool in values.get("tritonfleet:pools", [])[:1]:
        pool["max_nodes"] += 1
    serving = values["tritonfleet:models"][0].setdefault("serving", {})
    serving["replicas"] = serving.get("replicas", 1) + 1


def assert_replacement_is_refused(project: Project, stack: str) -> None:
    """Cluster, storage and pool stay as they are until the stack says that they may go."""
    told = TOLD[stack.partition("-")[0]]
    project.edit(stack, REPLACED[stack])
    said = project.pulumi("preview", fails=True)
    assert "marked for protection" in said
    assert project.events() == []
    project.edit(stack, lambda values: values.update({"tritonfleet:allow_replacement": ["pools.mig"]}))
    replaced = {urn.split("::")[2].rpartition("$")[2] for operation, urn in project.preview() if operation == "replace"}
    assert told.node_pool in replaced
    assert not replaced & {told.cluster, told.bucket, *told.files}

    if stack in NEW_CLUSTER:
        project.edit(stack, lambda values: values["tritonfleet:network"].update(service_cidr="172.30.0.0/16"))
        said = project.pulumi("preview", fails=True)
        assert "marked for protection" in said, "no other cluster either"
