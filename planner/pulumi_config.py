"""Between a stack's values and the texts that Pulumi's own configuration holds: what is structured is JSON there."""

import json
from collections.abc import Mapping
from typing import Any

from planner.config import NAMESPACE
from planner.errors import PlanError, Problem, shown
from planner.untyped import as_mapping

SECRET = "[secret]"
"""Stands for a value that is encrypted in the stack file, wherever nobody has the key."""


def values_of(config: Mapping[str, str]) -> dict[str, Any]:
    """The `tritonfleet:` values of Pulumi's configuration (`namespace:key` to text), namespace removed.

    Raises PlanError with every text that begins like JSON and is not.
    """
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, text in config.items():
        namespace, _, name = key.partition(":")
        if namespace != NAMESPACE:
            continue
        try:
            structured = name != "hugging_face_token" and text != SECRET and text.lstrip()[:1] in ("{", "[")
            values[name] = json.loads(text) if structured else text
        except (ValueError, RecursionError) as error:
            problems.append(
                Problem(
                    key=name,
                    what=f"not valid JSON: {shown(str(error))[1:-1]}",
                    consequence="nothing of this stack can be planned",
                    fix=f"write it as YAML in the stack file, or as JSON with `pulumi config set {key}`",
                )
            )
    if problems:
        raise PlanError(problems)
    return values


def config_of(values: Mapping[str, Any]) -> tuple[dict[str, str], frozenset[str]]:
    """What the Pulumi CLI makes of a stack file's values: texts by `namespace:key`, and which keys are secret.

    Encrypted values become SECRET, and so does each of a mapping.
    """
    config: dict[str, str] = {}
    secret: set[str] = set()
    for name, value in values.items():
        key = f"{NAMESPACE}:{name}"
        if set(as_mapping(value)) == {"secure"}:
            config[key] = SECRET
            secret.add(key)
        else:
            plain, found = _without_ciphertext(value)
            config[key] = value if isinstance(value, str) else json.dumps(plain, default=str)
            if found:
                secret.add(key)
    return config, frozenset(secret)


def _without_ciphertext(value: object) -> tuple[object, bool]:
    """The value with SECRET for each encrypted one of a mapping, and whether there are any."""
    if not isinstance(value, dict):
        return value, False
    encrypted = {name for name, item in as_mapping(value).items() if set(as_mapping(item)) == {"secure"}}
    return {name: SECRET if name in encrypted else item for name, item in as_mapping(value).items()}, bool(encrypted)
