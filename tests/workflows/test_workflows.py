"""The workflows of .github: actionlint's and shellcheck's judgement, what they may do, and what their scripts do."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.stack_file import read_stack_file

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

Workflow = dict[Any, Any]


def read(name: str) -> Workflow:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def script(name: str, job: str, step: str) -> str:
    """The text that a step runs."""
    (found,) = [one["run"] for one in read(name)["jobs"][job]["steps"] if one.get("name") == step]
    return found


def jobs() -> Iterator[tuple[str, Workflow, Workflow]]:
    for file in FILES:
        workflow = read(file.name)
        for job in workflow["jobs"].values():
            yield file.name, workflow, job


def judged(*files: Path) -> str:
    """What actionlint, and shellcheck through it, find."""
    judge = os.environ.get("ACTIONLINT") or shutil.which("actionlint")
    if not judge or not Path(judge).is_file():
        pytest.skip("no actionlint: `make actionlint` builds one, and `make test` finds it")
    shellcheck = Path(sys.prefix) / "bin" / "shellcheck"
    assert shellcheck.is_file(), "`make setup` installs it"
    command = [judge, "-shellcheck", shellcheck, "-pyflakes", "", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_actionlint_finds_nothing() -> None:
    assert {file.stem for file in FILES} >= {"deploy", "drift", "preview", "pulumi", "tests"}
    assert judged(*FILES) == ""


@pytest.mark.parametrize(
    ("name", "old", "new", "found"),
    [
        ("deploy.yml", "matrix.stack }}\n      cancel", "matrix.stak }}\n      cancel", "stak"),
        ("pulumi.yml", 'echo "cloud=$cloud" >>"$GITHUB_OUTPUT"', "echo cloud=$cloud >>$GITHUB_OUTPUT", "SC2086"),
    ],
)
def test_actionlint_finds_what_is_planted(name: str, old: str, new: str, found: str, tmp_path: Path) -> None:
    text = (ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
    assert found in judged(tmp_path / name)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_actions_are_pinned_by_commit_with_their_version(file: Path) -> None:
    uses = re.findall(r"^ *(?:- )?uses: (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    for used in uses:
        assert used.startswith("./") or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


def test_one_commit_stands_for_each_action() -> None:
    texts = "".join(file.read_text(encoding="utf-8") for file in FILES)
    found = set(re.findall(r"uses: (\S+)@(\S+)", texts))
    assert len({action for action, _ in found}) == len(found)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_workflow_says_what_it_may_do(file: Path) -> None:
    permissions = read(file.name)["permissions"]
    assert set(permissions) <= {"contents", "id-token"}
    assert permissions.get("contents", "read") == "read"


def test_no_code_of_a_fork_runs_with_an_identity_of_a_cloud() -> None:
    identified = 0
    for name, workflow, job in jobs():
        # YAML reads `on` as true.
        events, rights = workflow[True], job.get("permissions", workflow["permissions"])
        if rights.get("id-token") == "write":
            identified += 1
            assert set(events) <= {"push", "pull_request", "schedule", "workflow_dispatch", "workflow_call"}, name
            if "pull_request" in events:
                assert "github.event.pull_request.head.repo.full_name == github.repository" in job["if"], name
            assert "issues" not in rights, name
            assert "pull-requests" not in rights, name
    assert identified == 4


def test_only_merged_code_is_deployed_and_each_stack_alone() -> None:
    (deploy,) = read("deploy.yml")["jobs"].values()
    assert "github.ref == 'refs/heads/main'" in deploy["if"]
    assert deploy["with"]["environment"] == "deploy-${{ matrix.stack }}", "whose reviewers approve"
    assert deploy["concurrency"] == {"group": "deploy-${{ matrix.stack }}", "cancel-in-progress": False}


@pytest.mark.parametrize("stack", sorted(path.name.split(".")[1] for path in (ROOT / "stacks").glob("Pulumi.*.yaml")))
def test_the_cloud_of_a_stack_is_found(stack: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    environment = {**os.environ, "STACK": stack, "GITHUB_OUTPUT": str(output)}
    command = ["bash", "-e", "-c", script("pulumi.yml", "pulumi", "Cloud of the stack")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    values = read_stack_file(ROOT / "stacks" / f"Pulumi.{stack}.yaml")
    assert output.read_text() == f"cloud={values['cloud']}\n"


@pytest.mark.parametrize(
    ("result", "issue", "expected"),
    [
        ("success", "", []),
        ("success", "7", ["issue close 7"]),
        ("failure", "", ["issue create"]),
        ("failure", "7", ["issue comment 7"]),
    ],
)
def test_one_issue_tells_of_drift(result: str, issue: str, expected: list[str], tmp_path: Path) -> None:
    gh, log = tmp_path / "gh", tmp_path / "log"
    gh.write_text(f'#!/bin/sh\nif [ "$2" = list ]; then echo "{issue}"; else echo "$1 $2 $3" >>{log}; fi\n')
    gh.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "RESULT": result,
        "RUN": "https://run.example",
        "TITLE": "T",
    }
    command = ["bash", "-e", "-c", script("drift.yml", "tell", "Open, continue or close the issue")]
    subprocess.run(command, env=environment, check=True)
    told = log.read_text().splitlines() if log.exists() else []
    assert [line.replace(" --title", "") for line in told] == expected
