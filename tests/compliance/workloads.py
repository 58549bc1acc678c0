"""The Kubernetes objects of a synthesised stack, and the pods that their controllers would make of them."""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from fleet.synthesis import synthesize
from planner.cloud_choice import EXISTING
from tests.contract.programs import values_of

STACKS = Path(__file__).parents[2] / "stacks"
DEPLOYED = (*sorted(path.name.split(".")[1] for path in STACKS.glob("Pulumi.*-*.yaml")), EXISTING)
"""Every example stack that deploys to a cloud, and the local one on a cluster that is there."""

SERVING = "tritonfleet"

Object = dict[str, Any]


@cache
def _objects(stack: str) -> tuple[Object, ...]:
    files = synthesize(values_of(stack), stack=stack).files
    yaml = YAML(typ="safe", pure=True)
    manifests = [text for path, text in sorted(files.items()) if path.startswith("kubernetes/")]
    return tuple(yaml.load(text) for text in manifests)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def objects(stack: str) -> list[Object]:
    """Every Kubernetes object of the stack, as `fleet synth` writes it."""
    return copy.deepcopy(list(_objects(stack)))


def built_in(item: Object) -> bool:
    """Whether Kubernetes itself has the kind: not LeaderWorkerSet's, and not what GKE or a chart brings."""
    group = item["apiVersion"].rpartition("/")[0]
    return group in ("", "apps", "batch", "policy") or group.endswith(".k8s.io")


def pods(stack: str) -> list[Object]:
    """A Pod for each pod template of the stack: of Jobs and Deployments, and of leaders and workers."""
    return [pod for item in objects(stack) for pod in pods_of(item)]


def serving_pods(stack: str) -> list[Object]:
    """Those of the namespace that models are served in."""
    return [pod for pod in pods(stack) if pod["metadata"]["namespace"] == SERVING]


def pods_of(item: Object) -> Iterator[Object]:
    """The pods of one object that makes some."""
    spec = item.get("spec", {})
    templates: dict[str, Any] = {}
    if item["kind"] == "LeaderWorkerSet":
        group = spec["leaderWorkerTemplate"]
        templates = {"leader": group.get("leaderTemplate"), "worker": group["workerTemplate"]}
    elif "template" in spec:
        templates = {"pod": spec["template"]}
    for role, template in templates.items():
        if template is None:
            continue
        metadata = dict(template.get("metadata", {}))
        metadata |= {"name": f"{item['metadata']['name']}-{role}", "namespace": item["metadata"]["namespace"]}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
