"""`fleet diff` on a git repository with this program in two commits."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

pytest.importorskip("pulumi", reason="Pulumi's packages are not installed: `make setup` installs them")
if shutil.which("git") is None:
    pytest.skip("no git on PATH", allow_module_level=True)

from fleet.__main__ import main
from fleet.diff.compare import FieldChange, ResourceChange
from fleet.diff.markdown import LONGEST_BYTES, MARKER, markdown
from fleet.diff.report import CostChange, EngineChange, Risk, StackDiff
from fleet.diff.revisions import changed_files, touched

ROOT = Path(__file__).parents[2]
ROOMS = ("components", "fleet", "frontend", "model_repo", "planner", "policy", "requirements", "runtime")
STACK = "aws-llama-405b"
CIPHERTEXTS = ("v1:AAAAAAAAAAAAAAAA:oldciphertext", "v1:BBBBBBBBBBBBBBBB:newciphertext")
OK, REFUSED, USAGE, CHANGES, RISKS = 0, 1, 2, 3, 4


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the program and one stack, whose key is encrypted, in one commit."""
    top = tmp_path_factory.mktemp("repository")
    for room in ROOMS:
        shutil.copytree(ROOT / room, top / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("__main__.py", "Pulumi.yaml"):
        shutil.copy(ROOT / file, top)
    (top / "stacks").mkdir()
    text = (ROOT / "stacks" / f"Pulumi.{STACK}.yaml").read_text()
    text += f"  tritonfleet:api_keys:\n    team-a:\n      secure: {CIPHERTEXTS[0]}\n"
    stack_file(top).write_text(text)
    (top / ".gitignore").write_text("__pycache__/\n")
    git(top, "init", "--quiet", "--initial-branch=main")
    commit(top, "first")
    return top


@pytest.fixture
def repository(committed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with the first commit's files in its working tree."""
    git(committed, "checkout", "--quiet", "--force", "main")
    git(committed, "clean", "--quiet", "-d", "--force")
    monkeypatch.chdir(committed)
    return committed


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=A Tester", "-c", "user.email=tester@example.com", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def commit(folder: Path, message: str) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD").strip()


def stack_file(folder: Path, stack: str = STACK) -> Path:
    return folder / "stacks" / f"Pulumi.{stack}.yaml"


def edit(folder: Path, old: str, new: str) -> None:
    text = stack_file(folder).read_text()
    assert old in text
    stack_file(folder).write_text(text.replace(old, new))


Diff = Callable[..., dict[str, Any]]


@pytest.fixture
def diff(capsys: pytest.CaptureFixture[str]) -> Diff:
    """`fleet diff --json` with these arguments; the document, with its exit status as `status`."""

    def run(*arguments: str) -> dict[str, Any]:
        status = main(["diff", *arguments, "--json"])
        return json.loads(capsys.readouterr().out) | {"status": status}

    return run


def named(stack: dict[str, Any]) -> dict[str, str]:
    return {change["name"]: change["action"] for change in stack["resources"]}


def test_an_edit_is_told_with_its_risks_and_its_cost_in_every_form(
    repository: Path, diff: Diff, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(repository, "lustre_capacity_gib: 9600", "lustre_capacity_gib: 7200")
    edit(repository, "[spot, on-demand]", "[on-demand]")
    edit(repository, "max_batch_size: 64", "max_batch_size: 32")
    found = diff("HEAD", "--exit-code")
    assert found["status"] == RISKS
    assert found["head"]["uncommitted"] == [f"stacks/Pulumi.{STACK}.yaml"]
    (stack,) = found["stacks"]
    changes = named(stack)
    assert changes["aws-storage-files"] == "replaced"
    assert changes["aws-h100-spot"] == "deleted"
    assert changes["serving-llama-405b-set"] == "changed"
    fields = {change["name"]: change["fields"] for change in stack["resources"]}
    capacity = {"path": "storageCapacity", "before": 9600, "after": 7200, "replaces": True, "refused": False}
    assert fields["aws-storage-files"] == [capacity]
    kinds = [risk["kind"] for risk in stack["risks"]]
    assert kinds[0] == "refused", "worst first"
    assert {"downtime", "left behind"} <= set(kinds)
    (engine,) = stack["engines"]
    assert engine["model"] == "llama-405b"
    assert engine["before"] != engine["after"]
    month = stack["cost"]["usd_per_month"]
    assert month["after"] > month["before"] > 0
    assert "Estimate" in stack["cost"]["note"]

    assert main(["diff", "HEAD"]) == OK
    text = capsys.readouterr().out
    assert text.index("refused: aws-") < text.index("left behind: aws-storage-files") < text.index("± aws:fsx")
    assert "storageCapacity: 9600 -> 7200 (replaces)" in text
    assert "USD a month" in text

    assert main(["diff", "HEAD", "--markdown"]) == OK
    comment = capsys.readouterr().out
    assert comment.startswith(MARKER)
    assert "```mermaid\nflowchart LR" in comment
    assert "LustreFileSystem ±<br/>aws-storage-files" in comment
    assert comment.index("**refused**") < comment.index("```mermaid")
    assert len(comment.encode()) <= LONGEST_BYTES


def test_what_cannot_differ_is_not_rendered(repository: Path, diff: Diff, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(stack_file(repository), stack_file(repository, "other"))
    base = commit(repository, "another stack")
    (repository / "docs").mkdir()
    (repository / "docs" / "new.md").write_text("words\n")
    assert touched(repository, base, None, changed_files(repository)) == set()
    edit(repository, "max_nodes: 3", "max_nodes: 2")
    assert touched(repository, base, None, changed_files(repository)) == {STACK}
    assert touched(repository, f"{base}~1", base, []) == {"other"}
    (repository / "planner" / "new.py").write_text("")
    assert touched(repository, base, None, changed_files(repository)) is None
    git(repository, "reset", "--quiet", "--hard", f"{base}~1")
    (repository / "planner" / "new.py").unlink()
    monkeypatch.setattr("fleet.diff.revisions.RENDER", repository / "there is none")
    assert diff("HEAD")["stacks"][0]["status"] == "same"


def test_a_rule_that_the_change_breaks_is_a_risk(repository: Path, diff: Diff) -> None:
    edit(repository, "[spot, on-demand]", "[spot]")
    edit(repository, "shared: lustre", "shared: lustre\n    keep_data: false")
    (stack,) = diff("HEAD")["stacks"]
    risks = {(risk["kind"], risk["what"].partition(":")[0]) for risk in stack["risks"]}
    assert ("policy", "breaks protected-data") in risks
    assert ("unguarded", "loses its protection, or is no longer kept when it is deleted") in risks
    assert ("capacity", "pool h100 loses its on-demand nodes") in risks
    assert (named(stack)["aws-h100-on-demand"], named(stack)["aws-storage-models"]) == ("deleted", "changed")


def test_nothing_changes_where_only_words_do(repository: Path, diff: Diff) -> None:
    edit(repository, "# Llama 3.1 405B", "# Llama 3.1, 405B")
    found = diff("HEAD", "--exit-code")
    assert found["status"] == OK
    assert [(stack["status"], stack["resources"], stack["engines"]) for stack in found["stacks"]] == [("same", [], [])]


def test_a_rotated_key_changes_one_secret_and_is_not_shown(
    repository: Path, diff: Diff, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(repository, *CIPHERTEXTS)
    found = diff("HEAD", "--exit-code")
    assert found["status"] == CHANGES
    (stack,) = found["stacks"]
    assert named(stack) == {"serving-api-keys-secret": "changed"}
    (field,) = stack["resources"][0]["fields"]
    assert (field["before"], field["after"]) == ("[secret]", "[secret]")
    for form in ([], ["--markdown"]):
        assert main(["diff", "HEAD", *form]) == OK
    printed = json.dumps(found) + capsys.readouterr().out
    assert not re.search("ciphertext|sk-[0-9a-f]{8}", printed)


def test_keys_that_are_encrypted_as_a_whole_are_rotated_too(repository: Path, diff: Diff) -> None:
    edit(repository, f"\n    team-a:\n      secure: {CIPHERTEXTS[0]}", f" {{secure: {CIPHERTEXTS[0]}}}")
    commit(repository, "whole")
    edit(repository, *CIPHERTEXTS)
    try:
        (stack,) = diff("HEAD")["stacks"]
    finally:
        git(repository, "reset", "--quiet", "--hard", "HEAD~1")
    assert named(stack) == {"serving-api-keys-secret": "changed"}


def test_the_workflows_step_leaves_the_comment_behind(repository: Path, tmp_path: Path) -> None:
    """As GitHub runs it: bash, a base commit, the merged files in the working tree."""
    file = ROOT / ".github" / "workflows" / "diff.yml"
    workflow: dict[str, Any] = YAML(typ="safe").load(file)  # pyright: ignore[reportUnknownMemberType]
    (step,) = [step for step in workflow["jobs"]["diff"]["steps"] if "BASE" in step.get("env", {})]
    edit(repository, "max_nodes: 3", "max_nodes: 2")
    commit(repository, "smaller")
    summary = tmp_path / "summary.md"
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": str(summary)}
    try:
        subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            cwd=repository,
            env=environment | {"BASE": git(repository, "rev-parse", "HEAD~1").strip()},
            check=True,
            timeout=300,
        )
        comment = (repository / "diff.md").read_text()
    finally:
        git(repository, "reset", "--quiet", "--hard", "HEAD~1")
    assert comment.startswith(MARKER)
    assert "**capacity**: `aws-h100-spot`: at most 2 nodes instead of 3" in comment
    assert summary.read_text() == comment


def test_two_commits_and_a_stack_of_only_one_of_them(repository: Path, diff: Diff) -> None:
    first = git(repository, "rev-parse", "HEAD").strip()
    stack_file(repository).rename(stack_file(repository, "renamed"))
    second = commit(repository, "second")
    git(repository, "reset", "--quiet", "--hard", first)
    found = diff(first, "--head", second)
    assert found["status"] == OK
    assert found["head"]["commit"] == second
    assert found["head"]["uncommitted"] == []
    status = {stack["stack"]: stack for stack in found["stacks"]}
    assert {name: stack["status"] for name, stack in status.items()} == {STACK: "gone", "renamed": "new"}
    assert set(named(status[STACK]).values()) == {"deleted"}
    assert set(named(status["renamed"]).values()) == {"added"}
    assert "stays until `pulumi destroy`" in " ".join(status[STACK]["notes"])
    assert diff(first, "--head", second, "--stack", "renamed")["stacks"][0]["status"] == "new"


def test_a_revision_that_does_not_render_says_why(repository: Path, diff: Diff) -> None:
    edit(repository, "tensor_parallel: 8", "tensor_parallel: 5")
    refused = commit(repository, "refused")
    (repository / "__main__.py").write_text("raise RuntimeError('broken on purpose')\n")
    broken = commit(repository, "broken")
    git(repository, "reset", "--quiet", "--hard", "HEAD~2")
    for revision, key, what in (
        (refused, "models[0].tensor_parallel", "attention heads"),
        (broken, "__main__.py:1", "RuntimeError: broken on purpose"),
    ):
        found = diff(revision)
        assert found["status"] == REFUSED
        (stack,) = found["stacks"]
        assert stack["status"] == "failed"
        assert stack["problems"].keys() == {"base"}
        problem = stack["problems"]["base"][0]
        assert problem["key"] == key
        assert what in problem["what"]
        assert problem["consequence"]
        assert problem["fix"]


def test_a_revision_without_the_program_is_one_problem(repository: Path, diff: Diff) -> None:
    git(repository, "checkout", "--quiet", "--orphan", "empty")
    git(repository, "rm", "-r", "--quiet", "--force", ".")
    (repository / "stacks").mkdir(exist_ok=True)
    stack_file(repository).write_text("config: {}\n")
    empty = commit(repository, "empty")
    git(repository, "checkout", "--quiet", "--force", "main")
    found = diff(empty)
    assert found["status"] == REFUSED
    assert "no program of tritonfleet" in found["stacks"][0]["problems"]["base"][0]["what"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-branch"], "no commit 'no-such-branch' in this repository"),
        (["--", "--output=x"], "no commit '--output=x' in this repository"),
        (["HEAD", "--head", "HEAD~50"], "no commit 'HEAD~50' in this repository"),
        (["HEAD:planner"], "no commit 'HEAD:planner' in this repository"),
        (["HEAD", "--stack", "aws-llama-405"], "no stack named 'aws-llama-405' in either revision"),
    ],
)
def test_what_is_not_there_is_wrong_usage(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["diff", *arguments]) == USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("error: ") == captured.err.count("fix: ") == 1
    assert "Traceback" not in captured.err
    assert git(repository, "status", "--porcelain") == ""


def test_without_git_or_outside_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["diff", "HEAD"]) == USAGE
    assert "not a git repository" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["diff", "HEAD"]) == USAGE
    assert "no git on PATH" in capsys.readouterr().err


