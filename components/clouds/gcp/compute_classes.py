"""The order in which GKE's autoscaler tries the node pools of a pool."""

from collections.abc import Sequence

import pulumi
from pulumi_kubernetes.apiextensions import CustomResource
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs

from components.labels import LABELS
from planner.fleet import PoolPlan


def compute_class(
    name: str, pool: PoolPlan, *, parent: pulumi.Resource, depends_on: Sequence[pulumi.Resource]
) -> CustomResource:
    """A ComputeClass of the pool's name, which its nodes have as label and taint and its pods select."""
    groups = sorted(pool.node_groups, key=lambda group: -group.priority)
    return CustomResource(
        name,
        api_version="cloud.google.com/v1",
        kind="ComputeClass",
        metadata=ObjectMetaArgs(name=pool.name, labels=LABELS),
        spec={
            "priorities": [{"nodepools": [group.name]} for group in groups],
            # The pool's nodes are these and no others.
            "nodePoolAutoCreation": {"enabled": False},
            "whenUnsatisfiable": "DoNotScaleUp",
        },
        opts=pulumi.ResourceOptions(parent=parent, depends_on=depends_on),
    )
