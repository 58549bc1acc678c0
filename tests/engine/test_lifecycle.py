"""The real program under the real Pulumi CLI, on a simulated cloud: from nothing to a fleet, an edit, to nothing."""

import json
from collections.abc import Callable

import pytest

from tests.engine.conftest import Project
from tests.engine.stories import assert_dependents_went_first, assert_synth_shows_the_same

STACK = "aws-llama-405b"
TOKEN = "hf_only_for_this_test"


@pytest.fixture
def project(new_program: Callable[[str], Project]) -> Project:
    return new_program(STACK)


def test_from_nothing_to_a_fleet_and_back(project: Project) -> None:
    project.pulumi("config", "set", "--secret", "tritonfleet:hugging_face_token", TOKEN)
    planned = project.preview()
    assert {operation for operation, _ in planned} == {"create"}
    assert_synth_shows_the_same(project, STACK, planned)
    assert project.events() == []

    said = project.pulumi("up", "--yes")
    for figure in ("ranks 0-7 ", "cold start  about ", "  cost        a month", "built once in about ", "  drift  "):
        assert said.count(figure) == 1, figure
    created = project.events()
    assert {operation for operation, _ in created} == {"create"}
    exported = project.pulumi("stack", "export")
    assert TOKEN not in exported
    outputs = json.loads(project.pulumi("stack", "output", "--json"))
    assert outputs.keys() == {
        "endpoints",
        "api_keys",
        "bucket",
        "kubeconfig",
        "engine_keys",
        "estimate",
        "cost",
        "quotas",
    }
    assert outputs["kubeconfig"] == outputs["api_keys"] == "[secret]"
    assert project.preview() == []

    rotates_keys_without_touching_pods(project)
    grow_behind_pulumis_back(project, nodes=3)
    assert project.preview() == [], "the size is the autoscaler's"

    project.pulumi("config", "set", "--path", "tritonfleet:pools[0].max_nodes", "5")
    project.pulumi("config", "set", "--path", "tritonfleet:models[0].serving.replicas", "2")
    edit = project.preview()
    assert_only_capacity_changes(edit)
    project.pulumi("up", "--yes")
    assert sorted(project.events()) == sorted(edit)
    assert {(size["maxSize"], size["desiredSize"]) for size in sizes(project).values()} == {(5, 3)}, (
        "no node was sent away"
    )
    assert project.preview() == []

    (build,) = [
        resource["urn"] for resource in project.state() if ":Job::" in resource["urn"] and "-engine-" in resource["urn"]
    ]
    changed = json.loads(project.drift.read_text())
    project.drift.write_text(json.dumps(changed | {build: None}))
    again = project.preview()
    assert ("create", build) in again, "a Job that somebody deleted is made anew, and its build begins again"
    assert len(again) == 1
    project.drift.write_text(json.dumps(changed))

    assert "protected" in project.pulumi("destroy", "--yes", fails=True)
    assert project.events() == []
    project.pulumi("state", "unprotect", "--all", "--yes")
    state = project.state()
    project.pulumi("destroy", "--yes")
    events = project.events()
    assert_dependents_went_first(state, events)
    kept = {resource["urn"] for resource in state if resource.get("retainOnDelete")}
    assert kept, "the stack keeps its data"
    assert not kept & {urn for _, urn in events}
    assert_the_api_was_open_to_the_last(events)
    assert project.state() == []


def rotates_keys_without_touching_pods(project: Project) -> None:
    """The stack's own keys in the place of the one that was made, and then another one of them."""
    for key, gone in (("sk-" + "a" * 40, {"RandomPassword"}), ("sk-" + "b" * 40, set[str]())):
        project.pulumi("config", "set", "--secret", "--path", "tritonfleet:api_keys.team-a", key)
        kinds = {(operation, urn.split("::")[2].rpartition(":")[2]) for operation, urn in project.preview()}
        assert kinds == {("update", "Secret"), *(("delete", kind) for kind in gone)}
        project.pulumi("up", "--yes", "--skip-preview")
        project.events()
        assert key not in project.pulumi("stack", "export")
    assert project.preview() == []


def grow_behind_pulumis_back(project: Project, *, nodes: int) -> None:
    """As the autoscaler does it: every group of GPU nodes now has so many."""
    assert {size["desiredSize"] for size in sizes(project).values()} == {0}
    project.drift.write_text(json.dumps({urn: {"scalingConfig": {"desiredSize": nodes}} for urn in sizes(project)}))


def sizes(project: Project) -> dict[str, dict[str, int]]:
    """By URN, what each group of GPU nodes was told last."""
    groups = [resource for resource in project.state() if "AwsGpuPool$aws:eks/nodeGroup:NodeGroup::" in resource["urn"]]
    assert len(groups) == 2
    return {group["urn"]: group["inputs"]["scalingConfig"] for group in groups}


def assert_only_capacity_changes(edit: list[tuple[str, str]]) -> None:
    assert {operation for operation, _ in edit} == {"update"}
    types = {urn.split("::")[2].rpartition("$")[2] for _, urn in edit}
    assert "kubernetes:leaderworkerset.x-k8s.io/v1:LeaderWorkerSet" in types
    assert "aws:eks/nodeGroup:NodeGroup" in types
    assert types <= {
        "kubernetes:leaderworkerset.x-k8s.io/v1:LeaderWorkerSet",
        "aws:eks/nodeGroup:NodeGroup",
        "kubernetes:core/v1:ResourceQuota",
    }


def assert_the_api_was_open_to_the_last(events: list[tuple[str, str]]) -> None:
    """The rule that admits whoever deploys to the private endpoint is not taken away under their feet."""
    urns = [urn for _, urn in events]
    (rule,) = [index for index, urn in enumerate(urns) if "::aws-cluster-api-" in urn]
    assert max(index for index, urn in enumerate(urns) if "$kubernetes:" in urn) < rule


def test_a_refused_stack_ends_in_one_message(project: Project) -> None:
    project.pulumi("config", "set", "tritonfleet:modles", "[]")
    project.pulumi("config", "set", "--path", "tritonfleet:models[0].tensor_parallel", "5")
    said = project.pulumi("preview", fails=True)
    assert "modles: " in said
    assert "did you mean models?" in said
    assert "models[0].tensor_parallel: " in said
    assert said.count("consequence: ") == said.count("fix: ") >= 2
    assert "Traceback" not in said
    assert "File " not in said
