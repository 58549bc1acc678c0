"""`fleet diff`: what a change means for every stack, from two git revisions, without credentials or Pulumi's CLI."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fleet.diff.markdown import markdown
from fleet.diff.report import StackDiff, stack_diff
from fleet.diff.revisions import (
    RevisionError,
    changed_files,
    commit_of,
    rendered_both,
    repository,
    stacks_in,
    touched,
    tree_of,
)
from fleet.diff.text import print_text
from fleet.diff.words import ACTIONS
from fleet.plan import OK, REFUSED, USAGE, print_problems
from planner.errors import PlanError, Problem, did_you_mean, shown

CHANGES, RISKS = 3, 4
"""Exit statuses with --exit-code."""


def add_parser(subparsers: Any) -> None:
    """Add `diff` to the command line; `subparsers` is argparse's special action, which has no public type."""
    parser = subparsers.add_parser(
        "diff",
        help="say what would be added, changed, replaced and deleted since a git revision",
        description=(
            "Exit status: 0 compared; 1 a stack or revision cannot be rendered; 2 wrong usage, or no such revision. "
            f"With --exit-code besides: {CHANGES} something changes, {RISKS} and something of it is a risk."
        ),
    )
    parser.add_argument("base", metavar="BASE", help="the git revision to compare with (main, HEAD~1, a hash)")
    parser.add_argument("--head", metavar="REVISION", help="the revision to compare; without it the files as they are")
    parser.add_argument("--stack", action="append", metavar="NAME", help="only this stack; may be given again")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print a comment for a pull request on GitHub")
    parser.add_argument("--exit-code", action="store_true", help="let the exit status say whether anything changes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the difference; the exit statuses are in the parser's description."""
    try:
        top = repository(Path())
        base = commit_of(top, args.base)
        head = commit_of(top, args.head) if args.head else None
        uncommitted = [] if head else changed_files(top)
        with contextlib.ExitStack() as trees:
            before = trees.enter_context(tree_of(top, base))
            after = trees.enter_context(tree_of(top, head)) if head else top
            names = _chosen(args.stack, sorted({*stacks_in(before), *stacks_in(after)}))
            differing = touched(top, base, head, uncommitted)
            # What has the same file under the same program is not rendered.
            rendered = [name for name in names if differing is None or name in differing]
            olds, news = rendered_both(before, after, rendered)
    except PlanError as error:
        if args.json:
            print_problems(error.problems, as_json=True)
        else:
            print(f"error: {error}", file=sys.stderr)
        return USAGE if isinstance(error, RevisionError) else REFUSED
    diffs = [
        stack_diff(name, olds.get(name), news.get(name)) if name in rendered else StackDiff(stack=name, status="same")
        for name in names
    ]
    title = f"{_named(args.base, base)} to {_head(args.head, head, uncommitted)}"
    if args.json:
        sides = {"base": {"revision": args.base, "commit": base}}
        sides["head"] = {"revision": args.head, "commit": head, "uncommitted": uncommitted}
        print(json.dumps({**sides, "stacks": [_document(diff) for diff in diffs]}, indent=2))
    elif args.markdown:
        print(markdown(diffs, title), end="")
    else:
        from rich.console import Console

        print_text(diffs, title, Console(highlight=False))
    return _status(diffs, exit_code=args.exit_code)


def _status(diffs: Sequence[StackDiff], *, exit_code: bool) -> int:
    if any(diff.status == "failed" for diff in diffs):
        return REFUSED
    if not exit_code or all(diff.silent for diff in diffs):
        return OK
    return RISKS if any(diff.risks for diff in diffs) else CHANGES


def _chosen(given: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    problems = [
        Problem(
            key="--stack",
            what=f"no stack named {shown(name)} in either revision",
            consequence="there is nothing to compare",
            fix=did_you_mean(name, known, f"stacks there: {', '.join(known) or 'none'}"),
        )
        for name in given or ()
        if name not in known
    ]
    if problems:
        raise RevisionError(problems)
    return list(dict.fromkeys(given)) if given else list(known)


def _named(revision: str, commit: str) -> str:
    return commit[:12] if commit.startswith(revision) else f"{revision} ({commit[:12]})"


def _head(revision: str | None, commit: str | None, uncommitted: Sequence[str]) -> str:
    if revision and commit:
        return _named(revision, commit)
    count = len(uncommitted)
    return "the files here" + (f", {count} of them not committed" if count else "")


def _document(diff: StackDiff) -> dict[str, Any]:
    document: dict[str, Any] = {
        "stack": diff.stack,
        "status": diff.status,
        "summary": {action: diff.count(action) for action in ACTIONS},
        "risks": [asdict(risk) for risk in diff.risks],
        "engines": [asdict(engine) for engine in diff.engines],
        "cost": None,
        "notes": list(diff.notes),
        "problems": {side: [asdict(problem) for problem in problems] for side, problems in diff.problems.items()},
        "resources": [dict(_fields_of(asdict(change))) for change in diff.changes],
    }
    if diff.cost:
        lines = [dict(zip(("node_group", "before", "after"), line, strict=True)) for line in diff.cost.lines]
        document["cost"] = {
            "usd_per_month": {"before": diff.cost.before, "after": diff.cost.after},
            "usd_per_hour": lines,
            "note": diff.cost.note,
        }
    return document


def _fields_of(change: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A change without what only risks are judged by."""
    return ((key, value) for key, value in change.items() if key not in ("inputs", "known_rule"))
