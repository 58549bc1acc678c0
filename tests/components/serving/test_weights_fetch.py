"""Downloads: one for each source, without a GPU, before the builds; the only pods with a token and a way out."""

import re
from dataclasses import replace
from typing import Any

import pytest
from pulumi_kubernetes.batch.v1 import Job

from components.platform.namespaces import limits
from components.serving import jobs
from components.serving.environment import FOLDER, environment_name
from components.serving.weights_fetch import deadline_seconds, fetched
from planner.clouds import cloud_facts
from planner.plan import FleetPlan
from planner.sources import checkpoint_folder
from planner.versions import PYTHON_IMAGE
from tests.components.serving.stacks import (
    EXAMPLES,
    LARGE,
    MIG,
    SMALL,
    Values,
    build_of,
    container,
    every_template,
    fetch_of,
    model_values,
    planned,
    served,
    variables,
    with_source,
)
from tests.components.world import Recorded

HOUR = 3600


def pod(recorded: Recorded) -> Values:
    return fetch_of(recorded).inputs["spec"]["template"]["spec"]


def two_engines_of_one_source(values: Values) -> None:
    """The stack's model under another name, with an engine of its own."""
    values["models"].append({**model_values(values), "name": "twin", "build": {"multiple_profiles": True}})
    values["pools"][0]["max_nodes"] = 9


def mebibytes(quantity: str) -> int:
    factor = {"Mi": 1, "Gi": 1024}[quantity[-2:]]
    return factor * int(quantity[:-2])


def test_the_source_is_fetched_whole_into_the_shared_file_system() -> None:
    plan = planned(LARGE)
    config = plan.models[0].config
    recorded = served(plan)
    (fetch,) = pod(recorded)["containers"]

    folder = checkpoint_folder(config.source, config.revision or "")
    assert fetch_of(recorded).inputs["metadata"]["name"] == f"weights-{folder}"
    assert fetch["command"] == [
        *("python3", "-m", "runtime.fetch", "--source", config.source),
        *("--revision", config.revision, "--into", "/shared/checkpoints"),
    ]
    claim = {"claimName": "engines-rw", "readOnly": False}
    assert {"name": "shared", "persistentVolumeClaim": claim} in pod(recorded)["volumes"]
    assert {"name": "shared", "mountPath": "/shared", "readOnly": False} in fetch["volumeMounts"]
    assert fetch["workingDir"] == "/opt/tritonfleet"


def test_the_fetch_runs_in_the_small_image_with_the_packages_installed_before() -> None:
    recorded = served(planned(LARGE))
    (fetch,) = pod(recorded)["containers"]
    installation = recorded.one("Job", "-environment-")

    assert fetch["image"] == PYTHON_IMAGE
    assert variables(fetch)["PYTHONPATH"] == f"/opt/tritonfleet:{FOLDER}/{environment_name()}"
    assert FOLDER.startswith("/shared/"), "which the pod mounts"
    assert installation.urn in fetch_of(recorded).depends_on


def test_engines_of_one_source_share_its_fetch_and_wait_for_it() -> None:
    recorded = served(planned(SMALL, two_engines_of_one_source))
    builds = recorded.of("Job", "-engine-")

    assert len(builds) == 2
    assert all(fetch_of(recorded).urn in build.depends_on for build in builds)


def test_another_revision_is_another_fetch_beside_the_old_one() -> None:
    def moved(values: Values) -> None:
        model_values(values)["revision"] = "f" * 40

    before, after = fetch_of(served(planned(SMALL))), fetch_of(served(planned(SMALL, moved)))

    assert before.urn != after.urn
    assert before.inputs["metadata"]["name"] != after.inputs["metadata"]["name"]


@pytest.mark.parametrize("stack", EXAMPLES)
def test_each_build_waits_for_its_own_source_only(stack: str) -> None:
    plan = planned(stack)
    recorded = served(plan)
    for model in plan.models:
        own = checkpoint_folder(model.config.source, model.config.revision or "")
        awaited = recorded.one("Job", model.engine.id).depends_on
        fetches = {fetch.urn for fetch in recorded.of("Job", "-weights-")}
        assert awaited & fetches == {recorded.one("Job", own).urn}


