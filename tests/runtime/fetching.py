"""`runtime.fetch` as a process."""

import os
import subprocess
import sys
from pathlib import Path

from runtime.process_tree import die_with_parent

ROOT = Path(__file__).parents[2]
_OF_STORES = ("AWS_", "AZURE_", "GOOGLE_", "HF_")


def start(
    source: str, into: Path, env: dict[str, str], *more: str, revision: str = "v1", prefix: tuple[str, ...] = ()
) -> "subprocess.Popen[str]":
    """The process; it has this machine's environment but for what may be about a store, and `env`, "" for none."""
    command = [sys.executable, "-m", "runtime.fetch", "--source", source, "--revision", revision, "--into", str(into)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_OF_STORES)}
    return subprocess.Popen(
        [*prefix, *command, *more],
        cwd=ROOT,
        env=clean | {name: value for name, value in env.items() if value},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Its exit status, output and errors."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def published(into: Path) -> list[str]:
    """The checkpoints' folders, sorted."""
    return sorted(path.name for path in into.iterdir() if path.name not in ("staging", "locks"))
