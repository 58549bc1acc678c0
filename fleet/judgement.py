"""A stack that the real program registered, judged by the policy pack's rules, without Pulumi's CLI."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from fleet import recorder
from fleet.synthesis import record_program
from planner.stack_file import read_stack_file
from policy import stack
from policy.rules import Breach, judge


def breaches(path: Path, config: Mapping[str, Any]) -> list[Breach]:
    """What a stack file breaks. Raises PlanError where it cannot be planned."""
    recording = record_program(read_stack_file(path), stack=path.stem.removeprefix("Pulumi."))
    return judge(as_rules_see(recording.resources), config)


def as_rules_see(registered: Iterable[recorder.Registered]) -> list[stack.Resource]:
    """Recorded resources as the rules take them."""
    return [
        stack.Resource(
            urn=one.urn,
            type=one.type,
            inputs=_value(recorder.plain(one.inputs)),
            protect=one.protect,
            dependencies=frozenset(one.dependencies),
        )
        for one in registered
    ]


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _value(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_value(item) for item in cast(list[Any], value)]
    return stack.UNKNOWN if value is recorder.UNKNOWN else value
