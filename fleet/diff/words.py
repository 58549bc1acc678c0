"""How values, counts and money are written, in every form of the report."""

import difflib
import json
from typing import Any

from fleet.diff.compare import LATER, MASK, FieldChange, ResourceChange
from fleet.diff.report import CostChange, EngineChange, StackDiff

LONGEST = 60
ACTIONS = ("added", "changed", "replaced", "deleted")
SIGNS = {"added": "+", "changed": "~", "replaced": "±", "deleted": "-"}


def summary(diff: StackDiff) -> str:
    """`2 added, 1 replaced`, or that nothing changes."""
    counts = [f"{diff.count(action)} {action}" for action in ACTIONS if diff.count(action)]
    return ", ".join(counts) or "no resource changes"


def guards(change: ResourceChange) -> str:
    """What holds of the change besides its kind, "" where nothing does."""
    words = {"protected": change.protected, "kept in the cloud": change.retained, "deleted first": change.deleted_first}
    found = ", ".join(word for word, holds in words.items() if holds)
    return f" ({found})" if found else ""


def field_text(field: FieldChange) -> str:
    """`path: old -> new`; of a long text the lines that differ."""
    marks = "".join([" (replaces)" if field.replaces else "", " (refused)" if field.refused else ""])
    texts = (field.before, field.after)
    if all(isinstance(text, str) and "\n" in text for text in texts):
        return f"{field.path}: {_lines(*texts)}{marks}"
    if all(isinstance(value, list) for value in texts):
        return f"{field.path}: {_items(*texts)}{marks}"
    if field.before == field.after == MASK:
        return f"{field.path}: another {MASK}{marks}"
    if field.before == field.after:
        return f"{field.path}: {LATER}, and another than before{marks}"
    return f"{field.path}: {short(field.before)} -> {short(field.after)}{marks}"


def short(value: Any) -> str:
    """A value on one line."""
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    line = " ".join(text.split())
    return f"{line[: LONGEST - 1]}…" if len(line) > LONGEST else line or '""'


def engine_text(engine: EngineChange) -> str:
    """What becomes of a model's engine."""
    if engine.after is None:
        return f"{engine.model}: engine {engine.before} is no longer used"
    built = f"{engine.model}: engine {engine.after} is built, unless it is in the store"
    return f"{built}, and takes the place of {engine.before}" if engine.before else built


def money_text(cost: CostChange | None) -> str:
    """Both costs and their difference, an estimate; "" where nothing is known of either."""
    if cost is None:
        return ""
    if cost.before is not None and cost.after is not None:
        return f"{usd(cost.before)} -> {usd(cost.after)} a month ({cost.after - cost.before:+,.0f} USD; estimate)"
    return f"{usd(cost.before)} -> {usd(cost.after)} a month (estimate)"


def usd(amount: float | None, *, digits: int = 0) -> str:
    """The amount with its unit; no price is known where it is None."""
    return "no price" if amount is None else f"{amount:,.{digits}f} USD"


def _items(before: list[Any], after: list[Any]) -> str:
    """What a list of another length lost and gained."""
    gone = [f"- {short(item)}" for item in before if item not in after]
    come = [f"+ {short(item)}" for item in after if item not in before]
    return "; ".join((gone + come)[:4]) or "in another order, or as often"


def _lines(before: str, after: str) -> str:
    found = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[:1] in "+-"]
    removed, added = (sum(line.startswith(sign) for line in found) for sign in "-+")
    first = f", first {short(found[0])}" if found else ""
    return f"{added} line{'' if added == 1 else 's'} added, {removed} removed{first}"
