"""`fleet synth`: what a stack would deploy, as files, from the real program but without credentials or Pulumi's CLI."""

import argparse
import contextlib
import gc
import json
import sys
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from fleet.plan import OK, REFUSED, USAGE, UsageError, print_problems, refuse_without_packages, stack_path
from planner.errors import PlanError, Problem
from planner.stack_file import read_stack_file

FILES = "files.txt"
"""Lists every file that synth wrote into the folder, itself too: what else is there is somebody's own."""


def add_parser(subparsers: Any) -> None:
    """Add `synth` to the command line; `subparsers` is argparse's special action, which has no public type."""
    parser = subparsers.add_parser("synth", help="write what a stack would deploy, without deploying it")
    parser.add_argument("stack", help="a stack file, or the NAME of stacks/Pulumi.NAME.yaml")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write, replaced as a whole")
    parser.add_argument("--json", action="store_true", help="print a summary, or the problems, as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the files. 0: written, 1: refused or failed, 2: the command line is at fault; then nothing was written."""
    # Pulumi's SDKs are thousands of classes, all of which stay: to search them for garbage takes a fifth of the time.
    gc.disable()
    try:
        return _synth(args)
    finally:
        gc.enable()


def _synth(args: argparse.Namespace) -> int:
    try:
        # Pulumi's packages are large, and no other command needs them.
        from fleet.recorder import plain
        from fleet.synthesis import synthesize
    except ModuleNotFoundError as missing:
        return refuse_without_packages(missing, "nothing was written")
    try:
        path = stack_path(args.stack)
        with _told_of(args.out):
            target = _target(args.out)
        synthesis = synthesize(read_stack_file(path), stack=path.stem.removeprefix("Pulumi."))
        with _told_of(args.out):
            _write(synthesis.files, target)
    except PlanError as error:
        print_problems(error.problems, as_json=args.json)
        return USAGE if isinstance(error, UsageError) else REFUSED
    recording = synthesis.recording
    for message in recording.messages:
        print(f"warning: {message}", file=sys.stderr)
    counts = {
        "resources": len(recording.resources),
        "kubernetes_objects": sum(name.startswith("kubernetes/") for name in synthesis.files),
        "charts": sum(name.startswith("charts/") for name in synthesis.files) // 2,
    }
    if args.json:
        estimate = {"estimate": plain(recording.outputs["estimate"])} if "estimate" in recording.outputs else {}
        summary = {"out": str(target), **counts, **estimate, "warnings": list(recording.messages)}
        print(json.dumps(summary, indent=2))
    else:
        for note in recording.notes:
            print(note)
        print(f"{target}: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))
    return OK


@contextlib.contextmanager
def _told_of(out: Path) -> Generator[None]:
    """Tell what the system refuses as a problem of `--out`, without the names of scratch files."""
    try:
        yield
    except OSError as error:
        what = f"{out} cannot be written: {error.strerror or type(error).__name__}"
        fix = "give a folder that you may write, on a file system with room"
        raise PlanError([Problem(key="--out", what=what, consequence="nothing was written", fix=fix)]) from error


def _target(out: Path) -> Path:
    # A link given as DIR stays a link; what it points to is replaced.
    target = out.resolve()
    fault = None
    if target.exists() and not target.is_dir():
        fault = "is a file"
    elif above := next((folder for folder in target.parents if folder.exists() and not folder.is_dir()), None):
        fault = f"lies below {above}, which is a file"
    elif target.is_dir() and (foreign := _foreign(target)):
        fault = f"holds what synth did not write: {', '.join(foreign[:3])}"
    if fault:
        raise UsageError(
            [
                Problem(
                    key="--out",
                    what=f"{out} {fault}",
                    consequence="writing there would destroy it; nothing was written",
                    fix="give an empty or a new folder, or one that synth wrote before",
                )
            ]
        )
    return target


def _foreign(target: Path) -> list[str]:
    """What lies in the folder and is not of the last synth."""
    listing = target / FILES
    # A file of this name that is not synth's does not list itself.
    ours = set(listing.read_text(encoding="utf-8", errors="replace").splitlines()) if listing.is_file() else set[str]()
    # First without looking into folders: a home directory has many.
    if foreign := {entry.name for entry in target.iterdir()} - {Path(name).parts[0] for name in ours if name}:
        return sorted(foreign)
    entries = (entry for entry in target.rglob("*") if entry.is_symlink() or not entry.is_dir())
    return sorted({entry.relative_to(target).as_posix() for entry in entries} - ours)


def _write(files: Mapping[str, str], target: Path) -> None:
    listing = "".join(f"{name}\n" for name in sorted([*files, FILES]))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        for name, text in {**files, FILES: listing}.items():
            file = new / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
        # A folder cannot replace a full one in one step: between the two steps there is none, but never half of one.
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
