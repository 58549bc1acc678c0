"""The report for a terminal."""

from rich.console import Console
from rich.text import Text

from fleet.diff.report import StackDiff
from fleet.diff.words import SIGNS, engine_text, field_text, guards, money_text, summary, usd

_STYLES = {"added": "green", "changed": "yellow", "replaced": "bold magenta", "deleted": "bold red"}
_RISKS = {
    "data loss": "bold red",
    "refused": "bold red",
    "downtime": "bold yellow",
    "exposure": "bold red",
    "policy": "bold red",
    "unguarded": "bold yellow",
}


def print_text(diffs: list[StackDiff], title: str, console: Console) -> None:
    """Every stack: risks first, then engines, cost, resources with their fields."""
    _say(console, title)
    for diff in diffs:
        _print_stack(diff, console)
    same = [diff.stack for diff in diffs if diff.silent]
    if same:
        _say(console, f"\nnothing changes in {', '.join(same)}")


def _print_stack(diff: StackDiff, console: Console) -> None:
    if diff.silent:
        return
    what = {"new": "new stack, ", "gone": "stack removed, ", "failed": "cannot be compared"}.get(diff.status, "")
    _say(console, f"\n{diff.stack}: {what}{'' if diff.status == 'failed' else summary(diff)}", "bold")
    for side, problems in diff.problems.items():
        for problem in problems:
            _say(console, f"  at {side}: {problem}", "red")
    for risk in diff.risks:
        _say(console, f"  {risk.kind}: {risk.resource}: {risk.what}", _RISKS.get(risk.kind, "yellow"))
    for engine in diff.engines:
        _say(console, f"  {engine_text(engine)}")
    if diff.cost and diff.cost_moves:
        _say(console, f"  GPU nodes: {money_text(diff.cost)}")
        for group, before, after in diff.cost.lines:
            _say(console, f"    {group}: {usd(before, digits=2)} -> {usd(after, digits=2)} an hour")
    for note in diff.notes:
        _say(console, f"  note: {note}")
    for change in diff.changes:
        line = f"  {SIGNS[change.action]} {change.type} {change.name}: {change.action}{guards(change)}"
        _say(console, line, _STYLES[change.action])
        for field in change.fields:
            _say(console, f"      {field_text(field)}")


def _say(console: Console, text: str, style: str = "") -> None:
    # Text: a value of a stack is no markup.
    console.print(Text(text, style=style), soft_wrap=True)
