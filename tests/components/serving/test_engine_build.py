"""Engine builds: one for each key, on the pool that serves, and nothing but the key makes a new one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pulumi
import pytest

from components.serving import config_maps, jobs
from components.serving.engine_build import deadline_seconds
from planner.plan import FleetPlan
from planner.sources import checkpoint_folder
from tests.components.serving.stacks import (
    EXAMPLES,
    LARGE,
    MIG,
    SMALL,
    Values,
    build_of,
    fetch_of,
    model_values,
    planned,
    served,
    variables,
    with_source,
)
from tests.components.world import Recorded


def job(recorded: Recorded) -> Values:
    return build_of(recorded).inputs


def pod(recorded: Recorded) -> Values:
    return job(recorded)["spec"]["template"]["spec"]


def twins(values: Values) -> None:
    """The stack's model twice, under two names and with other limits of serving."""
    twin = {**model_values(values), "name": "twin", "serving": {"max_queue_size": 7}}
    values["models"].append(twin)
    values["pools"][0]["max_nodes"] = 9


def test_models_that_share_an_engine_share_its_build() -> None:
    plan = planned(SMALL, twins)
    recorded = served(plan)

    build = build_of(recorded)
    assert build.inputs["metadata"]["name"] == f"engine-{plan.models[0].engine.id}"
    assert build.inputs["metadata"]["namespace"] == "tritonfleet"
    sets = recorded.of("LeaderWorkerSet")
    assert len(sets) == 2
    assert all(build.urn in one.depends_on for one in sets), "pods of groups would hold the GPUs that the build needs"


def test_another_build_flag_is_another_job_beside_the_old_one() -> None:
    before = served(planned(SMALL))
    after = served(planned(SMALL, lambda values: model_values(values).update(build={"multiple_profiles": True})))

    old, new = build_of(before), build_of(after)
    assert old.urn != new.urn
    assert old.inputs["metadata"]["name"] != new.inputs["metadata"]["name"]


def other_image(plan: FleetPlan) -> FleetPlan:
    site = plan.infrastructure
    assert site
    return replace(
        plan, infrastructure=replace(site, images=site.images.model_copy(update={"triton": "r.example/t:1"}))
    )


def more_memory(plan: FleetPlan) -> FleetPlan:
    model = plan.models[0]
    assert model.serving
    return replace(plan, models=(replace(model, serving=replace(model.serving, memory_mib=1)),))


@pytest.mark.parametrize("change", [other_image, more_memory])
def test_what_is_not_in_the_key_is_ignored_in_a_job_that_exists(change: Callable[[FleetPlan], FleetPlan]) -> None:
    before, after = build_of(served(planned(SMALL))), build_of(served(change(planned(SMALL))))

    assert before.urn == after.urn
    assert before.inputs["spec"] != after.inputs["spec"], "or the change would prove nothing"
    assert after.ignore_changes == ("spec",)
    assert {k: v for k, v in before.inputs.items() if k != "spec"} == {
        k: v for k, v in after.inputs.items() if k != "spec"
    }, "all else must be a function of the key"


def test_a_fix_in_the_runtime_rolls_the_groups_and_leaves_builds_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = served(planned(SMALL))
    for path in config_maps.RUNTIME.glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text() + "# fixed\n")
    monkeypatch.setattr(config_maps.runtime_files, "__defaults__", (tmp_path,))
    after = served(planned(SMALL))

    assert before.one("ConfigMap", "serving-runtime").inputs != after.one("ConfigMap", "serving-runtime").inputs
    assert before.one("LeaderWorkerSet").inputs != after.one("LeaderWorkerSet").inputs
    for job_of in (build_of, fetch_of):
        assert job_of(before).urn == job_of(after).urn
        assert job_of(after).ignore_changes == ("spec",)


@pytest.mark.parametrize("stack", EXAMPLES)
def test_a_build_runs_where_its_engine_will(stack: str) -> None:
    plan = planned(stack)
    recorded = served(plan)
    for model in plan.models:
        assert model.serving
        pool = model.serving.pool
        spec = recorded.one("Job", model.engine.id).inputs["spec"]["template"]["spec"]
        assert spec["nodeSelector"] == pool.node_selector
        assert [(t["key"], t["value"], t["effect"]) for t in spec["tolerations"]] == [
            (taint.key, taint.value, taint.effect) for taint in pool.tolerations
        ]
        (one,) = spec["containers"]
        assert one["resources"]["limits"][pool.gpu_resource] == str(model.serving.gpus_per_pod)
        assert one["resources"]["requests"][pool.gpu_resource] == str(model.serving.gpus_per_pod)


def test_on_slices_a_build_asks_for_a_slice() -> None:
    recorded, plan = served(planned(MIG)), planned(MIG)
    assert plan.models[0].serving
    resource = plan.models[0].serving.pool.gpu_resource
    assert resource is not None
    assert resource.startswith("nvidia.com/mig-")
    for build in recorded.of("Job", "-engine-"):
        spec = build.inputs["spec"]["template"]["spec"]
        limits = spec["containers"][0]["resources"]["limits"]
        assert [name for name in limits if name.startswith("nvidia.com/")] == [resource]
        assert spec["nodeSelector"]["nvidia.com/mig.config.state"] == "success"


