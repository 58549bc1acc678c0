"""A stack as the real program registers it, in this process: what `fleet synth` writes, and tests compare."""

import runpy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi

from fleet.manifests import files_of
from fleet.recorder import Computed, Recording, record
from planner.config import NAMESPACE
from planner.errors import PlanError, Problem
from planner.pulumi_config import config_of

PROGRAM = Path(__file__).parents[1]
NOT_DEPLOYED = "recorded"
"""The program's `__name__` here. Pulumi runs it as `__main__`, and only then may it look at a cluster."""


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """A stack as the program registers it, and the same as files (path to text)."""

    recording: Recording
    files: dict[str, str]


def synthesize(values: Mapping[str, Any], *, stack: str) -> Synthesis:
    """What the program makes of a stack's `tritonfleet:` values. Raises PlanError with all problems."""
    recording = record_program(values, stack=stack)
    return Synthesis(recording=recording, files=files_of(recording))


def record_program(
    values: Mapping[str, Any], *, stack: str, preview: bool = True, computed: Computed | None = None
) -> Recording:
    """The registrations alone; `preview` and `computed` as `record` has them. Raises PlanError with all problems."""
    config, secret_keys = config_of(values)
    try:
        return record(
            lambda: runpy.run_path(str(PROGRAM), run_name=NOT_DEPLOYED),
            project=NAMESPACE,
            stack=stack,
            config=config,
            secret_keys=secret_keys,
            preview=preview,
            computed=computed,
        )
    except pulumi.RunError as error:
        # The program tells Pulumi's command line in one text what is a list of problems here.
        if isinstance(error.__cause__, PlanError):
            raise error.__cause__ from None
        cost, fix = "nothing was written", "this is a fault of the program, not of the stack"
        raise PlanError([Problem(key=f"stack {stack}", what=str(error), consequence=cost, fix=fix)]) from None
