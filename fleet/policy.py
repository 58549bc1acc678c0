"""`fleet policy`: the policy pack's rules on what a stack would deploy, without credentials or Pulumi's CLI."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from fleet.plan import OK, REFUSED, USAGE, UsageError, print_problems, refuse_without_packages, stack_path
from planner.errors import PlanError, Problem
from policy.rules import Breach, enforcement

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "policy" / "config.json"


def add_parser(subparsers: Any) -> None:
    """Add `policy` to the command line; `subparsers` is argparse's special action, which has no public type."""
    parser = subparsers.add_parser("policy", help="judge stacks by the rules of the policy pack")
    parser.add_argument("stacks", nargs="*", metavar="STACK", help="a stack file, or a NAME; none: all of stacks/")
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE", help="configuration of the policy pack")
    parser.add_argument("--json", action="store_true", help="print the breaches, or the problems, as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: no mandatory rule is broken, 1: one is, or a stack cannot be planned, 2: the command line is at fault."""
    try:
        # Pulumi's packages are large, and no other command needs them.
        from fleet.judgement import breaches
    except ModuleNotFoundError as missing:
        return refuse_without_packages(missing, "nothing was judged")
    try:
        config = read_config(args.config)
        paths = [stack_path(name) for name in args.stacks] or sorted((ROOT / "stacks").glob("Pulumi.*.yaml"))
        found = {path.stem.removeprefix("Pulumi."): breaches(path, config) for path in paths}
    except PlanError as error:
        print_problems(error.problems, as_json=args.json)
        return USAGE if isinstance(error, UsageError) else REFUSED
    if args.json:
        print(json.dumps({stack: [_as_json(one) for one in broken] for stack, broken in found.items()}, indent=2))
    else:
        _print(found)
    return REFUSED if any(one.mandatory for broken in found.values() for one in broken) else OK


def read_config(path: Path) -> dict[str, Any]:
    """A policy pack's configuration, as `pulumi preview --policy-pack-config` takes it. Raises UsageError."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(config, dict):
        raise _unreadable(path, "no mapping of rules to settings")
    try:
        enforcement(cast(dict[str, Any], config))
    except PlanError as error:
        raise UsageError(error.problems) from error
    return cast(dict[str, Any], config)


def _unreadable(path: Path, why: str) -> UsageError:
    fix = "give a JSON file as docs/policy.md has it"
    return UsageError([Problem(key=str(path), what=why, consequence="nothing was judged", fix=fix)])


def _as_json(breach: Breach) -> dict[str, Any]:
    return {"rule": breach.rule, "mandatory": breach.mandatory, "urn": breach.urn, **asdict(breach.problem)}


def _print(found: dict[str, list[Breach]]) -> None:
    for stack, broken in found.items():
        print(f"{stack}: {f'{len(broken)} to look at' if broken else 'keeps every rule'}")
        for one in broken:
            print(f"{'error' if one.mandatory else 'warning'}: {one.rule}: {one.problem}")