def test_fetched_weights_are_built_into_the_store() -> None:
    plan = planned(LARGE)
    config = plan.models[0].config
    spec = pod(served(plan))
    folder = f"/shared/checkpoints/{checkpoint_folder(config.source, config.revision or '')}"
    (build,) = spec["containers"]

    assert "initContainers" not in spec, "whatever runs here holds GPUs"
    assert build["command"] == [
        *("python3", "-m", "runtime.build", "--spec", "/opt/tritonfleet/engine.json"),
        *("--checkpoint", folder, "--store", "/shared/store"),
    ]
    assert {"name": "shared", "persistentVolumeClaim": {"claimName": "engines-rw", "readOnly": False}} in spec[
        "volumes"
    ]
    assert {"name": "shared", "mountPath": "/shared", "readOnly": False} in build["volumeMounts"]
    assert build["workingDir"] == variables(build)["PYTHONPATH"] == "/opt/tritonfleet"


def test_weights_of_the_bucket_are_mounted_and_nothing_is_fetched() -> None:
    recorded = served(with_source(planned(LARGE), "bucket://llama/405b/"))
    spec = pod(recorded)

    assert not recorded.of("Job", "-weights-")
    leaving = [policy.name for policy in recorded.of("NetworkPolicy") if "ipBlock" in repr(policy.inputs)]
    assert leaving == ["serving-environment-internet"], "nothing else leaves"
    assert not recorded.of("Secret", "serving-hub"), "nobody would read the token"
    assert "--checkpoint /weights" in " ".join(spec["containers"][0]["command"])
    claim = {"claimName": "llama-405b-weights", "readOnly": True}
    assert {"name": "weights", "persistentVolumeClaim": claim} in spec["volumes"]
    assert {"name": "weights", "mountPath": "/weights", "readOnly": True} in spec["containers"][0]["volumeMounts"]
    account = recorded.one("ServiceAccount", "engine-").inputs
    assert account["metadata"]["annotations"] == {"cloud.example/reads": "llama/405b"}
    right, account = recorded.one("test:index:Right"), recorded.one("ServiceAccount", "engine-")
    assert right.urn in account.depends_on
    assert account.urn in build_of(recorded).depends_on, "a pod that comes before its rights may never have them"
    serving = recorded.one("ServiceAccount", "serving-llama-405b-account").inputs
    assert "annotations" not in serving["metadata"], "a serving pod reads its engine, not the bucket"


def test_a_reclaimed_node_is_no_failure_and_a_refusal_is_final() -> None:
    spec = job(served())["spec"]
    ignore, fail = spec["podFailurePolicy"]["rules"]

    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert fail["action"] == "FailJob"
    assert fail["onExitCodes"] == {"containerName": "build", "operator": "In", "values": [1, 2]}
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "or no failure policy is allowed"
    assert spec["podReplacementPolicy"] == "Failed", "the one that such a policy demands"
    assert 1 <= spec["backoffLimit"] <= 3
    assert "ttlSecondsAfterFinished" not in spec, "Pulumi would make a Job that vanished anew"


def test_the_deadline_follows_the_weights_and_the_storage() -> None:
    small, large = planned(SMALL).models[0], planned(LARGE).models[0]
    assert small.serving
    assert large.serving
    hour = 3600
    slower = replace(large.serving, load_seconds=10 * large.serving.load_seconds)

    assert hour <= deadline_seconds(small, small.serving) < 2 * hour
    # 812 GB; the download is no part of it.
    assert 6 * hour < deadline_seconds(large, large.serving) < 12 * hour
    assert deadline_seconds(large, slower) > deadline_seconds(large, large.serving)
    assert job(served(planned(LARGE)))["spec"]["activeDeadlineSeconds"] == deadline_seconds(large, large.serving)


def test_pulumi_waits_longer_than_a_job_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: dict[str, pulumi.CustomTimeouts] = {}
    job_class = cast(Any, jobs.Job)

    def spy(name: str, *args: Any, opts: pulumi.ResourceOptions, **rest: Any) -> Any:
        assert opts.custom_timeouts
        waits[name] = opts.custom_timeouts
        return job_class(name, *args, opts=opts, **rest)

    monkeypatch.setattr(jobs, "Job", spy)
    recorded = served()

    assert waits.keys() == {fetch_of(recorded).name, build_of(recorded).name, "serving-environment-job"}
    for name, timeouts in waits.items():
        deadline = recorded.one("Job", name).inputs["spec"]["activeDeadlineSeconds"]
        for wait in (timeouts.create, timeouts.update):
            assert wait
            assert deadline < int(wait.removesuffix("s")) < deadline + 600
