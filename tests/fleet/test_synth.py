"""`fleet synth` with a small program in place of the real one: what the files say, and when none are written."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pulumi", reason="Pulumi's packages are not installed: `make setup` installs them")

import yaml

from fleet import synth, synthesis
from planner.errors import PlanError
from planner.plan import plan_values
from planner.stack_file import read_stack_file

HEAD = """
import pulumi
import pulumi_aws as aws
import pulumi_kubernetes as k8s
import pulumi_random as random
from pulumi import ResourceOptions

cluster = k8s.Provider("cluster", kubeconfig=pulumi.Output.secret("KUBE-SECRET"))
with_cluster = ResourceOptions(provider=cluster)
meta = lambda name, **more: k8s.meta.v1.ObjectMetaArgs(name=name, namespace="serving", **more)
"""

WHOLE = (
    HEAD
    + """
class Room(pulumi.ComponentResource):
    def __init__(self, name, opts):
        super().__init__("tritonfleet:room:Room", name, None, opts)
        child = ResourceOptions(parent=self)
        token = random.RandomPassword(f"{name}-token", length=40, opts=child)
        bucket = aws.s3.Bucket(
            f"{name}-bucket",
            opts=ResourceOptions(parent=self, protect=True, retain_on_delete=True, ignore_changes=["tags"]),
        )
        k8s.core.v1.Secret(
            f"{name}-secret",
            metadata=meta("token"),
            string_data={"token": token.result, "given": pulumi.Config("tritonfleet").get_secret("hugging_face_token")},
            opts=child,
        )
        k8s.core.v1.Secret(f"{name}-plain", metadata=meta("plain"), data={"key": "VERY-SECRET"}, opts=child)
        settings = k8s.core.v1.ConfigMap(
            f"{name}-settings",
            metadata=meta("settings", labels={"hash": "12e4567", "on": "y"}, annotations={"role": bucket.arn}),
            data={"script.py": "import os\\n\\nprint('ü')\\n", "number": "1e3", "bucket": bucket.arn},
            opts=child,
        )
        k8s.helm.v3.Release(
            f"{name}-chart",
            chart="lws", version="1.2.3", name="lws", namespace="lws-system",
            repository_opts=k8s.helm.v3.RepositoryOptsArgs(repo="https://charts.test"),
            values={"replicas": 2, "role": bucket.arn},
            opts=ResourceOptions(parent=self, depends_on=[settings]),
        )
        self.register_outputs({})

Room("room", ResourceOptions(providers=[cluster]))
pulumi.export("password", pulumi.Output.secret("OUT-SECRET"))
pulumi.export("answer", 42)
pulumi.warn("mind the gap")
"""
)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that makes its text the program that synth runs, in a folder with one stack, `tiny`."""
    folder = tmp_path / "program"
    folder.mkdir()
    (tmp_path / "stacks").mkdir()
    stack = "config:\n  tritonfleet:cloud: aws\n  tritonfleet:hugging_face_token:\n    secure: v1:abcd\n"
    (tmp_path / "stacks" / "Pulumi.tiny.yaml").write_text(stack)
    monkeypatch.setattr(synthesis, "PROGRAM", folder)
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> None:
        (folder / "__main__.py").write_text(text)

    return write


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    synth.add_parser(parser.add_subparsers())
    args = parser.parse_args(["synth", *arguments])
    return args.run(args)


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def resources(folder: Path) -> dict[str, Any]:
    return {entry["name"]: entry for entry in json.loads((folder / "resources.json").read_text())}


def test_every_resource_is_written_with_its_options(program: Callable[[str], None], tmp_path: Path) -> None:
    program(WHOLE)
    assert call("tiny", "--out", "out") == 0
    found = resources(tmp_path / "out")
    assert list(found) == [entry["name"] for entry in sorted(found.values(), key=lambda entry: entry["urn"])]
    room, bucket, settings = found["room"], found["room-bucket"], found["room-settings"]
    assert bucket["urn"] == "urn:pulumi:tiny::tritonfleet::tritonfleet:room:Room$aws:s3/bucket:Bucket::room-bucket"
    assert (bucket["parent"], bucket["protect"], bucket["retainOnDelete"]) == (room["urn"], True, True)
    assert bucket["ignoreChanges"] == ["tags"]
    assert settings["provider"] == found["cluster"]["urn"] == room["providers"]["kubernetes"]
    assert settings["dependencies"] == [bucket["urn"]]
    assert settings["inputs"]["data"] == {
        "bucket": "known-after-apply",
        "number": "1e3",
        "script.py": "import os\n\nprint('ü')\n",
    }
    assert found["room-chart"]["dependencies"] == sorted([bucket["urn"], settings["urn"]])
    assert found["room-token"]["additionalSecretOutputs"] == ["bcryptHash", "result"]
    assert json.loads((tmp_path / "out" / "stack-outputs.json").read_text()) == {"answer": 42, "password": "[secret]"}


