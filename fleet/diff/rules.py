"""Which changed properties make a provider replace a resource, from replacements.csv beside this file."""

import csv
import functools
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

_DATA = Path(__file__).with_name("replacements.csv")
_CONDITIONS = "<^-"

Steps = tuple[str, ...]
"""Where a property lies: the names on the way to it, without positions in lists."""


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """A property, and on which of its changes it counts: "" any, "<" smaller, "^" a range outside, "-" removed."""

    steps: Steps
    condition: str

    def fires(self, steps: Steps, before: Any, after: Any) -> bool:
        shorter = min(len(steps), len(self.steps))
        if steps[:shorter] != self.steps[:shorter]:
            return False
        if len(steps) < len(self.steps):
            # An object above it came or went; what it held of the property decides.
            before, after = (_within(value, self.steps[shorter:]) for value in (before, after))
            if before == after:
                return False
        if self.condition == "<":
            return _number(after) < _number(before)
        if self.condition == "^":
            return not _holds(after, before)
        return after is None if self.condition == "-" else True


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Of one type; `with_region`: its resources lie in the provider's region, and another one means other resources."""

    replaced_by: tuple[Trigger, ...] = ()
    refused: tuple[Trigger, ...] = ()
    with_region: bool = False


def rule_of(type_: str) -> Rule | None:
    """The rule of a resource type; None where there is none, so that nobody knows what replaces it."""
    rules = _rules()
    if not type_.startswith("kubernetes:") or type_.startswith("kubernetes:helm.sh"):
        return rules.get(type_)
    every, own = rules["kubernetes:*"], rules.get(type_, Rule())
    return Rule(replaced_by=every.replaced_by + own.replaced_by, refused=own.refused)


def steps_of(path: str) -> Steps:
    """The steps of a property path as Pulumi writes it: of `a.b[0]["c.d"]` a, b and c.d."""
    found = re.findall(r'\["((?:[^"\\]|\\.)*)"\]|\[(?:\d+|\*|[^"\]]+)\]|([^.\[\]]+)', path)
    return tuple(quoted.replace('\\"', '"') or name for quoted, name in found if quoted or name)


def below(steps: Steps, above: Iterable[Steps]) -> bool:
    """Whether the property is one of those above, or part of one."""
    return any(
        len(steps) >= len(upper) and all(one in (other, "*") for one, other in zip(upper, steps, strict=False))
        for upper in above
    )


@functools.cache
def _rules() -> Mapping[str, Rule]:
    with _DATA.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {row["type"]: _rule(row) for row in rows}


def _rule(row: Mapping[str, str]) -> Rule:
    words = row["replaced_by"].split()
    return Rule(
        replaced_by=tuple(_triggers(word for word in words if word != "@region")),
        refused=tuple(_triggers(row["refused"].split())),
        with_region="@region" in words,
    )


def _triggers(words: Iterable[str]) -> Iterator[Trigger]:
    for word in words:
        condition = word[-1] if word[-1] in _CONDITIONS else ""
        yield Trigger(steps=tuple(word.removesuffix(condition).split(".")), condition=condition)


def _within(value: Any, steps: Steps) -> Any:
    for step in steps:
        value = cast(dict[str, Any], value).get(step) if isinstance(value, dict) else None
    return value


_UNITS = {
    "": 1,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
}


def _number(value: Any) -> float:
    """A number, with Kubernetes' units too; 0 for what is none."""
    found = re.fullmatch(r"([\d.]+)([KMGT]i|[kMGT]|)", str(value))
    try:
        return float(found[1]) * _UNITS[found[2]] if found else 0.0
    except ValueError:
        return 0.0


def _holds(after: Any, before: Any) -> bool:
    try:
        new, old = ipaddress.ip_network(str(after)), ipaddress.ip_network(str(before))
        return old.subnet_of(cast(Any, new))
    except (ValueError, TypeError):
        return False
