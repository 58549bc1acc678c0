"""The API keys of a stack: names with secret keys, and names with limits."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from planner.config_problems import Finding
from planner.errors import Problem, did_you_mean, shown
from planner.pulumi_config import SECRET
from planner.untyped import as_mapping

NAME = "api_keys"
GENERATED = "default"
"""The name of the key that is made for a stack that gives none."""

LEAST_CHARACTERS = 32
"""Of a key. Only its SHA-256 is stored, without salt: what is short could be found by trying."""

_KEY_NAME = re.compile(r"[a-z0-9]([-._a-z0-9]{0,61}[a-z0-9])?")
_KEY = re.compile(r"[!-~]+")
_SET = "run `pulumi config set --secret --path tritonfleet:api_keys.NAME` and paste the key"


def read_keys(text: str) -> dict[str, str]:
    """Key by name, from the value that Pulumi has decrypted; none where nobody has the key to decrypt it."""
    return {} if text == SECRET else json.loads(text)


def key_problems(values: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the keys, of which none is ever shown, and with what the limits name."""
    found = [*_of_keys(values[NAME])] if NAME in values else []
    found += _of_limits(values)
    return [Problem(key=key, what=what, consequence=cost, fix=fix) for key, what, cost, fix in found]


def _of_keys(given: object) -> Iterator[Finding]:
    if given == SECRET or _encrypted(given):
        return
    keys = as_mapping(given)
    if not keys or not isinstance(given, dict):
        yield NAME, "no mapping of names to keys", "nobody could call the models", _SET
    for name, key in keys.items():
        where = f"{NAME}.{shown(name)[1:-1] if isinstance(name, str) else name}"
        if not isinstance(name, str) or not _KEY_NAME.fullmatch(name):
            cost = "metrics and limits are by this name"
            yield where, "no name for a key", cost, "use small letters, digits and .-_, at most 63"
        elif _encrypted(key) or key == SECRET:
            continue
        elif not isinstance(key, str) or len(key) < LEAST_CHARACTERS or not _KEY.fullmatch(key):
            what = f"no key of at least {LEAST_CHARACTERS} characters without spaces"
            yield where, what, "it could be guessed, or not be sent", "take what `python -m frontend.keys NAME` prints"
    known = [key for key in keys.values() if isinstance(key, str) and key != SECRET]
    if len(set(known)) < len(known):
        yield NAME, "two names have the same key", "their requests could not be told apart", "give each its own"


def _of_limits(values: Mapping[str, Any]) -> Iterator[Finding]:
    given = values.get(NAME)
    if given == SECRET or _encrypted(given):
        return  # the names are encrypted too
    # The key that a stack without any gets.
    names = [str(name) for name in as_mapping(given)] if NAME in values else [GENERATED]
    for name in as_mapping(values.get("key_limits")):
        if isinstance(name, str) and name not in names:
            fix = did_you_mean(name, names, f"give one of {', '.join(names)}")
            yield f"key_limits.{shown(name)[1:-1]}", "no key of the stack has this name", "nobody would be limited", fix


def _encrypted(value: object) -> bool:
    return set(as_mapping(value)) == {"secure"}