def test_kubernetes_objects_and_charts_become_files(program: Callable[[str], None], tmp_path: Path) -> None:
    program(WHOLE)
    assert call("tiny", "--out", "out") == 0
    files = written(tmp_path / "out")
    assert set(files) == set(files["files.txt"].decode().splitlines())
    assert set(files) == {
        "files.txt",
        "resources.json",
        "stack-outputs.json",
        "charts/lws-system-lws/release.yaml",
        "charts/lws-system-lws/values.yaml",
        *(f"kubernetes/serving/{name}.yaml" for name in ("configmap-settings", "secret-plain", "secret-token")),
    }
    settings = files["kubernetes/serving/configmap-settings.yaml"].decode()
    # Kubernetes' parser would read these two as a number and as true.
    assert 'hash: "12e4567"' in settings
    assert '"on": "y"' in settings or "'on': \"y\"" in settings
    assert "script.py: |\n    import os\n\n    print('ü')\n" in settings
    assert list(yaml.safe_load(settings)) == ["apiVersion", "kind", "metadata", "data"]
    release = yaml.safe_load(files["charts/lws-system-lws/release.yaml"])
    assert (release["chart"], release["version"], release["repository"]) == ("lws", "1.2.3", "https://charts.test")
    assert yaml.safe_load(files["charts/lws-system-lws/values.yaml"]) == {"replicas": 2, "role": "known-after-apply"}


def test_no_secret_is_written(program: Callable[[str], None], tmp_path: Path) -> None:
    program(WHOLE)
    assert call("tiny", "--out", "out") == 0
    files = written(tmp_path / "out")
    for path, content in files.items():
        assert b"SECRET" not in content, path
        assert b"v1:abcd" not in content, path
    assert yaml.safe_load(files["kubernetes/serving/secret-plain.yaml"])["stringData"] == {"key": "[secret]"}
    # One of its two values is unknown, and then Pulumi knows neither key.
    token = yaml.safe_load(files["kubernetes/serving/secret-token.yaml"])
    assert token["stringData"] == {"known-after-apply": "known-after-apply"}


