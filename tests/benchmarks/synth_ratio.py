"""How long `fleet synth` takes beside a bare program: the same resources from literals, with no logic and no files.

    .venv/bin/python -m tests.benchmarks.synth_ratio [--stack aws-llama-405b] [--rounds 7] [--json]

The bare program is written from what the stack registers: one call for each resource, with the same class of the same
SDK and the same inputs, run the way Pulumi's own mocks run a program. Each round starts both as fresh processes one
after the other, both from .pyc files.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pulumi import _types  # pyright: ignore[reportPrivateUsage] - the names of inputs in Python

from fleet.manifests import PLACEHOLDER
from fleet.recorder import UNKNOWN, Registered, plain
from fleet.synthesis import record_program
from planner.stack_file import read_stack_file
from tests.engine.simulated.sdk import class_path, classes_of

ROOT = Path(__file__).parents[2]

HEAD = """
import asyncio

import pulumi
from pulumi.runtime import mocks


class Mocks(mocks.Mocks):
    def call(self, args):
        raise AssertionError(args.token)

    def new_resource(self, args):
        # Azure answers with a map where it takes a list of identities.
        return "", {name: value for name, value in args.inputs.items() if name != "identity"}


def program():
"""

TAIL = """

def main():
    pulumi.runtime.set_mocks(Mocks(), preview=True)
    program()


mocks.test(main)()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stack", default="aws-llama-405b")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    values = read_stack_file(ROOT / "stacks" / f"Pulumi.{args.stack}.yaml")
    resources = record_program(values, stack=args.stack).resources
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "bare.py").write_text(bare_program(resources))
        synth = [sys.executable, "-m", "fleet", "synth", args.stack, "--out", f"{scratch}/out"]
        # Imported, for Python keeps no .pyc of the file that it is started with.
        bare = [sys.executable, "-c", "import bare"]
        times: dict[str, list[float]] = {"synth": [], "bare": []}
        for warm in (False, *[True] * args.rounds):
            for name, command in (("synth", synth), ("bare", bare)):
                seconds = run(command, Path(scratch))
                if warm:
                    times[name].append(seconds)
    report(args, len(resources), times)


def run(command: list[str], scratch: Path) -> float:
    environment = {**os.environ, "PYTHONPATH": str(scratch)}
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, timeout=120, check=True)
    return time.perf_counter() - started


def report(args: argparse.Namespace, count: int, times: dict[str, list[float]]) -> None:
    ratios = [synth / bare for synth, bare in zip(times["synth"], times["bare"], strict=True)]
    ratio = statistics.median(ratios)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    if args.json:
        print(json.dumps({"stack": args.stack, "resources": count, "seconds": medians, "ratio": ratio}, indent=2))
        return
    print(f"{args.stack}: {count} resources, median of {args.rounds} rounds")
    for name, seconds in times.items():
        print(f"{name:6} {medians[name]:6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")
    print(f"ratio  {ratio:6.2f}    ({min(ratios):.2f} to {max(ratios):.2f})")


def bare_program(resources: tuple[Registered, ...]) -> str:
    """The source of a program that registers the same types with the same inputs, and does nothing else."""
    calls = [call for resource in resources for call in _call(resource)]
    modules = sorted({call.split("(")[0].rpartition(".")[0] for call in calls} - {"pulumi"})
    imports = "".join(f"    import {module}\n" for module in modules)
    return HEAD + imports + "".join(f"    {call}\n" for call in calls) + TAIL


def _call(resource: Registered) -> Iterator[str]:
    inputs = _literal(plain(resource.inputs))
    if resource.type.startswith("tritonfleet:"):
        yield f"pulumi.ComponentResource({resource.type!r}, {resource.name!r})"
        return
    provider_of = resource.type.removeprefix("pulumi:providers:")
    type_ = f"{provider_of}:Provider" if provider_of != resource.type else resource.type
    args_class = classes_of(type_)[1]
    if args_class is None:
        named = {"api_version": inputs.pop("apiVersion"), "kind": inputs.pop("kind"), **inputs}
        path = "pulumi_kubernetes.apiextensions.CustomResource"
    else:
        python = {key: name for name, key in _types.input_type_py_to_pulumi_names(args_class).items()}
        # Azure has a property of the name of a resource's first argument.
        named = {python[key].replace("resource_name", "resource_name_"): value for key, value in inputs.items()}
        path = ".".join(class_path(type_))
    arguments = "".join(f", {name}={value!r}" for name, value in named.items())
    yield f"{path}({resource.name!r}{arguments})"


def _literal(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda item: PLACEHOLDER if item is UNKNOWN else None))


if __name__ == "__main__":
    main()
