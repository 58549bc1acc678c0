"""state.json in a launcher's run directory: what its group, or its place in one, is doing. For probes and people."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

STATE = "state.json"
IN_FLIGHT = "in-flight"


def write_state(run_dir: Path, state: dict[str, Any]) -> None:
    """Puts `state` there, whole at every moment, with this process as its `launcher`."""
    launcher = {"launcher": os.getpid(), "launcher_started": started(os.getpid())}
    staging = run_dir / f".{STATE}"
    staging.write_text(json.dumps(state | launcher, indent=2) + "\n", encoding="utf-8")
    staging.replace(run_dir / STATE)


def read_state(run_dir: Path) -> dict[str, Any] | None:
    """What a launcher last wrote there, alive or not; None when there is nothing to read."""
    try:
        return dict(json.loads((run_dir / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def frontends_are_idle(run_dir: Path) -> bool:
    """Whether no frontend has requests in flight: one that has holds a shared lock on a file there."""
    with (run_dir / IN_FLIGHT).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def launcher_lives(state: dict[str, Any]) -> bool:
    """Whether the process that wrote `state` runs.

    The pid alone does not tell: in a container every launcher is process 1, and a restarted container finds the state
    that its predecessor left.
    """
    return started(state["launcher"]) == state["launcher_started"]


def started(pid: int) -> int | None:
    """When a process was started, in clock ticks since the machine was; None for one that is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # proc(5): the name, in parentheses, may hold anything; field 3 is the state, field 22 the start.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])
