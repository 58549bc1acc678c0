"""Trees of two git revisions, and their stacks as each tree's own program registers them."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet.diff.compare import Resource
from planner.errors import PlanError, Problem, shown

RENDER = Path(__file__).with_name("render.py")
RENDER_SECONDS = 900
_STACK_FILE = re.compile(r"Pulumi\.(.+)\.yaml")
_TEXTS = re.compile(r"(docs|tests|\.github)/|[^/]+\.md$")
_AMBIENT = ("PULUMI_", "AWS_", "KUBE", "GOOGLE_", "CLOUDSDK_", "ARM_", "AZURE_", "GIT_", "PYTHON")


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A stack as a revision's program registers it, or the `problems` for which it does not."""

    resources: tuple[Resource, ...] = ()
    outputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    messages: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


class RevisionError(PlanError):
    """The revision, or the place that the command was given, is at fault, and not what is in it."""


def repository(folder: Path) -> Path:
    """The top of the git working tree that holds `folder`. Raises RevisionError."""
    return Path(_git(folder, "rev-parse", "--show-toplevel").strip())


def commit_of(top: Path, revision: str) -> str:
    """The full hash of what a revision names. Raises RevisionError when it names no commit."""
    try:
        # A revision may not be taken for an option.
        return _git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").strip()
    except RevisionError as error:
        if error.problems[0].key != "git":
            raise
        shallow = _git(top, "rev-parse", "--is-shallow-repository").strip() == "true"
        fix = (
            "`git fetch --unshallow`, or in CI a checkout with fetch-depth: 0"
            if shallow
            else "`git log` lists those here"
        )
        what = f"no commit {shown(revision)} in this repository"
        raise _error("revision", what, fix) from None


def changed_files(top: Path) -> list[str]:
    """Files of the working tree that are in no commit yet, or not as they are."""
    lines = _git(top, "status", "--porcelain", "--untracked-files=normal", "-z").split("\0")
    return sorted(line[3:] for line in lines if len(line) > 3 and line[2] == " ")


def touched(top: Path, base: str, head: str | None, uncommitted: Sequence[str]) -> frozenset[str] | None:
    """Stacks of which something differs between the revisions (None: the files as they are); None for all of them."""
    names = _git(top, "diff", "--name-only", "--no-renames", "-z", base, *([head] if head else []), "--").split("\0")
    files = [name for name in (*names, *uncommitted) if name and not _TEXTS.match(name)]
    stacks = [_STACK_FILE.fullmatch(name.removeprefix("stacks/")) for name in files if name.startswith("stacks/")]
    # Anything else may be what the program is, or reads.
    return frozenset(match[1] for match in stacks if match) if len(stacks) == len(files) and all(stacks) else None


@contextmanager
def tree_of(top: Path, commit: str) -> Generator[Path]:
    """The files of a commit, in a folder of their own for as long as it takes; the repository is not touched."""
    with tempfile.TemporaryDirectory(prefix="fleet-diff-") as scratch:
        archive = _git_bytes(top, "archive", "--format=tar", commit)
        try:
            with tarfile.open(fileobj=io.BytesIO(archive)) as files:
                files.extractall(scratch, filter="data")
        except (OSError, tarfile.TarError) as error:
            fix = "correct that file, or make room where temporary files go"
            raise _error("revision", f"{commit[:12]} cannot be unpacked: {error}", fix) from error
        yield Path(scratch)


def stacks_in(tree: Path) -> list[str]:
    """The names of a tree's stack files."""
    found = (_STACK_FILE.fullmatch(path.name) for path in (tree / "stacks").glob("Pulumi.*.yaml"))
    return sorted(match[1] for match in found if match)


def rendered(tree: Path, stacks: Sequence[str]) -> dict[str, Rendered]:
    """The stacks of a tree, by name."""
    if not stacks:
        return {}
    if not (tree / "__main__.py").is_file() or not (tree / "planner" / "stack_file.py").is_file():
        return dict.fromkeys(stacks, _failed("there is no program of tritonfleet in it", "compare with a later commit"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_AMBIENT)}
    with tempfile.TemporaryDirectory(prefix="fleet-diff-") as scratch:
        out = Path(scratch) / "rendered.json"
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(RENDER), str(tree), str(out), *stacks],
                cwd=tree,
                # Compiled files of a tree that is deleted again would be written for nothing.
                env={**environment, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                timeout=RENDER_SECONDS,
            )
        except subprocess.TimeoutExpired:
            said = f"its program did not end within {RENDER_SECONDS} s"
            return dict.fromkeys(stacks, _failed(said, "compare fewer stacks, with --stack"))
        if not out.exists():
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            return dict.fromkeys(stacks, _failed(f"its program does not run: {said}", "correct that revision"))
        made: dict[str, dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
        return {stack: _read(one) for stack, one in made.items()}


def rendered_both(before: Path, after: Path, stacks: Iterable[str]) -> tuple[dict[str, Rendered], dict[str, Rendered]]:
    """The same of two trees at once, of each the stacks that it has."""
    wanted = [[stack for stack in stacks_in(tree) if stack in set(stacks)] for tree in (before, after)]
    with ThreadPoolExecutor(max_workers=2) as both:
        olds, news = both.map(rendered, (before, after), wanted)
    return olds, news


def _read(made: Mapping[str, Any]) -> Rendered:
    if "problems" in made:
        return Rendered(problems=tuple(Problem(**problem) for problem in made["problems"]))
    return Rendered(resources=tuple(made["resources"]), outputs=made["outputs"], messages=tuple(made["messages"]))


def _failed(what: str, fix: str) -> Rendered:
    cost = "it registers nothing that could be compared"
    return Rendered(problems=(Problem(key="program", what=what, consequence=cost, fix=fix),))


def _git(folder: Path, *arguments: str) -> str:
    return _git_bytes(folder, *arguments).decode("utf-8", errors="replace")


def _git_bytes(folder: Path, *arguments: str) -> bytes:
    git = shutil.which("git")
    if git is None:
        raise _error("PATH", "there is no git on PATH", "install git")
    # What a repository's own settings would run (a pager, a hook, an fsmonitor) is not run.
    command = [git, "-c", "core.fsmonitor=false", "--no-pager", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True)
    if done.returncode:
        said = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
        what = said[0].removeprefix("fatal: ") if said else f"git {arguments[0]} failed"
        raise _error("git", what, "run it inside a clone of the repository, with its history")
    return done.stdout


def _error(key: str, what: str, fix: str) -> RevisionError:
    return RevisionError([Problem(key=key, what=what, consequence="there is nothing to compare with", fix=fix)])