@pytest.mark.parametrize("stack", EXAMPLES)
def test_no_fetch_may_run_on_a_gpu_node_or_ask_for_one(stack: str) -> None:
    plan = planned(stack)
    assert plan.infrastructure
    groups = [group for pool in plan.infrastructure.pools for group in pool.node_groups]
    assert all(any(taint.effect == "NoSchedule" for taint in group.taints) for group in groups), "these keep it off"
    fetches = served(plan).of("Job", "-weights-")
    assert fetches
    for fetch in fetches:
        spec = fetch.inputs["spec"]["template"]["spec"]
        assert not spec.get("tolerations")
        assert not spec.get("nodeSelector")
        assert "nvidia.com" not in repr(spec)


def test_two_fetches_fit_on_a_small_system_node_beside_the_controllers() -> None:
    """What is left of 2 vCPUs and 8 GiB (m7i.large): 7 GiB for pods, of which the controllers have a third."""
    resources = pod(served())["containers"][0]["resources"]

    assert resources["requests"]["memory"] == resources["limits"]["memory"], "no other pod may end for it"
    assert 1024 <= mebibytes(resources["limits"]["memory"]) <= 2048
    assert int(resources["requests"]["cpu"].removesuffix("m")) <= 500
    assert mebibytes(resources["limits"]["ephemeral-storage"]) <= 1024
    sizes = [volume["emptyDir"]["sizeLimit"] for volume in pod(served())["volumes"] if "emptyDir" in volume]
    assert sizes
    assert all(mebibytes(size) <= 1024 for size in sizes)


def test_the_download_buffers_nothing_beyond_its_memory() -> None:
    """hf_xet's buffers alone would be more than the pod may have."""
    assert variables(container(fetch_of(served()).inputs["spec"]["template"], "fetch"))["HF_HUB_DISABLE_XET"] == "1"


def test_the_token_is_a_file_of_the_fetch_and_nobody_elses() -> None:
    recorded = served()
    secret = recorded.one("Secret", "serving-hub")
    assert secret.secrets == {"stringData"}
    assert secret.inputs["stringData"] == {"token": "hf_secret"}
    name = secret.inputs["metadata"]["name"]

    holders: list[Values] = []
    for template in every_template(recorded):
        holding = {v["name"] for v in template["spec"]["volumes"] if v.get("secret", {}).get("secretName") == name}
        everyone = (*template["spec"].get("initContainers", []), *template["spec"]["containers"])
        holders += [one for one in everyone if holding & {mount["name"] for mount in one["volumeMounts"]}]
        assert "hf_secret" not in repr(template)
        assert not any("valueFrom" in variable for one in everyone for variable in one["env"])
        if template["metadata"]["labels"]["app.kubernetes.io/name"] != "weights-fetch":
            assert name not in repr(template)
            assert "HF_TOKEN_PATH" not in repr(template)
    assert [one["name"] for one in holders] == ["fetch"]
    assert variables(holders[0])["HF_TOKEN_PATH"] == "/etc/tritonfleet/hugging-face/token"
    assert secret.urn in fetch_of(recorded).depends_on


def test_without_a_token_nothing_speaks_of_one() -> None:
    recorded = served(token=None)

    assert not recorded.of("Secret", "serving-hub")
    assert "hugging-face" not in repr(pod(recorded))
    assert "HF_TOKEN_PATH" not in repr(pod(recorded))


def test_a_fetch_has_an_account_of_its_own_without_rights_in_the_cloud() -> None:
    recorded = served(planned(MIG))
    fetches = recorded.of("Job", "-weights-")
    assert len(fetches) == len({model.config.source for model in planned(MIG).models}) > 1
    names: set[str] = set()
    for fetch in fetches:
        (account,) = [
            one
            for one in recorded.of("ServiceAccount")
            if one.inputs["metadata"]["name"] == fetch.inputs["spec"]["template"]["spec"]["serviceAccountName"]
        ]
        assert account.urn in fetch.depends_on
        assert "annotations" not in account.inputs["metadata"]
        names.add(account.inputs["metadata"]["name"])
    assert len(names) == len(fetches)


def test_the_way_out_is_open_before_the_fetch_begins() -> None:
    recorded = served()
    assert recorded.one("NetworkPolicy", "-weights-").urn in fetch_of(recorded).depends_on


