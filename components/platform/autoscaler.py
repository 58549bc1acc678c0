"""Cluster Autoscaler: which node group grows first, and when a node may go."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from components.platform.charts import ChartValues, Mirrors, controller_resources, mirrored
from planner.fleet import CloudPlan, NodeGroupPlan
from planner.versions import CLUSTER_AUTOSCALER

if TYPE_CHECKING:
    from components.clouds.base import AutoscalerChart

NAMESPACE = "kube-system"
SERVICE_ACCOUNT = "cluster-autoscaler"
PRIORITIES = "cluster-autoscaler-priority-expander"
"""The ConfigMap's name is fixed in the autoscaler."""


def cluster_autoscaler(plan: CloudPlan, access: "AutoscalerChart", mirrors: Mirrors) -> ChartValues:
    """The autoscaler of the plan's Kubernetes version, with the identity and the values that the cloud gives it."""
    values: dict[str, Any] = {
        "fullnameOverride": "cluster-autoscaler",
        "image": {
            "repository": mirrored("registry.k8s.io/autoscaling/cluster-autoscaler", mirrors),
            "tag": _image_tag(plan.cluster.kubernetes_version),
        },
        "rbac": {"serviceAccount": {"name": SERVICE_ACCOUNT, "annotations": dict(access.annotations)}},
        "resources": controller_resources("100m", "300Mi", "600Mi"),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "runAsGroup": 65534,
            "fsGroup": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containerSecurityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # Start-up taints need no flag: the autoscaler knows the prefix of ours.
        "extraArgs": {
            "expander": "priority",
            # Groups differ in price on purpose.
            "balance-similar-node-groups": False,
            # Moving one rank restarts its whole group, so a node goes only when no pod but DaemonSets' is left on it.
            "scale-down-utilization-threshold": 0,
            "scale-down-gpu-utilization-threshold": 0,
            "ignore-daemonsets-utilization": True,
            # Every pod of ours has an emptyDir; none keeps anything there.
            "skip-nodes-with-local-storage": False,
            # Longer than a group's restart, so that its nodes are still there when its pods come back.
            "scale-down-unneeded-time": "10m",
            "scale-down-delay-after-add": "10m",
            # Large instances boot for ten minutes, and dividing their GPUs may take a reboot.
            "max-node-provision-time": "25m",
            "scale-down-unready-time": "30m",
        },
    }
    return ChartValues(chart="cluster-autoscaler", namespace=NAMESPACE, values=values | dict(access.values))


def priorities(plan: CloudPlan, pattern: Callable[[NodeGroupPlan], str]) -> str:
    """The ConfigMap's `priorities`: numbers, each with regular expressions of the groups that have it; highest first.

    `pattern` gives the one that matches a node group's name in the cloud and no other group's. A group in no list would
    never grow.
    """
    lists: dict[int, list[str]] = {}
    for pool in plan.pools:
        for group in pool.node_groups:
            lists.setdefault(group.priority, []).append(pattern(group))
    lines: list[str] = []
    for priority in sorted(lists, reverse=True):
        # JSON quotes as YAML does, and a regular expression needs it.
        lines += [f"{priority}:", *(f"  - {json.dumps(expression)}" for expression in lists[priority])]
    return "\n".join(lines) + "\n"


def _image_tag(kubernetes_version: str) -> str:
    """The autoscaler made for a Kubernetes version; for one that is newer than the pins, the newest."""
    return CLUSTER_AUTOSCALER.get(kubernetes_version) or list(CLUSTER_AUTOSCALER.values())[-1]
