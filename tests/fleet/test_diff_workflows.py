"""The workflows that tell a pull request what it changes: what they may do, and that they do it."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

WORKFLOWS = Path(__file__).parents[2] / ".github" / "workflows"
FILES = (WORKFLOWS / "diff.yml", WORKFLOWS / "diff-comment.yml")
SHA, MARKER = "a" * 40, "<!-- fleet diff -->"

GH = """\
#!/bin/sh
# GitHub's client, of which the workflow needs three things: it lists, it downloads, and it sends a body.
case "$*" in
  *"/pulls "*) cat "$ANSWERS/pulls.json" ;;
  "run download"*) mkdir found && cp "$ANSWERS/diff.md" found/ ;;
  *--paginate*) cat "$ANSWERS/comments.json" ;;
  *body=@*) echo "$3 $4" >"$ANSWERS/sent"; cp body.md "$ANSWERS/body.md" ;;
  *) exit 1 ;;
esac
"""


def workflow(name: str) -> dict[str, Any]:
    return YAML(typ="safe").load(WORKFLOWS / name)  # pyright: ignore[reportUnknownMemberType]


def test_they_pass_actionlint() -> None:
    actionlint = os.environ.get("ACTIONLINT") or shutil.which("actionlint")
    if actionlint is None or not Path(actionlint).is_file():
        pytest.skip("no actionlint on PATH: go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.7")
    done = subprocess.run([actionlint, *FILES], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_every_action_is_pinned_by_its_commit() -> None:
    used = re.findall(r"uses: (.+)", "".join(file.read_text() for file in FILES))
    assert used
    assert [line for line in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_what_runs_foreign_code_can_write_nothing_and_what_writes_runs_none() -> None:
    runs, posts = workflow("diff.yml"), workflow("diff-comment.yml")
    assert set(runs["on"]) == {"pull_request"}
    assert runs["permissions"] == {"contents": "read"}
    assert "permissions" not in runs["jobs"]["diff"]
    text = FILES[0].read_text()
    assert "secrets." not in text
    assert "github.token" not in text
    assert runs["jobs"]["diff"]["steps"][0]["with"]["persist-credentials"] is False
    assert posts["permissions"] == {}
    assert posts["jobs"]["comment"]["permissions"] == {"actions": "read", "pull-requests": "write"}
    assert "uses:" not in FILES[1].read_text(), "nothing is checked out, nothing of the artifact is run"
    for job in (*runs["jobs"].values(), *posts["jobs"].values()):
        # What a pull request may choose reaches a shell as a variable only.
        assert not [step for step in job["steps"] if "${{" in step.get("run", "")]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    if not (shutil.which("jq") and shutil.which("bash")):
        pytest.skip("no bash and jq on PATH, which GitHub's runners have")
    folder = tmp_path / "answers"
    folder.mkdir()
    (folder / "pulls.json").write_text(json.dumps([{"number": 5, "head": {"sha": "b" * 40}}, pull(7)]))
    (folder / "comments.json").write_text("[]")
    (folder / "diff.md").write_text(f"{MARKER}\n# fleet diff\n\n@everyone `x`\n")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "gh").write_text(GH)
    (bin_ / "gh").chmod(0o755)
    return folder


def pull(number: int) -> dict[str, Any]:
    return {"number": number, "head": {"sha": SHA}}


def step(answers: Path, index: int, **given: str) -> str:
    """Runs a step of the job as GitHub does; what it wrote to $GITHUB_OUTPUT."""
    folder = answers.parent
    output = folder / "output"
    output.touch()
    environment = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "ANSWERS": str(answers),
        "GITHUB_OUTPUT": str(output),
        "GH_REPO": "us/it",
        "RUN": "1",
        "SHA": SHA,
        "OWNER": "them",
        "BRANCH": "main",
        "MARKER": MARKER,
        **given,
    }
    script = workflow("diff-comment.yml")["jobs"]["comment"]["steps"][index]["run"]
    subprocess.run(["bash", "-e", "-c", script], cwd=folder, env=environment, check=True, timeout=30)
    return output.read_text()


def test_the_pull_request_is_the_one_whose_head_was_rendered(answers: Path) -> None:
    assert step(answers, 0) == "number=7\n"
    (answers / "pulls.json").write_text("[]")
    (answers.parent / "output").unlink()
    assert step(answers, 0) == "number=\n"


def test_a_first_comment_is_posted_and_the_next_one_takes_its_place(answers: Path) -> None:
    step(answers, 1, NUMBER="7")
    assert (answers / "sent").read_text() == "POST repos/us/it/issues/7/comments\n"
    body = (answers / "body.md").read_text()
    assert body.startswith(f"{MARKER}\nMade from {SHA}")
    assert body.count(MARKER) == 1
    assert "@everyone" not in body
    assert "everyone `x`" in body

    mine = {"id": 31, "user": {"login": "github-actions[bot]"}, "body": body}
    theirs = {"id": 30, "user": {"login": "somebody"}, "body": body}
    (answers / "comments.json").write_text(json.dumps([theirs, mine]))
    shutil.rmtree(answers.parent / "found")
    step(answers, 1, NUMBER="7")
    assert (answers / "sent").read_text() == "PATCH repos/us/it/issues/comments/31\n"


def test_what_is_no_plain_or_too_long_a_text_is_cut_or_refused(answers: Path) -> None:
    (answers / "diff.md").write_text("@" * 200_000)
    step(answers, 1, NUMBER="7")
    assert len((answers / "body.md").read_bytes()) < 65_536
