"""The containers of every pod that a Kubernetes object makes."""

from collections.abc import Iterator
from typing import Any

from policy.stack import Resource, at, items

_TEMPLATES = ("spec", "template", "jobTemplate", "leaderWorkerTemplate", "leaderTemplate", "workerTemplate")


def containers(resource: Resource) -> Iterator[Any]:
    """Init containers too, of pods and of whatever has a template of them; none of what is no Kubernetes object."""
    pending: list[Any] = [at(resource.inputs, "spec")] if resource.type.startswith("kubernetes:") else []
    while pending:
        value = pending.pop()
        for key in ("initContainers", "containers"):
            yield from items(value, key)
        pending += [inner for key in _TEMPLATES if isinstance(inner := at(value, key), dict)]
