"""`fleet plan` with a target: every way to serve a model on three clouds, ranked by what a million tokens cost."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fleet import aiconfigurator, pareto
from fleet.measured import ROUNDS, keys_of, measure
from fleet.pinning import Pinned, first_that_plans
from fleet.plan_choices import document, print_ranked
from fleet.stack_edit import write_atomically
from planner import sources
from planner.cloud_choice import EXISTING
from planner.cloud_config import StorageConfig
from planner.config import ModelConfig
from planner.errors import PlanError, Problem, did_you_mean, shown
from planner.explain import basis, why
from planner.model import ModelFacts
from planner.parsing import ParsedStack, parse_stack
from planner.plan import resolve, suitability_problems
from planner.relaxing import Nearest, nearest
from planner.search import Measured, Result, search
from planner.stack_file import read_stack_file
from planner.target import FLAGS, Target, target_of
from runtime.errors import Refusal

OK, REFUSED = 0, 1

_HELP = {
    "prompt_tokens": ("N", "tokens of a prompt (default: 1024)"),
    "output_tokens": ("N", "tokens of an answer (default: 256)"),
    "context": ("N", "tokens that one request may have at most (default: the stack's, else 4096)"),
    "tokens_per_second": ("X", "output tokens per second, of all requests together"),
    "requests_per_second": ("X", "instead: requests per second"),
    "ttft": ("MS", "time to first token at p95, in milliseconds (default: 2000; none: no limit)"),
    "itl": ("MS", "inter-token latency in milliseconds (default: 100; none: no limit)"),
    "cloud": ("NAMES", "clouds allowed, parted by commas (default: all)"),
    "region": ("NAMES", "regions allowed, parted by commas (default: all)"),
    "quantization": ("NAMES", "weight formats to try, parted by commas (default: none,fp8)"),
    "spot_tolerance": ("SHARE", "most of the time that interruptions may cost (default: 0.01; 0: no spot)"),
    "budget": ("USD", "most USD per month"),
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A model and a target; `path` and `index` are of the stack that it stands in, if it does."""

    model: ModelConfig
    facts: ModelFacts
    target: Target
    storage: StorageConfig | None = None
    path: Path | None = None
    index: int = 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The target's flags, and what to do with the choice."""
    group = parser.add_argument_group("a target: rank every way to serve the model by cost")
    for name, (metavar, text) in _HELP.items():
        group.add_argument(FLAGS[name], metavar=metavar, help=text)
    group.add_argument("--rows", type=int, default=10, metavar="N", help="choices that are listed (default: 10)")
    group.add_argument("--png", type=Path, metavar="FILE", help="draw the Pareto front into a PNG file")
    group.add_argument("--write", action="store_true", help="write the choice into the stack file")
    group.add_argument("--roofline", action="store_true", help="estimate by data sheets alone, without aiconfigurator")


def given(args: argparse.Namespace) -> dict[str, str]:
    """The words of the target that stand on the command line."""
    values = {name: getattr(args, name) for name in _HELP}
    return {name: value for name, value in values.items() if value is not None}


def wanted(args: argparse.Namespace) -> bool:
    """Whether the command line asks for a choice and not for what one is."""
    return bool(given(args) or args.png or args.write or args.roofline)


def runs_on_cpu(entry: Mapping[str, Any]) -> bool:
    """Whether the embedded CPU backend computes the model: then a laptop is an answer too. Raises PlanError."""
    model = _parsed({**entry, "backend": "cpu"})
    facts = sources.facts_of(model, Path(), "models[0]")
    return not suitability_problems(resolve(model, facts, Path()), facts, "models[0]")


def question_of_model(args: argparse.Namespace, entry: Mapping[str, Any]) -> Question:
    """A model of the command line; `entry` is its name and source. Raises PlanError."""
    if args.write:
        what = "there is no stack to write into"
        raise PlanError([_problem("--write", what, "give a stack: `fleet plan STACK --write`")])
    words = given(args) | ({"gpu": args.gpu} if args.gpu else {})
    target = target_of(words)
    # Any GPU does: the search tries every one.
    probe = {**entry, "backend": "pytorch", "gpu": "H100-80GB"}
    model = _parsed(probe)
    facts = sources.facts_of(model, Path(), "models[0]")
    backend = "tensorrt" if "tensorrt" in facts.family.backends and not facts.checkpoint_quantization else "pytorch"
    model = _parsed(probe | {"backend": backend})
    if "context" not in words and target.context_tokens > facts.max_position_embeddings:
        target = replace(target, context_tokens=facts.max_position_embeddings)
    return Question(model=model, facts=facts, target=_within_positions(target, facts))


