"""The mpirun command line and environment that start a group's ranks, for Open MPI 4.1 (images) and 5.0 (PyPI)."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import Refusal

AGENT = Path(__file__).with_name("agent.py")


@dataclass(frozen=True)
class MpiRun:
    """An mpirun and the major version of its Open MPI, which decides how its launch agent is named."""

    executable: str
    major: int


def find_mpirun(given: str | None = None) -> MpiRun:
    """The given mpirun, else that of this Python's environment (its mpi4py loads the same Open MPI), else PATH's.

    Raises Refusal.
    """
    own = Path(sys.executable).with_name("mpirun")
    executable = shutil.which(given or (str(own) if own.is_file() else "mpirun"))
    if executable is None:
        raise Refusal(
            f"there is no {given or 'mpirun, neither beside this Python nor in PATH'}",
            "the ranks of a group find each other by MPI, so none could start",
            "run in a Triton TRT-LLM image, or install requirements/local.txt",
        )
    return MpiRun(executable, _major(executable))


def command(mpirun: MpiRun, *, hosts: Sequence[str], ranks_per_host: int, program: Sequence[str]) -> list[str]:
    """`hosts` are addresses, the leader's first, so that rank 0 is there; none for a group on this host alone."""
    return [
        mpirun.executable,
        # Containers run as root more often than not, and Open MPI refuses that unless told.
        *(["--allow-run-as-root"] if os.geteuid() == 0 else []),
        *(["--host", ",".join(f"{host}:{ranks_per_host}" for host in hosts)] if hosts else ["--oversubscribe"]),
        # Ranks have threads of their own; Open MPI would pin each rank to one core.
        "--bind-to",
        "none",
        # Daemons stay children of the launchers, and the agent learns how they end.
        "--leave-session-attached",
        # Where `python -m runtime.rank` finds the package, on every host.
        "--wdir",
        str(Path(__file__).parents[1]),
        "-n",
        str(ranks_per_host * max(1, len(hosts))),
        *program,
    ]


def environment(mpirun: MpiRun) -> dict[str, str]:
    """Open MPI starts remote daemons by the agent, all from here: by default hosts start each other, as a tree."""
    agent = f"{sys.executable} -I -S {AGENT}"
    if mpirun.major >= 5:
        return {"PRTE_MCA_plm_ssh_agent": agent, "PRTE_MCA_plm_ssh_no_tree_spawn": "1"}
    return {"OMPI_MCA_plm_rsh_agent": agent, "OMPI_MCA_plm_rsh_no_tree_spawn": "1"}


def _major(executable: str) -> int:
    said = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout
    found = re.search(r"Open MPI\)? v?(\d+)\.", said)
    if found is None:
        raise Refusal(
            f"{executable} is not Open MPI: it says {said.splitlines()[:1]}",
            "its launch agent could not be replaced, so it would ask for ssh",
            "put Open MPI 4.1 or newer first in PATH",
        )
    return int(found[1])
