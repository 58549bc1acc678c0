"""In which fields the pods of one model differ between clouds, as a page of the documentation."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from tests.compliance.workloads import serving_pods

STACKS = ("aws-llama-405b", "gcp-llama-405b", "azure-llama-405b")

Fields = dict[str, tuple[str, ...]]


def differences() -> Fields:
    """Path of a field -> its value on each cloud, "" where it is not there; of leaders, and of workers where theirs
    differ otherwise."""
    leaders, workers = (_compared(role) for role in ("leader", "worker"))
    found = {path if workers.get(path) == values else f"leader: {path}": values for path, values in leaders.items()}
    return found | {f"worker: {path}": values for path, values in workers.items() if leaders.get(path) != values}


def page(fields: Mapping[str, tuple[str, ...]]) -> str:
    """The fields as Markdown."""
    lines = [f"| {path} | {' | '.join(map(_cell, values))} |" for path, values in sorted(fields.items())]
    titles = [f"`{stack}`" for stack in STACKS]
    return "\n".join([_HEAD, f"| | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}", *lines]) + "\n"


_HEAD = """# The pods of one model on three clouds

What differs between the pods of `aws-llama-405b`, `gcp-llama-405b` and `azure-llama-405b`; all else is the same to the
last letter. A field without a prefix is the same in leaders and workers. Written by
`UPDATE_GOLDEN=1 .venv/bin/pytest tests/compliance/test_pod_differences.py`, which otherwise says when this page is old.
"""


def _compared(role: str) -> Fields:
    flat = [dict(_flat(_pod(stack, role), "")) for stack in STACKS]
    paths = sorted({path for fields in flat for path in fields})
    rows = {path: tuple(fields.get(path, "") for fields in flat) for path in paths}
    return {path: values for path, values in rows.items() if len(set(values)) > 1}


def _pod(stack: str, role: str) -> Any:
    (pod,) = [pod for pod in serving_pods(stack) if pod["metadata"]["name"].endswith(f"-{role}")]
    return pod


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Paths of leaves. Items of a list go by their name or key, and arguments of a command by their flag."""
    if isinstance(value, dict):
        for key, item in cast(dict[str, Any], value).items():
            yield from _flat(item, f"{path}.{key}" if path else key)
        return
    items = cast(list[Any], value) if isinstance(value, list) else []
    if items and all(isinstance(item, str) for item in items):
        for before, item in zip([path, *items], items, strict=False):
            yield f"{path}[{before}]" if before.startswith("--") else f"{path}[{item}]", item
        return
    objects = [cast(dict[str, Any], item) for item in items if isinstance(item, dict)]
    named = {item[key]: {**item, key: None} for item in objects for key in ("name", "key") if key in item}
    if items and len(named) == len(items):
        for name, item in named.items():
            rest = [inner for inner in item.values() if inner is not None]
            plain = all(isinstance(inner, str) for inner in rest)
            yield from [(f"{path}[{name}]", " ".join(rest))] if plain else _flat(item, f"{path}[{name}]")
        return
    yield path, value if isinstance(value, str) else json.dumps(value)


def _cell(value: str) -> str:
    return f"`{value}`".replace("|", "\\|") if value else "-"