def test_the_hubs_bad_hour_is_waited_for_and_a_drained_node_is_no_failure() -> None:
    spec = fetch_of(served()).inputs["spec"]
    ignore, fail = spec["podFailurePolicy"]["rules"]

    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert fail["action"] == "FailJob"
    assert fail["onExitCodes"] == {"containerName": "fetch", "operator": "In", "values": [2]}, "1 may be an outage"
    assert spec["backoffLimit"] >= 5
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "or no failure policy is allowed"
    assert spec["podReplacementPolicy"] == "Failed", "the one that such a policy demands"
    assert "ttlSecondsAfterFinished" not in spec, "Pulumi would make a Job that vanished anew"


def other_image(plan: FleetPlan) -> FleetPlan:
    site = plan.infrastructure
    assert site
    images = site.images.model_copy(update={"triton": "r.example/t:1"})
    return replace(plan, infrastructure=replace(site, images=images))


def test_another_image_leaves_a_fetch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fetch_of(served(planned(SMALL)))
    monkeypatch.setattr("planner.versions.PYTHON_IMAGE", "r.example/python:3.13")
    after = fetch_of(served(planned(SMALL)))

    assert before.inputs["spec"] != after.inputs["spec"], "or the change would prove nothing"
    assert before.urn == after.urn
    assert after.ignore_changes == ("spec",)
    assert {k: v for k, v in before.inputs.items() if k != "spec"} == {
        k: v for k, v in after.inputs.items() if k != "spec"
    }


def test_a_source_of_the_hub_without_a_revision_is_a_bug_of_the_plan() -> None:
    model = planned(SMALL).models[0]
    bare = replace(model, config=model.config.model_copy(update={"revision": None}))
    with pytest.raises(AssertionError, match=model.name):
        fetched(bare)


def jobs_and_options(plan: FleetPlan, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Values, list[str]]]:
    """The metadata of each Job, by URN, and what replaces the Job."""
    options: dict[str, list[str]] = {}

    def job(name: str, **given: Any) -> Job:
        options[name] = given["opts"].replace_on_changes
        return Job(name, **given)

    with monkeypatch.context() as patched:
        patched.setattr(jobs, "Job", job)
        recorded = served(plan).of("Job")
    assert all(one.delete_before_replace for one in recorded), "the new one has the same name"
    return {one.urn: (one.inputs["metadata"], options[one.name]) for one in recorded}


def on_nfs(values: Values) -> None:
    values["storage"] = {"shared": "nfs", "accept_load_minutes": 1000}


def test_another_file_system_begins_every_job_anew_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "tritonfleet.io/file-system"
    site = planned(LARGE).infrastructure
    assert site
    assert site.storage.kind == "lustre"

    def moved(**change: str) -> FleetPlan:
        return replace(planned(LARGE), infrastructure=replace(site, storage=replace(site.storage, **change)))

    before = jobs_and_options(planned(LARGE), monkeypatch)
    assert len(before) == 3, "an installation, a fetch and a build"
    assert all(options == [f'metadata.annotations["{key}"]'] for _, options in before.values())

    for plan in (planned(LARGE, on_nfs), moved(zone="elsewhere-1a")):
        after = jobs_and_options(plan, monkeypatch)
        assert after.keys() == before.keys()
        for urn, (metadata, _) in after.items():
            assert metadata["annotations"][key] != before[urn][0]["annotations"][key]
            assert metadata["name"] == before[urn][0]["name"]

    assert jobs_and_options(other_image(planned(LARGE)), monkeypatch) == before
    assert jobs_and_options(planned(LARGE, lambda v: v["pools"][0].update(max_nodes=4)), monkeypatch) == before


def test_nfs_is_in_every_zone_unless_it_lies_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_zone(index: int) -> FleetPlan:
        def edit(values: Values) -> None:
            on_nfs(values)
            values["storage"]["zone"] = values["network"]["zones"][index]

        return planned(LARGE, edit)

    everywhere = jobs_and_options(planned(LARGE, on_nfs), monkeypatch)
    assert jobs_and_options(in_zone(0), monkeypatch) == jobs_and_options(in_zone(1), monkeypatch) == everywhere
    aws = cloud_facts("aws")
    zonal = {"aws": replace(aws, nfs=replace(aws.nfs, zonal=True))}
    monkeypatch.setattr("planner.site.cloud_facts", zonal.__getitem__)
    assert jobs_and_options(in_zone(0), monkeypatch) != jobs_and_options(in_zone(1), monkeypatch)


