"""The whole of serving: the same at every preview, safe in every pod, and changed by what should change it."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import kubernetes_validate  # pyright: ignore[reportMissingTypeStubs]
import pytest

from components.serving.config_maps import RUNTIME
from planner.plan import FleetPlan
from tests.components.serving.stacks import (
    EXAMPLES,
    LARGE,
    SMALL,
    Values,
    build_of,
    every_template,
    fetch_of,
    model_values,
    objects,
    planned,
    served,
    with_source,
)
from tests.components.world import UNKNOWN, Recorded

KUBERNETES = "1.36"


def changed(before: Recorded, after: Recorded) -> set[str]:
    """What an update would make, delete or change, by type; ignored changes are none."""

    def seen(recorded: Recorded) -> dict[str, Any]:
        return {r.urn: {key: value for key, value in r.inputs.items() if key not in r.ignore_changes} for r in recorded}

    old, new = seen(before), seen(after)
    return {urn.split("::")[2].rpartition("$")[2] for urn in {*old, *new} if old.get(urn) != new.get(urn)}


LEADER_WORKER_SET = "kubernetes:leaderworkerset.x-k8s.io/v1:LeaderWorkerSet"


@pytest.mark.parametrize("settings", [{"replicas": 3}, {"replicas": 0}, {"log_level": "verbose"}], ids=str)
def test_replicas_and_log_level_change_the_set_and_nothing_else(settings: Values) -> None:
    def with_room(values: Values) -> None:
        values["pools"][0]["max_nodes"] = 12

    def edited(values: Values) -> None:
        with_room(values)
        model_values(values).update(serving=settings)

    before, after = planned(LARGE, with_room), planned(LARGE, edited)

    assert before.models[0].engine == after.models[0].engine
    assert changed(served(before), served(after)) == {LEADER_WORKER_SET}


def test_a_change_of_the_repository_rolls_the_set() -> None:
    def queue(values: Values) -> None:
        model_values(values).update(serving={"max_queue_size": 7})

    difference = changed(served(planned(SMALL)), served(planned(SMALL, queue)))

    assert difference == {LEADER_WORKER_SET, "kubernetes:core/v1:ConfigMap"}


def test_a_new_engine_is_built_beside_and_rolls_the_set() -> None:
    def flag(values: Values) -> None:
        model_values(values).update(build={"reduce_fusion": True})

    before, after = served(planned(SMALL)), served(planned(SMALL, flag))

    assert LEADER_WORKER_SET in changed(before, after)
    assert build_of(before).urn not in after.resources
    assert fetch_of(before).urn in after.resources, "the weights are the same"
    untouched = ("Service", "Secret", "RandomPassword", "PodDisruptionBudget")
    for type_ in untouched:
        assert {r.urn: r.inputs for r in before.of(type_)} == {r.urn: r.inputs for r in after.of(type_)}


@pytest.mark.parametrize("stack", EXAMPLES)
def test_a_preview_registers_what_an_update_does_and_knows_it(stack: str) -> None:
    update, preview = served(planned(stack)), served(planned(stack), preview=True)

    assert {r.urn for r in update} == {r.urn for r in preview}
    for one in objects(preview):
        if one.type.endswith(":Secret"):
            continue  # a token is made when it is first needed
        assert UNKNOWN not in repr(one.inputs)
        assert one.inputs == update.resources[one.urn].inputs


@pytest.mark.parametrize("stack", EXAMPLES)
def test_every_object_waits_for_the_platform_and_is_named_in_its_namespace(stack: str) -> None:
    recorded = served(planned(stack))
    (ready,) = recorded.of("Namespace", "ready")
    for one in objects(recorded):
        assert ready.urn in one.depends_on, one.name
        assert one.inputs["metadata"]["namespace"] == "tritonfleet"
        assert one.inputs["metadata"]["name"]
        assert one.inputs["metadata"]["labels"]["app.kubernetes.io/part-of"] == "tritonfleet"
        assert one.provider
        assert one.parent
    names = [(one.inputs["kind"], one.inputs["metadata"]["name"]) for one in objects(recorded)]
    assert len(set(names)) == len(names)


def test_pods_wait_for_all_that_they_mount() -> None:
    recorded = served(with_source(planned(LARGE), "bucket://llama"))
    claims = recorded.one("Namespace", "claims")
    for one in (*recorded.of("Job"), *recorded.of("LeaderWorkerSet")):
        assert claims.urn in one.depends_on
        mounted = repr(one.inputs["spec"])
        for needed in (*recorded.of("ConfigMap"), *recorded.of("Secret"), *recorded.of("ServiceAccount")):
            if f"'{needed.inputs['metadata']['name']}'" in mounted:
                assert needed.urn in one.depends_on, needed.name


def test_files_are_written_only_while_the_cluster_can_be_reached() -> None:
    recorded = served()
    files, cloud = (
        recorded.one("pulumi:providers:kubernetes", "files"),
        recorded.one("pulumi:providers:kubernetes", "cloud"),
    )
    assert cloud.urn in files.depends_on


@pytest.mark.parametrize("stack", EXAMPLES)
def test_every_pod_is_restricted_and_without_credentials(stack: str) -> None:
    for template in every_template(served(planned(stack))):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["serviceAccountName"] != "default"
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
        assert all(volume.keys() - {"name"} <= allowed for volume in spec["volumes"])
        for one in (*spec.get("initContainers", []), *spec["containers"]):
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
            }


def test_service_accounts_carry_no_token_and_one_purpose() -> None:
    accounts = served().of("ServiceAccount")

    weights = fetch_of(served()).inputs["metadata"]["name"]
    purposes = {weights, "environment", "llama-405b-build", "llama-405b-serve"}
    assert {one.inputs["metadata"]["name"] for one in accounts} == purposes
    assert all(one.inputs["automountServiceAccountToken"] is False for one in accounts)


@pytest.mark.parametrize("stack", EXAMPLES)
def test_objects_and_pods_are_what_kubernetes_knows(stack: str) -> None:
    recorded = served(planned(stack))
    for one in objects(recorded):
        if one.inputs["kind"] != "LeaderWorkerSet":
            kubernetes_validate.validate(one.inputs, KUBERNETES, strict=True)
    for template in every_template(recorded):
        metadata = {**template["metadata"], "name": "pod"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_every_command_is_one_that_the_runtime_knows() -> None:
    commands: dict[str, set[str]] = {}
    for template in every_template(served(planned(LARGE))):
        for one in (*template["spec"].get("initContainers", []), *template["spec"]["containers"]):
            if one["name"] == "frontend":
                continue  # see test_frontend_sidecar.py
            probes = [one[key]["exec"]["command"] for key in one if key.endswith("Probe") and "exec" in one[key]]
            for python, dash_m, module, *rest in (one["command"], *probes):
                assert (python, dash_m) == ("python3", "-m")
                commands.setdefault(module, set()).update(word for word in rest if word.startswith("--"))

    modules = ("fetch", "environment", "build", "launch", "health")
    assert commands.keys() == {f"runtime.{module}" for module in modules}
    for module, options in commands.items():
        command = [sys.executable, "-m", module, "--help"]
        text = subprocess.run(command, cwd=RUNTIME.parent, capture_output=True, text=True, check=True).stdout
        assert not {option for option in options if f"{option} " not in text.replace("]", " ")}, module


def test_a_plan_of_no_cloud_is_refused() -> None:
    def unplanned(plan: FleetPlan) -> FleetPlan:
        return replace(plan, models=tuple(replace(model, serving=None) for model in plan.models))

    with pytest.raises(ValueError, match="does not say how smollm2 is served"):
        served(unplanned(planned(SMALL)))
