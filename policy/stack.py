"""Resources as rules see them, whoever recorded them: Pulumi's engine, or this program without one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, cast


class Unknown(Enum):
    """A value that only the cloud decides. Something will be there: a key's id, an image's registry."""

    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One resource. `inputs` have Pulumi's own (camel case) names; `dependencies` are URNs."""

    urn: str
    type: str
    inputs: Mapping[str, Any]
    protect: bool
    dependencies: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """As the program gave it."""
        return self.urn.rpartition("::")[2]

    @property
    def stack(self) -> str:
        """The stack's name, as it stands in every URN."""
        return self.urn.split("::")[0].removeprefix("urn:pulumi:")


Stack = Sequence[Resource]


def at(value: Any, path: str) -> Any:
    """What lies at `a.b.c` below a value, None where nothing does, UNKNOWN where nobody knows yet."""
    for key in path.split("."):
        if value is UNKNOWN:
            return UNKNOWN
        value = cast(dict[str, Any], value).get(key) if isinstance(value, dict) else None
    return value


def items(value: Any, path: str) -> list[Any]:
    """The items of the list at a path; none where there is no list, or nobody knows it yet."""
    found = at(value, path) if path else value
    return cast(list[Any], found) if isinstance(found, list) else []


def mapping(value: Any, path: str) -> dict[str, Any]:
    """The object at a path; an empty one where there is none, or nobody knows it yet. Its keys may have dots."""
    found = at(value, path)
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def is_true(value: Any) -> bool:
    """Of a flag, which some providers write as a string; what is not known yet is not true."""
    return value is True or value == "true"


def matches(stack: str, patterns: Sequence[str]) -> bool:
    """Whether a stack's name is among patterns like `*-prod`; letters' case makes no difference."""
    return any(fnmatchcase(stack.lower(), pattern.lower()) for pattern in patterns)
