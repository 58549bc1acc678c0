"""`fleet plan`: what a stack, or one model on one GPU, would take: legal shardings, memory per rank, engine key."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from fleet import plan_packing, plan_search
from fleet.plan_cloud import print_infrastructure, types_of, warn_of_age
from fleet.plan_report import ESTIMATES, Report, print_report, report_document
from planner import sharding, sources
from planner.clouds import CLOUDS
from planner.errors import PlanError, Problem, did_you_mean, shown
from planner.instances import instances
from planner.parsing import parse_stack
from planner.plan import plan_file, plan_model, resolve

OK, REFUSED, USAGE = 0, 1, 2


def add_parser(subparsers: Any) -> None:
    """Add `plan` to the command line; `subparsers` is argparse's special action, which has no public type."""
    parser = subparsers.add_parser("plan", help="say what a stack or a model needs, before anything is deployed")
    parser.add_argument("stack", nargs="?", help="a stack file, or the NAME of stacks/Pulumi.NAME.yaml")
    parser.add_argument(
        "--model",
        action="append",
        help="without a stack: a config.json, a .gguf file, or the name of a known model, several to pack them onto "
        "MIG slices; with a stack: a model of it",
    )
    parser.add_argument("--gpu", help="the GPU, for example H100-80GB; without it the CPU backend, or a search of all")
    parser.add_argument("--gpus-per-node", type=int, help="with --model and --gpu: GPUs of a node (default 8)")
    parser.add_argument("--json", action="store_true", help="print JSON, with every legal sharding or choice")
    plan_search.add_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan. 0: planned, 1: refused, 2: the command line is at fault."""
    try:
        models: list[str] = args.model or []
        if args.stack is None and not models:
            raise UsageError([_usage("stack", "give either a stack or --model", "fleet plan local")])
        questions = _questions(args, models)
        if questions:
            warn_of_age({cloud: instances(cloud) for cloud in questions[0].target.clouds or CLOUDS})
        if len(questions) > 1:
            return plan_packing.run(args, questions)
        if questions:
            return plan_search.run(args, questions[0])
        if args.stack is not None:
            _stack_only_flags(args)
            fleet = plan_file(stack_path(args.stack))
            reports = [Report(config=m.config, facts=m.facts, plan=m) for m in fleet.models]
        else:
            fleet = None
            reports = [_report_of_model(args)]
    except PlanError as error:
        print_problems(error.problems, as_json=args.json)
        return USAGE if isinstance(error, UsageError) else REFUSED
    if fleet and fleet.infrastructure:
        warn_of_age({fleet.infrastructure.name: types_of(fleet.infrastructure)})
    if args.json:
        document: dict[str, Any] = {"estimates": ESTIMATES, "models": [report_document(report) for report in reports]}
        if fleet and fleet.infrastructure:
            document["infrastructure"] = asdict(fleet.infrastructure)
        print(json.dumps(document, indent=2, default=_plain))
    else:
        console = Console(highlight=False)
        for report in reports:
            print_report(report, console)
        if fleet and fleet.infrastructure:
            print_infrastructure(fleet, fleet.infrastructure, console)
    return OK if all(report.plan for report in reports) else REFUSED


def _questions(args: argparse.Namespace, models: list[str]) -> list[plan_search.Question]:
    """What to search for; none where the command line asks what one plan is."""
    if args.gpus_per_node is not None and plan_search.wanted(args):
        what = "beside a target, for which every number of them is tried"
        raise UsageError([_usage("--gpus-per-node", what, "remove it")])
    try:
        if args.stack is not None:
            if not models and not plan_search.wanted(args):
                return []
            return plan_search.questions_of_stack(args, stack_path(args.stack), models)
        entries = [{"name": "model", **_source_of(name)} for name in models]
        described = args.gpu or args.gpus_per_node or all(map(plan_search.runs_on_cpu, entries))
        if len(models) == 1 and not plan_search.wanted(args) and described:
            return []
        return [plan_search.question_of_model(args, entry) for entry in entries]
    except UsageError:
        raise
    except PlanError as error:
        kind = UsageError if all(problem.key.startswith("--") for problem in error.problems) else PlanError
        raise kind([_as_flag(problem) for problem in error.problems]) from None


def stack_path(name: str) -> Path:
    """The file of a stack given by name or by path. Raises PlanError with a suggestion when there is none."""
    given = Path(name)
    if given.suffix in (".yaml", ".yml") or len(given.parts) > 1:
        return given
    named = Path("stacks") / f"Pulumi.{name}.yaml"
    try:
        if named.is_file():
            return named
    except (OSError, ValueError):
        pass
    known = [
        path.name.removeprefix("Pulumi.").removesuffix(".yaml") for path in sorted(Path("stacks").glob("Pulumi.*.yaml"))
    ]
    fix = did_you_mean(name, known, f"stacks here: {', '.join(known) or 'none'}")
    raise UsageError([_usage("stack", f"no stack named {shown(name)}", fix)])


class UsageError(PlanError):
    """The command line is at fault, not the configuration."""


def _stack_only_flags(args: argparse.Namespace) -> None:
    for flag, value in (("--gpu", args.gpu), ("--gpus-per-node", args.gpus_per_node)):
        if value is not None:
            raise UsageError([_usage(flag, "a stack names its own GPUs", "remove it, or give --model instead")])


def _report_of_model(args: argparse.Namespace) -> Report:
    entry: dict[str, Any] = {"name": "model", **_source_of(args.model[0]), "backend": "cpu"}
    if args.gpu is not None:
        entry |= {"backend": "pytorch", "gpu": args.gpu}
    if args.gpus_per_node is not None:
        entry["gpus_per_node"] = args.gpus_per_node
    parsed = parse_stack({"cloud": "existing", "models": [entry]})
    if parsed.problems:
        raise UsageError(map(_as_flag, parsed.problems))
    model = parsed.models[0]
    try:
        facts = sources.facts_of(model, Path(), "models[0]")
        if "tensorrt" in facts.family.backends and args.gpu is not None:
            model = model.model_copy(update={"backend": "tensorrt"})
        model = resolve(model, facts, Path())
        chosen = sharding.smallest_that_fits(model, facts)
        pinned = "://" not in model.source
        if chosen is None:
            return Report(config=model, facts=facts, plan=None, pinned=pinned)
        degrees = {"tensor_parallel": chosen.tensor_parallel, "pipeline_parallel": chosen.pipeline_parallel}
        plan = plan_model(model.model_copy(update=degrees), base_dir=Path(), key="models[0]")
    except PlanError as error:
        raise PlanError(map(_as_flag, error.problems)) from None
    return Report(config=plan.config, facts=facts, plan=plan, pinned=pinned)


def _source_of(name: str) -> dict[str, str]:
    if Path(name).suffix in (".json", ".gguf") or ("/" in name and "://" not in name):
        return {"source": name}
    known = sources.known_by_source()
    for source, stem in known.items():
        if name in (source, stem):
            return {"source": source, "revision": "unpinned"}
    names = sorted(set(known.values()))
    fix = did_you_mean(name, [*names, *known], f"give a config.json, a .gguf file, or one of {', '.join(names)}")
    raise UsageError([_usage("--model", f"no known model {shown(name)}", fix)])


def _as_flag(problem: Problem) -> Problem:
    field, _, rest = problem.key.removeprefix("models[0].").partition(".")
    flags = {"source": "--model", "gpu": "--gpu", "gpus_per_node": "--gpus-per-node", "backend": "--gpu"}
    fix = "give --gpu" if field == "backend" else problem.fix
    key = flags.get(field, problem.key) + (f": {rest}" if rest else "")
    return Problem(key=key, what=problem.what, consequence=problem.consequence, fix=fix)


def _usage(key: str, what: str, fix: str) -> Problem:
    return Problem(key=key, what=what, consequence="nothing was planned", fix=fix)


def print_problems(problems: tuple[Problem, ...], *, as_json: bool, undone: str = "nothing was planned") -> None:
    """All of them: as JSON on standard output, or for people on standard error."""
    if as_json:
        print(json.dumps({"problems": [asdict(problem) for problem in problems]}, indent=2))
        return
    count = len(problems)
    print(f"{count} problem{'s' if count > 1 else ''}; {undone}\n", file=sys.stderr)
    print("\n".join(str(problem) for problem in problems), file=sys.stderr)


def refuse_without_packages(missing: ModuleNotFoundError, consequence: str) -> int:
    """Say that the program's own packages are not installed; the exit status."""
    fix = f"{sys.executable} -m pip install -r requirements.txt"
    print(f"error: {missing}\n  consequence: {consequence}\n  fix: {fix}", file=sys.stderr)
    return REFUSED


def _plain(value: Any) -> Any:
    """What JSON has no word for: a set, or a section of the stack file."""
    return sorted(cast(frozenset[str], value)) if isinstance(value, frozenset) else value.model_dump()
