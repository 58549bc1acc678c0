"""`fleet synth`: what a stack would deploy, as files, from the real program but without credentials or Pulumi's CLI."""

import argparse
import contextlib
import gc
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet.plan import OK, REFUSED, USAGE, UsageError, print_problems, stack_path
from planner.errors import PlanError, Problem
from planner.stack_file import read_stack_file

WRITTEN = {"resources.json", "stack-outputs.json", "kubernetes", "charts"}


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
        from fleet.synthesis import synthesize
    except ModuleNotFoundError as missing:
        fix = f"{sys.executable} -m pip install -r requirements.txt"
        print(f"error: {missing}\n  consequence: nothing was written\n  fix: {fix}", file=sys.stderr)
        return REFUSED
    try:
        path = stack_path(args.stack)
        target = _target(args.out)
        synthesis = synthesize(read_stack_file(path), stack=path.stem.removeprefix("Pulumi."))
        _write(synthesis.files, target)
    except PlanError as error:
        print_problems(error.problems, as_json=args.json)
        return USAGE if isinstance(error, UsageError) else REFUSED
    except OSError as error:
        print(f"error: {error}\n  consequence: nothing was written", file=sys.stderr)
        return REFUSED
    recording = synthesis.recording
    for message in recording.messages:
        print(f"warning: {message}", file=sys.stderr)
    counts = {
        "resources": len(recording.resources),
        "kubernetes_objects": sum(name.startswith("kubernetes/") for name in synthesis.files),
        "charts": sum(name.startswith("charts/") for name in synthesis.files) // 2,
    }
    if args.json:
        print(json.dumps({"out": str(target), **counts, "warnings": list(recording.messages)}, indent=2))
    else:
        print(f"{target}: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))
    return OK


def _target(out: Path) -> Path:
    # A link given as DIR stays a link; what it points to is replaced.
    target = out.resolve()
    fault = None
    if target.exists() and not target.is_dir():
        fault = "is a file"
    elif target.is_dir():
        found = {entry.name for entry in target.iterdir()}
        foreign = sorted(found - WRITTEN)
        if foreign or (found and "resources.json" not in found):
            fault = f"holds what synth did not write: {', '.join((foreign or sorted(found))[:3])}"
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


def _write(files: Mapping[str, str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        for name, text in files.items():
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