def huge(stacks: int, resources: int, *, name: str = "resource", value: str = "x" * 300) -> list[StackDiff]:
    fields = tuple(FieldChange(path=f"a.b{number}", before=value, after=value + "!") for number in range(30))
    changes = tuple(
        ResourceChange(
            action="changed",
            urn=f"urn:pulumi:s::p::tritonfleet:a:B$aws:ec2/vpc:Vpc::{name}-{number}",
            type="aws:ec2/vpc:Vpc",
            name=f"{name}-{number}",
            fields=fields,
        )
        for number in range(resources)
    )
    risks = tuple(Risk(kind="downtime", resource=change.name, what="it is down") for change in changes[:3])
    cost = CostChange(before=1.0, after=2.0, lines=(("pool", 1.0, None),), note="")
    engine = EngineChange(model="m", before="old", after="new")
    return [
        StackDiff(stack=f"s{number}", status="changed", changes=changes, risks=risks, cost=cost, engines=(engine,))
        for number in range(stacks)
    ]


@pytest.mark.parametrize(("stacks", "resources"), [(1, 1), (1, 300), (3, 1000), (200, 40)])
def test_a_comment_is_never_longer_than_github_takes(stacks: int, resources: int) -> None:
    comment = markdown(huge(stacks, resources), "a to b")
    assert len(comment.encode()) <= LONGEST_BYTES
    assert comment.startswith(MARKER)
    assert "downtime" in comment
    for opened, closed in (("<details>", "</details>"), ("```mermaid", "```\n")):
        assert comment.count(opened) <= comment.count(closed)
    assert comment.count("\n```") % 2 == 0


def test_names_and_values_of_a_stack_are_no_markup() -> None:
    evil = '`|<img src=x>]"\n@everyone --> end'
    comment = markdown(huge(1, 2, name=evil, value=evil), f"{evil} to b")
    picture = re.search(r"```mermaid\n(.*?)\n```", comment, re.DOTALL)
    assert picture
    assert not re.search(r"[<@|`](?!br/>)", re.sub(r"<br/>", "", picture[1]))
    outside = re.sub(r"(`+).*?\1", "", comment.replace(picture[0], ""))
    assert "@everyone" not in outside
    assert "<img" not in re.sub(r"\\<", "", outside)
