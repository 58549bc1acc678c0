"""The report as a comment on GitHub, with a picture; never longer than a comment may be."""

import re
from collections.abc import Iterator, Sequence

from fleet.diff.compare import ResourceChange
from fleet.diff.report import StackDiff
from fleet.diff.words import SIGNS, engine_text, field_text, guards, money_text, summary, usd

MARKER = "<!-- fleet diff -->"
"""By which the comment is found again, to be replaced."""

LONGEST_BYTES = 65_000
"""GitHub refuses a comment of more than 65,536 characters; in bytes nothing can be counted otherwise."""

_NODES = 30
_CLASSES = {
    "added": "fill:#dafbe1,stroke:#1a7f37,color:#000",
    "changed": "fill:#fff8c5,stroke:#9a6700,color:#000",
    "replaced": "fill:#fbefff,stroke:#8250df,color:#000",
    "deleted": "fill:#ffebe9,stroke:#cf222e,color:#000",
}
_WORST = ("deleted", "replaced", "added", "changed")


def markdown(diffs: Sequence[StackDiff], title: str) -> str:
    """The whole comment. What does not fit is left out from the end: fields, then resources, then stacks."""
    for fields, resources in ((20, 200), (5, 100), (0, 100), (0, 25), (0, 0)):
        text = "\n".join(_document(diffs, title, fields=fields, resources=resources)) + "\n"
        if len(text.encode()) <= LONGEST_BYTES:
            return text
    end = "\n\n… and more: run `python -m fleet diff` for all of it.\n"
    cut = text.encode()[: LONGEST_BYTES - len(end.encode())].decode(errors="ignore")
    # A line that ends in the middle could leave a tag or a fence open.
    return cut.rpartition("\n## ")[0] + end


def _document(diffs: Sequence[StackDiff], title: str, *, fields: int, resources: int) -> Iterator[str]:
    yield MARKER
    yield f"# fleet diff\n\n{_escaped(title)}\n"
    shown = [diff for diff in diffs if not diff.silent]
    if not shown:
        yield "Nothing that is deployed changes, in any stack."
        return
    yield "| Stack | Resources | Engines to build | GPU nodes a month (estimate) |"
    yield "|---|---|---|---|"
    for diff in shown:
        status = {"new": "new stack: ", "gone": "stack removed: ", "failed": "**cannot be compared**"}.get(
            diff.status, ""
        )
        built = sum(engine.after is not None for engine in diff.engines)
        resources_text = status if diff.status == "failed" else f"{status}{summary(diff)}"
        yield f"| {_code(diff.stack)} | {resources_text} | {built or ''} | {_cost_cell(diff)} |"
    same = [diff.stack for diff in diffs if diff.silent]
    if same:
        yield f"\nNothing changes in {', '.join(map(_code, same))}."
    for diff in shown:
        yield f"\n## {_escaped(diff.stack)}\n"
        yield from _stack(diff, fields=fields, resources=resources)


def _stack(diff: StackDiff, *, fields: int, resources: int) -> Iterator[str]:
    for side, problems in diff.problems.items():
        for problem in problems:
            said = f"{problem.what}. {problem.consequence}. Fix: {problem.fix}"
            yield f"- **at {side}** {_code(problem.key)}: {_escaped(said)}"
    for risk in diff.risks:
        yield f"- **{risk.kind}**: {_code(risk.resource)}: {_escaped(risk.what)}"
    for engine in diff.engines:
        yield f"- {_escaped(engine_text(engine))}"
    for note in diff.notes:
        yield f"- {_escaped(note)}"
    if diff.cost and diff.cost.lines:
        yield f"- GPU nodes: {money_text(diff.cost)}: " + "; ".join(
            f"{_code(group)} {usd(before, digits=2)} → {usd(after, digits=2)} an hour"
            for group, before, after in diff.cost.lines
        )
    if diff.changes and diff.status == "changed":
        yield from _picture(diff.changes)
    listed = diff.changes[:resources]
    if listed:
        yield f"\n<details><summary>{summary(diff)}</summary>\n"
        for change in sorted(listed, key=lambda change: _WORST.index(change.action)):
            yield f"- **{change.action}** {_code(change.type)} {_code(change.name)}{guards(change)}"
            for field in change.fields[:fields]:
                yield f"  - {_code(field_text(field))}"
            if len(change.fields) > fields:
                yield f"  - {len(change.fields) - fields} fields" + (" more" if fields else "")
        if len(diff.changes) > len(listed):
            yield f"- {len(diff.changes) - len(listed)} resources more"
        yield "\n</details>"


def _picture(changes: Sequence[ResourceChange]) -> Iterator[str]:
    """The resources that change, below the component that they are part of."""
    parts = [change for change in changes if not change.type.startswith("tritonfleet:")]
    drawn = sorted(parts, key=lambda change: (_WORST.index(change.action), change.urn))[:_NODES]
    yield "\n```mermaid\nflowchart LR"
    for number, component in enumerate(sorted({_component(change) for change in drawn})):
        yield f'  subgraph c{number}["{_label(component)}"]'
        for change in drawn:
            if _component(change) == component:
                kind = change.type.rpartition(":")[2]
                # The sign behind: a text that begins with one would be a list to Mermaid.
                label = f"{_label(kind)} {SIGNS[change.action]}<br/>{_label(change.name)}"
                yield f'    n{drawn.index(change)}["{label}"]:::{change.action}'
        yield "  end"
    for action, style in _CLASSES.items():
        yield f"  classDef {action} {style}"
    if len(parts) > len(drawn):
        yield f'  more["{len(parts) - len(drawn)} more"]'
    yield "```"


def _component(change: ResourceChange) -> str:
    types = [type_ for type_ in change.urn.split("::")[2].split("$")[:-1] if type_.startswith("tritonfleet:")]
    return types[-1].rpartition(":")[2] if types else "stack"


def _cost_cell(diff: StackDiff) -> str:
    return money_text(diff.cost) if diff.cost_moves else ""


def _code(text: str) -> str:
    """As code, in which nothing is markup: neither a mention, nor a link, nor a table's border."""
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if "`" in text else ""
    return f"{ticks}{space}{' '.join(text.split())}{space}{ticks}".replace("|", "¦")


def _escaped(text: str) -> str:
    """As plain text."""
    plain = re.sub(r"([\\`*_{}\[\]<>#|~!])", r"\\\1", " ".join(text.split()))
    # A word joiner, which nobody sees: nobody is called.
    return plain.replace("@", "@\u2060")


def _label(text: str) -> str:
    """As the text of a node, which has nothing but letters, digits and a few signs."""
    return re.sub(r"[^A-Za-z0-9 ._:/-]", " ", text)[:60]