def test_the_deadline_follows_all_weights_that_share_the_network() -> None:
    small, large = planned(SMALL).models, planned(LARGE).models

    assert HOUR <= deadline_seconds(small) < 1.1 * HOUR
    # 812 GB: at 100 MB/s 2.3 h to download, and as long to read back.
    assert 2 * 4.5 * HOUR < deadline_seconds(large) < 12 * HOUR
    assert deadline_seconds([*large, *large]) == deadline_seconds(large)
    assert deadline_seconds([*small, *large]) > deadline_seconds(large)
    assert fetch_of(served(planned(LARGE))).inputs["spec"]["activeDeadlineSeconds"] == deadline_seconds(large)


def test_the_deadline_is_the_checkpoints_and_not_the_engines() -> None:
    """An engine in FP8 is built from the same 812 GB."""
    assert deadline_seconds(planned("aws-llama-405b-fp8").models) == deadline_seconds(planned(LARGE).models)


S3 = "s3://elsewhere/llama/405b"


def test_weights_of_another_bucket_are_fetched_by_somebody_who_may_read_them() -> None:
    recorded = served(with_source(planned(LARGE), S3))
    fetch, spec = fetch_of(recorded), pod(recorded)
    account = recorded.one("ServiceAccount", "-weights-")
    right = recorded.one("test:index:Right")

    assert fetch.inputs["spec"]["template"]["spec"]["containers"][0]["command"][3:5] == ["--source", S3]
    assert "--anonymous" not in spec["containers"][0]["command"]
    assert account.inputs["metadata"]["name"] == spec["serviceAccountName"]
    assert account.inputs["metadata"]["annotations"] == {"cloud.example/reads": "elsewhere/llama/405b in tritonfleet"}
    assert right.urn in account.depends_on
    assert account.urn in fetch.depends_on
    labels = fetch.inputs["spec"]["template"]["metadata"]["labels"]
    assert labels["cloud.example/somebody"] == "true"
    policy = recorded.one("NetworkPolicy", "-weights-").inputs["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["egress"][1:] == [
        {"to": [{"ipBlock": {"cidr": "169.254.1.2/32"}}], "ports": [{"port": 80, "protocol": "TCP"}]}
    ]
    build = build_of(recorded)
    assert fetch.urn in build.depends_on
    folder = checkpoint_folder(S3, planned(LARGE).models[0].config.revision or "")
    assert f"/shared/checkpoints/{folder}" in build.inputs["spec"]["template"]["spec"]["containers"][0]["command"]


def test_who_reads_a_bucket_knows_no_token_of_the_hub() -> None:
    recorded = served(with_source(planned(LARGE), S3))

    assert not recorded.of("Secret", "serving-hub")
    (fetch,) = pod(recorded)["containers"]
    assert not [name for name in variables(fetch) if name.startswith("HF_")]
    assert "hugging-face" not in repr(pod(recorded))


def test_a_source_of_the_hub_goes_only_where_it_went() -> None:
    (rule,) = served().one("NetworkPolicy", "-weights-").inputs["spec"]["egress"]
    (peer,) = rule["to"]
    assert "169.254.0.0/16" in peer["ipBlock"]["except"]


def test_weights_of_a_bucket_are_not_fetched() -> None:
    recorded = served(with_source(planned(LARGE), "bucket://llama/405b/"))

    assert not recorded.of("Job", "-weights-")
    assert not recorded.of("ServiceAccount", "-weights-")


@pytest.mark.parametrize("stack", EXAMPLES)
def test_names_leave_room_for_what_is_made_of_them(stack: str) -> None:
    """A Job's name is a label of its pods, and these add a hyphen and five characters."""
    for job in served(planned(stack)).of("Job"):
        name = job.inputs["metadata"]["name"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= 63 - 6
        labels = job.inputs["spec"]["template"]["metadata"]["labels"]
        assert all(len(value) <= 63 for value in labels.values())


@pytest.mark.parametrize("stack", EXAMPLES)
def test_the_quota_has_room_for_every_fetch_beside_all_groups(stack: str) -> None:
    plan = planned(stack)
    assert plan.infrastructure
    serving = sum(model.serving.replicas * model.serving.group_size for model in plan.models if model.serving)
    fetches = len(served(plan).of("Job", "-weights-")) + len(served(plan).of("Job", "-environment-"))
    assert serving + fetches + len(plan.models) <= int(limits(plan.infrastructure)["pods"])
