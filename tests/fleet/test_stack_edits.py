"""What an edit of a stack file does to what is deployed. UPDATE_GOLDEN=1 writes the lists of protected URNs anew."""

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pulumi", reason="Pulumi's packages are not installed: `make setup` installs them")

from fleet.recorder import Recording, Registered, plain
from fleet.synthesis import record_program, synthesize
from planner import engine_key, versions
from planner.errors import PlanError
from planner.stack_file import read_stack_file
from tests.engine.simulated.changes import changed, replacing
from tests.engine.simulated.sdk import computed

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "protected_urns"
STACKS = sorted(path.stem.removeprefix("Pulumi.") for path in (ROOT / "stacks").glob("Pulumi.aws-*.yaml"))
JOB = "kubernetes:batch/v1:Job"

LASTING = (
    "aws:ec2/subnet:Subnet",
    "aws:ec2/vpc:Vpc",
    "aws:efs/accessPoint:AccessPoint",
    "aws:efs/fileSystem:FileSystem",
    "aws:eks/nodeGroup:NodeGroup",
    "aws:fsx/lustreFileSystem:LustreFileSystem",
    "aws:kms/key:Key",
    "aws:s3/bucket:Bucket",
    "eks:index:Cluster",
    "kubernetes:core/v1:Namespace",
    "kubernetes:core/v1:PersistentVolume",
    "kubernetes:core/v1:PersistentVolumeClaim",
)
"""What holds data or running models: without any of these a stack is down, or has lost something."""

Values = dict[str, Any]


def values_of_stack(stack: str) -> Values:
    return read_stack_file(ROOT / "stacks" / f"Pulumi.{stack}.yaml")


@functools.cache
def recorded(stack: str) -> Recording:
    return record_program(values_of_stack(stack), stack=stack)


@functools.cache
def edited(stack: str, edit: Callable[[Values], None]) -> Recording:
    values = copy.deepcopy(values_of_stack(stack))
    edit(values)
    return record_program(values, stack=stack)


def by_urn(recording: Recording) -> dict[str, Registered]:
    return {resource.urn: resource for resource in recording.resources}


def replaced(before: Recording, after: Recording) -> list[str]:
    """URNs and properties of resources of `before` that the edit would delete: replaced, or registered no more."""
    olds, news = by_urn(before), by_urn(after)
    gone = sorted(olds.keys() - news.keys())
    for urn in sorted(olds.keys() & news.keys()):
        paths = list(changed(plain(olds[urn].inputs), plain(news[urn].inputs)))
        gone += [f"{urn} {path}" for path in replacing(olds[urn].type, paths)]
    return gone


def lasting(recording: Recording) -> list[str]:
    """What a stack must not lose by accident: how Pulumi guards it, and its URN."""
    lines: list[str] = []
    for resource in recording.resources:
        if resource.type in LASTING or resource.protect:
            guards = {"protect": resource.protect, "retain": resource.retain_on_delete}
            lines.append(f"{'+'.join(name for name, on in guards.items() if on) or '-'} {resource.urn}")
    return lines


def jobs(recording: Recording) -> set[str]:
    return {resource.inputs["metadata"]["name"] for resource in recording.resources if resource.type == JOB}


def build_jobs(recording: Recording) -> set[str]:
    """The Jobs named by an engine key; others fetch weights."""
    keys = recording.outputs["engine_keys"].values()
    return {name for name in jobs(recording) if any(key in name for key in keys)}


def more_replicas(values: Values) -> None:
    for pool in values["pools"]:
        pool["max_nodes"] = pool.get("max_nodes", 1) * 2 + 2
    for model in values["models"]:
        model["serving"] = {**model.get("serving", {}), "replicas": 2}


def more_nodes(values: Values) -> None:
    for pool in values["pools"]:
        pool["max_nodes"] = pool.get("max_nodes", 1) + 1


def louder(values: Values) -> None:
    for model in values["models"]:
        model["serving"] = {**model.get("serving", {}), "log_level": "verbose"}


def longer_queue(values: Values) -> None:
    for model in values["models"]:
        model["serving"] = {**model.get("serving", {}), "max_queue_size": 128}


def open_api(values: Values) -> None:
    values["cluster"]["api_cidrs"] = ["203.0.113.0/24"]


HARMLESS = [more_replicas, more_nodes, louder, longer_queue, open_api]
"""Edits that must take nothing away: neither engines nor nodes, volumes or the cluster."""


@pytest.mark.parametrize("stack", STACKS)
def test_preview_and_update_register_the_same(stack: str) -> None:
    def answer(resource: Registered) -> Mapping[str, Any]:
        return computed(resource.type, resource.name, resource.inputs)

    preview = recorded(stack)
    update = record_program(values_of_stack(stack), stack=stack, preview=False, computed=answer)
    options = ("urn", "type", "parent", "provider", "providers", "protect", "retain_on_delete", "ignore_changes")
    assert [[getattr(resource, name) for name in options] for resource in preview.resources] == [
        [getattr(resource, name) for name in options] for resource in update.resources
    ]
    assert len(preview.resources) > 50


