"""The smallest sound stack on each cloud and on an existing cluster, and edits of a stack."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from planner.errors import PlanError, Problem
from planner.fleet import CloudPlan
from planner.plan import FleetPlan, plan_values

Values = dict[str, Any]
Change = Callable[[Values], object]

MODEL: Values = {
    "name": "smollm2",
    "source": "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
    "revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
    "backend": "tensorrt",
    "pool": "gpu",
    "max_seq_len": 2048,
}
LARGE = {"source": "hf://meta-llama/Llama-3.1-70B-Instruct", "revision": "1605565b47bb9346c5515c34102e054115b4f98b"}
SITES: dict[str, Values] = {
    "aws": {
        "region": "us-east-1",
        "network": {"zones": ["use1-az1", "use1-az2", "use1-az4"]},
        "pools": [{"name": "gpu", "instance_types": ["g6.xlarge"]}],
    },
    "gcp": {
        "gcp": {"project": "some-project"},
        "region": "us-central1",
        "network": {"zones": ["us-central1-a", "us-central1-b", "us-central1-c"]},
        "pools": [{"name": "gpu", "instance_types": ["a2-ultragpu-1g"], "zones": ["us-central1-a"]}],
    },
    "azure": {
        "region": "eastus",
        "network": {"zones": ["eastus-1", "eastus-2"]},
        "pools": [{"name": "gpu", "instance_types": ["Standard_NC24ads_A100_v4"]}],
    },
}
CLOUDS = sorted(SITES)
SITES["existing"] = {
    "existing": {
        "storage_class": "fast",
        "nodes": [{"name": "gpu", "gpu": "L4", "gpus_per_node": 1, "nodes": 2, "vcpus": 8, "memory_gib": 32}],
    }
}


def site(cloud: str, *changes: Change) -> Values:
    """A stack of one small model on one small pool."""
    stack = copy.deepcopy({"cloud": cloud, **SITES[cloud], "models": [MODEL]})
    for change in changes:
        change(stack)
    return stack


def plan(cloud: str, *changes: Change) -> FleetPlan:
    return plan_values(site(cloud, *changes), base_dir=Path())


def planned(cloud: str, *changes: Change) -> CloudPlan:
    found = plan(cloud, *changes).infrastructure
    assert found is not None
    return found


def problems(cloud: str, *changes: Change) -> list[Problem]:
    """What is refused; nothing where the stack is sound."""
    try:
        plan(cloud, *changes)
    except PlanError as refusal:
        return list(refusal.problems)
    return []


def refused(cloud: str, *changes: Change) -> dict[str, Problem]:
    found = problems(cloud, *changes)
    assert found, "the stack was planned"
    assert all(problem.what and problem.consequence and problem.fix for problem in found)
    return {problem.key: problem for problem in found}


def pool(**changes: Any) -> Change:
    return lambda stack: stack["pools"][0].update(changes)


def model(**changes: Any) -> Change:
    return lambda stack: stack["models"][0].update(changes)


def section(name: str, **changes: Any) -> Change:
    return lambda stack: stack.setdefault(name, {}).update(changes)


def top(**changes: Any) -> Change:
    """Keys of the stack itself, changed; None removes one."""

    def change(stack: Values) -> None:
        stack.update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del stack[key]

    return change
