"""Whether this host's launcher lives, for a probe: `python -m runtime.health [--run-dir DIR] [--ready]`.

With --ready it must also do its part: lead a group that answers, or have joined its leader. A worker has no port that
a probe could ask. Exit status 0 or 1; one line says why. It imports little, since it runs every few seconds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.state import launcher_lives, read_state

READY_PHASES = ("ready", "joined")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime.health", description="Probe this host's launcher.")
    parser.add_argument("--run-dir", type=Path, default=Path("/run/tritonfleet"), help="the launcher's")
    parser.add_argument(
        "--ready", action="store_true", help="must lead a group that answers, or have joined its leader"
    )
    args = parser.parse_args(arguments)
    well, why = health(read_state(args.run_dir), must_be_ready=args.ready)
    print(why)
    return 0 if well else 1


def health(state: dict[str, Any] | None, *, must_be_ready: bool) -> tuple[bool, str]:
    """Whether the launcher that wrote `state` is well, and in words what it does."""
    if state is None:
        return False, "no launcher has said anything here yet"
    if not launcher_lives(state):
        return False, f"the launcher (pid {state['launcher']}) is gone; it was {_doing(state)}"
    if state["phase"] == "stopped" or (must_be_ready and state["phase"] not in READY_PHASES):
        return False, f"not ready: {_doing(state)}"
    return True, _doing(state)


def _doing(state: dict[str, Any]) -> str:
    who = f"worker {state['worker']}" if "worker" in state else f"leader, generation {state['generation']}"
    reason = f" ({state['reason']})" if state["reason"] and state["phase"] not in READY_PHASES else ""
    return f"{who}: {state['phase']}{reason}"


if __name__ == "__main__":
    sys.exit(main())
