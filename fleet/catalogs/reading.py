"""The words between `fleet catalog refresh` and the process that reads a cloud."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

LATER = "see the service's status page, then try again"
NONSENSE = "the service answers nonsense: try again later, and see its status page"

UNREADABLE = 3
"""Exit status of a reader that could not read; then its answer is {"what": …, "fix": …}."""


class Unreadable(Exception):
    """A service that is down, refuses, or answers what its documentation does not have."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


@dataclass(frozen=True, kw_only=True)
class Request:
    """`regions` are those to read; `types` the rows of the catalogue by instance type, `gpus` those of its GPUs.

    `endpoint` stands in for the cloud's own address (None: the library's default).
    """

    regions: list[str]
    types: dict[str, dict[str, str]]
    gpus: list[dict[str, str]]
    endpoint: str | None


@dataclass(kw_only=True)
class Region:
    """What a cloud says of one region: USD per hour by instance type, catalogue columns by type, types by zone id.

    None is what was not read; a type that is not in `offered` is not to be had there.
    """

    on_demand: dict[str, float] | None = None
    spot: dict[str, float] | None = None
    specs: dict[str, dict[str, str]] | None = None
    zones: dict[str, list[str]] | None = None
    offered: list[str] | None = None


@dataclass(kw_only=True)
class Reading:
    """`sources` names what each kind of figure (`on_demand`, `spot`, `specs`, `zones`) was read from."""

    regions: dict[str, Region]
    sources: dict[str, str]
    unread: list[str] = field(default_factory=list[str])


def serve(read: Callable[[Request], Reading]) -> None:
    """Answer the request on standard input, and end the process."""
    try:
        answer = asdict(read(Request(**json.load(sys.stdin))))
    except Unreadable as error:
        json.dump({"what": error.what, "fix": error.fix}, sys.stdout)
        sys.exit(UNREADABLE)
    json.dump(answer, sys.stdout)


def number(value: object, of: str) -> float:
    """A number, or text of one. Raises Unreadable naming what it was to be the number of."""
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        return float(value)
    except ValueError:
        raise Unreadable(f"{of} is {value!r:.60}, which is no number", NONSENSE) from None


def part(value: Any, kind: type, *path: str | int) -> Any:
    """The value at the path below an answer. Raises Unreadable where it is not there, or of another kind."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            raise Unreadable(f"the answer has no {'.'.join(map(str, path))}", NONSENSE) from None
    if not isinstance(value, kind):
        raise Unreadable(f"{'.'.join(map(str, path)) or 'the answer'} is no {kind.__name__}: {value!r:.60}", NONSENSE)
    return value


def short(error: object) -> str:
    """What a library says, on one line: some quote whole pages."""
    return " ".join(str(error).split())[:200]
