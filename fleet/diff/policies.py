"""Rules of the policy pack that a change breaks."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from fleet.diff.compare import SECRET, UNKNOWN, Resource
from fleet.policy import CONFIG, read_config
from policy import stack
from policy.rules import Breach, judge


def newly_broken(before: Iterable[Resource], after: Iterable[Resource], config: Path = CONFIG) -> list[Breach]:
    """What the stack breaks after the change and did not before, by the rules and configuration that are here."""
    settings = read_config(config)
    known = {(one.rule, one.urn, one.problem.key) for one in judge(_as_rules_see(before), settings)}
    broken = judge(_as_rules_see(after), settings)
    return [one for one in broken if (one.rule, one.urn, one.problem.key) not in known]


def _as_rules_see(resources: Iterable[Resource]) -> list[stack.Resource]:
    return [
        stack.Resource(
            urn=one["urn"],
            type=one["type"],
            inputs=_value(one["inputs"]),
            protect=one["protect"],
            dependencies=frozenset(one["dependencies"]),
        )
        for one in resources
    ]


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        fields = cast(dict[str, Any], value)
        # Something is there, and nobody may say what.
        hidden = UNKNOWN in fields or SECRET in fields
        return stack.UNKNOWN if hidden else {key: _value(item) for key, item in fields.items()}
    return [_value(item) for item in cast(list[Any], value)] if isinstance(value, list) else value