@pytest.mark.parametrize("edit", HARMLESS, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("stack", STACKS)
def test_serving_edits_keep_engines_and_replace_nothing(stack: str, edit: Callable[[Values], None]) -> None:
    before, after = recorded(stack), edited(stack, edit)
    assert by_urn(before) != by_urn(after), "the edit reaches what is deployed"
    assert after.outputs["engine_keys"] == before.outputs["engine_keys"]
    assert jobs(after) == jobs(before)
    # A ConfigMap named by its content is written beside the old one.
    assert [urn for urn in replaced(before, after) if "kubernetes:core/v1:ConfigMap::" not in urn] == []


def test_a_stack_without_a_cloud_has_nothing_to_deploy() -> None:
    laptop = {key: value for key, value in values_of_stack("local").items() if key in ("cloud", "models")}
    with pytest.raises(PlanError, match=r"(?s)cloud: existing.*fleet serve"):
        record_program(laptop, stack="local")


def test_an_encrypted_token_becomes_a_masked_secret() -> None:
    values = {**values_of_stack("aws-llama-70b"), "hugging_face_token": {"secure": "v1:ciphertext"}}
    files = synthesize(values, stack="aws-llama-70b").files
    assert not [path for path, text in files.items() if "ciphertext" in text]
    assert "[secret]" in files["kubernetes/tritonfleet/secret-hugging-face-token.yaml"]


def test_synth_is_the_same_to_the_byte_in_every_process(tmp_path: Path) -> None:
    written: list[dict[str, bytes]] = []
    for seed, region in (("1", "us-east-1"), ("2", "eu-central-1")):
        out = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed, "AWS_REGION": region, "KUBECONFIG": f"/nowhere/{seed}"}
        command = [sys.executable, "-m", "fleet", "synth", "aws-small-mig", "--out", str(out)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120, capture_output=True)
        written.append({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert written[0] == written[1]
    assert len(written[0]) > 20


def other_flag(values: Values) -> None:
    """Another engine: by a flag of trtllm-build where that is what builds it."""
    for model in values["models"]:
        if model["backend"] == "tensorrt":
            model["build"] = {**model.get("build", {}), "tokens_per_block": 128}
        else:
            model["max_batch_size"] = 7


def test_a_build_flag_gives_a_new_engine_beside_the_old() -> None:
    for stack in STACKS:
        assert_new_engines(recorded(stack), edited(stack, other_flag))


def test_another_gpu_gives_a_new_engine() -> None:
    def h200(values: Values) -> None:
        values["pools"][0]["instance_types"] = ["p5en.48xlarge"]

    assert_new_engines(recorded("aws-llama-405b"), edited("aws-llama-405b", h200), new_nodes=True)


def test_another_tensorrt_llm_gives_new_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    before = recorded("aws-llama-405b")
    for module in (versions, engine_key):
        if hasattr(module, "TENSORRT_LLM"):
            monkeypatch.setattr(module, "TENSORRT_LLM", "9.9.9")
    assert_new_engines(before, record_program(values_of_stack("aws-llama-405b"), stack="aws-llama-405b"))


def assert_new_engines(before: Recording, after: Recording, *, new_nodes: bool = False) -> None:
    old, new = before.outputs["engine_keys"], after.outputs["engine_keys"]
    assert old.keys() == new.keys()
    assert not set(old.values()) & set(new.values())
    assert len(build_jobs(before)) == len(build_jobs(after)) == len(set(old.values()))
    assert not build_jobs(before) & build_jobs(after)
    assert jobs(before) - build_jobs(before) == jobs(after) - build_jobs(after), "the weights are not fetched again"
    # Only what builds the old engine goes; what serves it is changed in place once the new one is there.
    mine = [*old.values(), "kubernetes:core/v1:ConfigMap::", *(["aws:eks/nodeGroup:NodeGroup::"] if new_nodes else [])]
    assert [entry for entry in replaced(before, after) if not any(part in entry for part in mine)] == []


@pytest.mark.parametrize("stack", STACKS)
def test_protected_urns_are_the_listed_ones(stack: str) -> None:
    text = "".join(f"{line}\n" for line in lasting(recorded(stack)))
    golden = GOLDEN / f"{stack}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert golden.read_text() == text


@pytest.mark.parametrize("edit", [*HARMLESS, other_flag], ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("stack", STACKS)
def test_protected_urns_survive_every_edit_that_replaces_nothing(stack: str, edit: Callable[[Values], None]) -> None:
    listed = (GOLDEN / f"{stack}.txt").read_text().splitlines()
    after = edited(stack, edit)
    assert set(listed) <= set(lasting(after))
    urns = {line.split()[1] for line in listed}
    assert not [entry for entry in replaced(recorded(stack), after) if entry.split()[0] in urns]


def test_there_is_no_list_without_a_stack() -> None:
    assert sorted(path.stem for path in GOLDEN.iterdir()) == STACKS


def test_what_holds_data_is_listed_and_guarded() -> None:
    lines = (GOLDEN / "aws-llama-405b.txt").read_text().splitlines()
    guarded = [line for line in lines if line.startswith("protect")]
    for type_ in ("eks:index:Cluster", "aws:s3/bucket:Bucket", "aws:fsx/lustreFileSystem:LustreFileSystem"):
        assert any(f"{type_}::" in line for line in guarded), type_
    assert sum("aws:eks/nodeGroup:NodeGroup::" in line for line in lines) == 3, "system, spot and on-demand"