def questions_of_stack(args: argparse.Namespace, path: Path, names: Sequence[str]) -> list[Question]:
    """Models of a stack, or all of them, on the stack's cloud, region and zones. Raises PlanError."""
    for flag in ("cloud", "region"):
        if getattr(args, flag) is not None:
            raise PlanError([_problem(FLAGS[flag], "a stack says where it runs", "remove it, or give --model alone")])
    parsed = parse_stack(read_stack_file(path))
    if parsed.problems or parsed.site is None:
        raise PlanError(parsed.problems)
    chosen = [_index(parsed, name) for name in names] or list(parsed.models)
    if parsed.site.cloud == EXISTING:
        what = "a cluster that is there has no instance types to choose from, and no prices"
        raise PlanError([_problem("cloud", what, "plan it without a target, or give --model and a target")])
    if args.write and len(chosen) > 1:
        what = f"the stack has {len(chosen)} models, and one is written at a time"
        raise PlanError([_problem("--write", what, f"give --model {parsed.models[chosen[0]].name}")])
    return [_question_of(args, parsed, path, index) for index in chosen]


def _question_of(args: argparse.Namespace, parsed: ParsedStack, path: Path, index: int) -> Question:
    model, site = parsed.models[index], parsed.site
    assert site is not None
    facts = sources.facts_of(model, path.parent, f"models[{index}]")
    target = target_of(given(args) | ({"gpu": args.gpu} if args.gpu else {}), context_tokens=model.max_seq_len)
    target = replace(
        target,
        clouds=(site.cloud,),
        regions=(site.region,) if site.region else (),
        zones=site.network.zones if site.network else (),
    )
    if "quantization" not in given(args):
        # What is served today stays a choice.
        target = replace(target, formats=tuple(dict.fromkeys((*target.formats, model.quantization.weights))))
    return Question(
        model=resolve(model, facts, path.parent),
        facts=facts,
        target=_within_positions(target, facts),
        storage=site.storage,
        path=path,
        index=index,
    )


def run(args: argparse.Namespace, question: Question) -> int:
    """Print the ranked choices, or the first limit that nothing is within; write what is asked for."""
    result = search(question.model, question.facts, question.target, storage=question.storage)
    if result.infeasible is None and not args.roofline and aiconfigurator.installed():
        result = _measured(question, result)
    if result.infeasible:
        near = nearest(question.model, question.facts, result, storage=question.storage)
        return refuse(args, result, near)
    pin, skipped = None, tuple[str, ...]()
    if question.path:
        with question.path.open(encoding="utf-8", newline="") as file:
            text = file.read()
        folder, index = question.path.parent, question.index
        best, pin, skipped = first_that_plans(text, folder, index, question.model, result.ranked)
        result = replace(result, ranked=(best, *(each for each in result.ranked if each is not best)))
    if args.png:
        pareto.write_png(result, args.png, question.model.name if question.path else question.model.source)
    if args.write and pin and question.path:
        write_atomically(question.path, pin.text)
    if args.json:
        print(json.dumps(_document(question, result, pin, skipped), indent=2))
    else:
        console = Console(highlight=False)
        print_ranked(question.model.name, question.model.source, result, args.rows, console)
        _print_pinned(args, question, pin, skipped, console)
    return OK


def _measured(question: Question, result: Result) -> Result:
    """The result with estimates from measured kernels for what comes first."""
    known: Measured | None = None
    for shapes in ROUNDS:
        try:
            known = measure(result, question.facts, known, shapes)
        except Refusal as refusal:
            print(f"warning: {refusal}", file=sys.stderr)
            return result
        found = search(question.model, question.facts, question.target, storage=question.storage, measured=known)
        if found.infeasible:
            # What the roofline took for quick enough, measurements say is not.
            return found
        result = found
        if next(iter(keys_of(result))) in known.points:
            break
    return result


