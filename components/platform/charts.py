"""Helm releases as data: which pinned chart, where, with which values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi_kubernetes.helm.v3 import Release, RepositoryOptsArgs

from planner.fleet import CloudPlan
from planner.versions import CHARTS

Mirrors = Mapping[str, pulumi.Input[str]]
"""A public image registry -> the one that caches it for this cluster."""

TIMEOUT_SECONDS = 600
"""For one release: pulling its images onto fresh nodes takes minutes, not tens of them."""


@dataclass(frozen=True, kw_only=True)
class ChartValues:
    """One release. `chart` is a key of `versions.CHARTS` and the release's name.

    `on_gpu_nodes` says that all its pods run there: the release then does not wait for them, because there may be no
    GPU node until somebody asks a model something.
    """

    chart: str
    namespace: str
    values: Mapping[str, Any]
    on_gpu_nodes: bool = False


def install(
    chart: ChartValues, *, name: str, parent: pulumi.Resource, depends_on: Sequence[pulumi.Resource]
) -> Release:
    """The release, rolled back when it fails; its namespace exists already."""
    pinned, waits = CHARTS[chart.chart], not chart.on_gpu_nodes
    return Release(
        f"{name}-{chart.chart}",
        name=chart.chart,
        namespace=chart.namespace,
        chart=pinned.name,
        version=pinned.version,
        repository_opts=RepositoryOptsArgs(repo=pinned.repository) if pinned.repository else None,
        values=chart.values,
        # Helm can only roll back what it has waited for.
        atomic=waits,
        skip_await=not waits,
        cleanup_on_fail=True,
        timeout=TIMEOUT_SECONDS,
        max_history=5,
        opts=pulumi.ResourceOptions(parent=parent, depends_on=depends_on),
    )


def mirrored(image: str, mirrors: Mirrors) -> pulumi.Input[str]:
    """An image, or a repository of images, from where the cluster is to pull it."""
    registry, _, path = image.partition("/")
    return pulumi.Output.concat(mirrors[registry], "/", path) if registry in mirrors else image


def gpu_node_tolerations(plan: CloudPlan) -> list[dict[str, str]]:
    """What a DaemonSet tolerates to run on every GPU node from its first minute: all taints of the plan's pools."""
    groups = [group for pool in plan.pools for group in pool.node_groups]
    taints = {(taint.key, taint.effect) for group in groups for taint in (*group.taints, *group.startup_taints)}
    return [{"key": key, "operator": "Exists", "effect": effect} for key, effect in sorted(taints)]


def controller_resources(cpu: str, memory: str, limit: str) -> dict[str, dict[str, str]]:
    """Requests, and a limit on memory alone: a throttled controller answers late, and nobody gains by it."""
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": limit}}