def test_the_same_bytes_on_every_run_whatever_the_shell_points_at(
    program: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(WHOLE)
    assert call("tiny", "--out", "one") == 0
    for name in ("AWS_REGION", "AWS_PROFILE", "KUBECONFIG", "PULUMI_K8S_ENABLE_SERVER_SIDE_APPLY"):
        monkeypatch.setenv(name, "true")
    assert call("tiny", "--out", "two") == 0
    assert written(tmp_path / "one") == written(tmp_path / "two")
    assert os.environ["AWS_REGION"] == "true"


def test_the_summary_counts(program: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    program(WHOLE)
    assert call("tiny", "--out", "out", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document.pop("out").endswith("/out")
    assert document == {"resources": 8, "kubernetes_objects": 3, "charts": 1, "warnings": ["mind the gap"]}
    assert call("tiny", "--out", "out") == 0
    shown = capsys.readouterr()
    assert "8 resources, 3 kubernetes objects, 1 charts" in shown.out
    assert "warning: mind the gap" in shown.err


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ("k8s.core.v1.ConfigMap('c', data={}, opts=with_cluster)", "has no metadata.name"),
        (
            "k8s.core.v1.ConfigMap('c', metadata=meta(aws.s3.Bucket('b').bucket), data={}, opts=with_cluster)",
            "metadata.name is known only after deployment",
        ),
        (
            "k8s.core.v1.ConfigMap('c', metadata=meta('c'), data=pulumi.Output.secret({'a': 'b'}), opts=with_cluster)",
            "data is secret",
        ),
        (
            "[k8s.core.v1.ConfigMap(n, metadata=meta('c'), data={}, opts=with_cluster) for n in 'ab']",
            "kubernetes/serving/configmap-c.yaml is written twice",
        ),
        ("k8s.yaml.v2.ConfigFile('c', file='x.yaml', opts=with_cluster)", "ConfigFile is no single object"),
        ("aws.get_caller_identity()", "the program asks the cloud (aws:index/getCallerIdentity"),
        ("[aws.s3.Bucket('b') for _ in 'ab']", "aws:s3/bucket:Bucket::b is registered twice"),
        ("raise pulumi.RunError('no such zone')", "no such zone"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    objects: str, said: str, program: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(HEAD + objects)
    assert call("tiny", "--out", "out", "--json") == 1
    [problem] = json.loads(capsys.readouterr().out)["problems"]
    assert said in problem["what"]
    assert not (tmp_path / "out").exists()


def test_problems_of_the_plan_are_told_one_by_one(
    program: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    program(
        "import pulumi\nfrom planner.errors import PlanError, Problem\n"
        "try:\n    raise PlanError(Problem(key=k, what='w', consequence='c', fix='f') for k in 'ab')\n"
        "except PlanError as error:\n    raise pulumi.RunError(str(error)) from error\n"
    )
    assert call("tiny", "--out", "out", "--json") == 1
    assert [problem["key"] for problem in json.loads(capsys.readouterr().out)["problems"]] == ["a", "b"]


def test_a_bug_in_the_program_is_no_refusal(program: Callable[[str], None]) -> None:
    program("1 / 0")
    with pytest.raises(ZeroDivisionError):
        call("tiny", "--out", "out")


def test_unknown_stack_is_suggested(program: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    program(WHOLE)
    assert call("tinny", "--out", "out") == 2
    assert "did you mean tiny?" in capsys.readouterr().err


def test_an_earlier_synth_is_replaced_as_a_whole(program: Callable[[str], None], tmp_path: Path) -> None:
    program(WHOLE)
    (tmp_path / "out").mkdir()
    assert call("tiny", "--out", "out") == 0
    program(HEAD)
    assert call("tiny", "--out", "out") == 0
    assert set(written(tmp_path / "out")) == {"files.txt", "resources.json", "stack-outputs.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "program", "stacks"], "no scratch folder is left"


@pytest.mark.parametrize("name", ["notes.txt", "kubernetes/mine.yaml", "resources.json", "files.txt"])
def test_a_folder_of_somebody_else_is_refused(
    name: str, program: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(WHOLE)
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    assert call("tiny", "--out", "out") == 2
    assert "holds what synth did not write" in capsys.readouterr().err
    assert written(tmp_path / "out") == {name: b"mine"}
    assert call("tiny", "--out", str(file)) == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["notes.txt", "kubernetes/serving/mine.yaml", "charts/lws-system-lws/mine/a.yaml"])
def test_ones_own_file_among_those_of_an_earlier_synth_is_kept(
    name: str, program: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(WHOLE)
    assert call("tiny", "--out", "out") == 0
    own = tmp_path / "out" / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    before = written(tmp_path / "out")
    capsys.readouterr()
    assert call("tiny", "--out", "out") == 2
    assert f"holds what synth did not write: {name}" in capsys.readouterr().err
    assert written(tmp_path / "out") == before
    own.unlink()
    assert call("tiny", "--out", "out") == 0, "what is left is synth's"


@pytest.mark.parametrize("out", ["file/out", "file/a/b", "locked/a/out", "x" * 300])
def test_a_folder_that_cannot_be_written_is_a_problem_of_out(
    out: str,
    program: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program(WHOLE)
    (tmp_path / "file").write_text("mine")
    real = Path.mkdir

    def refusing(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        # Root may write everywhere, so permissions would prove nothing.
        if "locked" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        real(path, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", refusing)
    assert call("tiny", "--out", out, "--json") == (2 if "file" in out else 1)
    [problem] = json.loads(capsys.readouterr().out)["problems"]
    assert problem["key"] == "--out"
    assert "nothing was written" in problem["consequence"]
    assert problem["fix"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "program", "stacks"]


def test_a_failed_run_leaves_the_earlier_files(
    program: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program(WHOLE)
    assert call("tiny", "--out", "out") == 0
    before = written(tmp_path / "out")
    program(HEAD)
    real = Path.rename

    def failing(path: Path, to: Path) -> Path:
        if path.name == "new":
            raise OSError(28, "No space left on device", str(path), None, str(to))
        return real(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    assert call("tiny", "--out", "out") == 1
    told = capsys.readouterr().err
    assert "--out: out cannot be written: No space left on device" in told
    assert ".out-" not in told, "the name of the scratch folder tells nobody anything"
    assert written(tmp_path / "out") == before


def test_outside_a_preview_the_cloud_has_answered(program: Callable[[str], None]) -> None:
    program(WHOLE + "pulumi.export('arn', aws.s3.Bucket('b').arn.apply(lambda arn: arn.upper()))")
    recording = synthesis.record_program(
        {}, stack="tiny", preview=False, computed=lambda _: {"arn": "arn:x", "result": "R"}
    )
    assert recording.outputs["arn"] == "ARN:X"
    [secret] = [resource for resource in recording.resources if resource.name == "room-secret"]
    assert repr(secret.inputs["stringData"]) == "Secret(…)", "what derives from a secret output is secret"
    assert secret.inputs["stringData"].value["token"] == "R"


def test_synthesize_raises_the_problems_themselves(program: Callable[[str], None]) -> None:
    program(HEAD + "k8s.core.v1.ConfigMap('c', data={}, opts=with_cluster)")
    with pytest.raises(PlanError) as raised:
        synthesis.synthesize({}, stack="tiny")
    assert raised.value.problems[0].key == "kubernetes:core/v1:ConfigMap c"


def test_each_warning_of_the_real_program_names_its_model() -> None:
    folder = Path(__file__).parents[2] / "stacks"
    values = read_stack_file(folder / "Pulumi.aws-llama-405b.yaml")
    (model,) = plan_values(values, base_dir=folder).models
    assert model.warnings, "or this would prove nothing"
    told = synthesis.synthesize(values, stack="aws-llama-405b").recording.messages
    assert {f"{model.name}: {warning}" for warning in model.warnings} <= set(told)
    assert not set(model.warnings) & set(told)