def refuse(args: argparse.Namespace, result: Result, near: Nearest | None) -> int:
    """Say the first limit that nothing is within, and what comes nearest."""
    assert result.infeasible
    limit = result.infeasible.limit
    fix = "no relaxation that was tried makes it feasible: choose a smaller model, or quantised weights"
    if near:
        each, estimate = near.candidate, near.candidate.estimate
        fix = (
            f"nearest feasible: {', '.join(near.relaxed)}: {each}, about {each.cost.total:,.0f} USD per month, first "
            f"token {1000 * estimate.time_to_first_token_s:,.0f} ms, then {1000 * estimate.inter_token_latency_s:,.1f} "
            f"ms each (estimates: {estimate.source})"
        )
    key = _KEYS.get(limit, "--context")
    problem = Problem(key=key, what=result.infeasible.what, consequence="no choice meets the target", fix=fix)
    if args.json:
        found = {"relaxed": near.relaxed, "choice": document(near.candidate)} if near else None
        print(json.dumps({"problems": [asdict(problem)], "limit": limit, "nearest": found}, indent=2))
    else:
        print(f"nothing meets the target\n\n{problem}", file=sys.stderr)
    return REFUSED


_KEYS = FLAGS | {"offer": "--cloud", "price": "--spot-tolerance", "replicas": "--tokens-per-second", "format": "--gpu"}
"""The flag that asks for a limit; those of memory and sharding share one."""


def _document(question: Question, result: Result, pin: Pinned | None, skipped: tuple[str, ...]) -> dict[str, Any]:
    return {
        "model": question.model.name if question.path else question.model.source,
        "target": asdict(question.target),
        "ranked": [document(each) for each in result.ranked],
        "front": [document(each) for each in result.front],
        "why": why(result.ranked),
        "basis": basis(result),
        "refused": dict(result.refused),
        "unpriced": result.unpriced,
        "settings": pin.settings if pin else None,
        "not_deployable_as_the_stack_is": skipped,
    }


def _print_pinned(
    args: argparse.Namespace, question: Question, pin: Pinned | None, skipped: tuple[str, ...], console: Console
) -> None:
    if pin is None:
        return
    for line in skipped[:3]:
        console.print(f"cheaper, but not with the rest of this stack: {line}", markup=False, soft_wrap=True)
    if not pin.settings:
        console.print("the stack's settings are this choice already")
        return
    done = f"written to {question.path}" if args.write else "--write puts into the stack file"
    console.print(f"{done}:", markup=False, soft_wrap=True)
    for key, value in pin.settings.items():
        text = "removed" if value is None else json.dumps(value)
        console.print(f"  {key}: {text}", markup=False, soft_wrap=True)


def _index(parsed: ParsedStack, name: str) -> int:
    names = {model.name: index for index, model in parsed.models.items()}
    if name not in names:
        what = f"the stack has no model named {shown(name)}"
        raise PlanError([_problem("--model", what, did_you_mean(name, names, f"give one of {', '.join(names)}"))])
    return names[name]


def _within_positions(target: Target, facts: ModelFacts) -> Target:
    most = facts.max_position_embeddings
    if target.context_tokens > most:
        what = f"a context of {target.context_tokens:,} tokens, and the model has {most:,} positions"
        raise PlanError([_problem("--context", what, f"give at most {most}")])
    if target.prompt_tokens + target.output_tokens > target.context_tokens:
        what = f"prompt and answer are longer than the {target.context_tokens:,} tokens that one request may have"
        raise PlanError([_problem("--prompt-tokens", what, "give shorter lengths")])
    return target


def _parsed(entry: Mapping[str, Any]) -> ModelConfig:
    parsed = parse_stack({"cloud": "existing", "models": [dict(entry)]})
    if parsed.problems:
        raise PlanError(parsed.problems)
    return parsed.models[0]


def _problem(key: str, what: str, fix: str) -> Problem:
    return Problem(key=key, what=what, consequence="nothing was planned", fix=fix)
