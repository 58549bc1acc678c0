"""Where the pods of a model go. The reasons are in docs/adr/006-group-placement.md."""

from collections.abc import Sequence
from dataclasses import dataclass

from pulumi_kubernetes.core.v1 import (
    AffinityArgs,
    PodAffinityArgs,
    PodAffinityTermArgs,
    PodAntiAffinityArgs,
    TopologySpreadConstraintArgs,
)
from pulumi_kubernetes.meta.v1 import LabelSelectorArgs

from components.serving.labels import GROUP_INDEX_LABEL, NAME_LABEL, SERVER, SET_LABEL, leaders_of, set_name
from planner.fleet import ServingPlan
from planner.plan import FleetPlan
from planner.pool_labels import ZONE_LABEL
from planner.pools import nodes_needed

NODE = "kubernetes.io/hostname"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a pod's spec says of where it goes, besides its pool."""

    affinity: AffinityArgs | None
    spread: list[TopologySpreadConstraintArgs] | None


def placement(model: str, serving: ServingPlan) -> Placement:
    """A group of several nodes stays together and alone on its nodes; single pods keep apart where that is free."""
    if serving.group_size > 1:
        return Placement(affinity=_together_and_alone(model, serving.pool.together), spread=None)
    return Placement(affinity=None, spread=[_apart(model, ZONE_LABEL), _apart(model, NODE)])


def room_to_surge(plan: FleetPlan, serving: ServingPlan) -> bool:
    """Whether the pool, at its largest, holds one more of these groups beside every group of the plan.

    One rollout may update every model of the pool. Extra pods that are alone finish one after another, but of two extra
    groups each could take some of the free nodes and wait for the rest forever: so there must be room for all of them.
    """
    served = [model.serving for model in plan.models if model.serving and model.serving.pool.name == serving.pool.name]
    demands = [(other.replicas * other.group_size, other.gpus_per_pod) for other in served]
    surging = [other for other in served if other.group_size > 1] if serving.group_size > 1 else [serving]
    extra = [(other.group_size, other.gpus_per_pod) for other in surging]
    needed = nodes_needed(serving.pool, [*demands, *extra])
    return needed <= max(group.max_nodes for group in serving.pool.node_groups)


def _together_and_alone(model: str, labels: Sequence[str]) -> AffinityArgs:
    ranks = LabelSelectorArgs(match_labels={SET_LABEL: set_name(model)})
    together = [
        # The API server adds the pod's own group index to the selector when the pod is made.
        PodAffinityTermArgs(label_selector=ranks, match_label_keys=[GROUP_INDEX_LABEL], topology_key=key)
        for key in labels
    ]
    servers = LabelSelectorArgs(match_labels={NAME_LABEL: SERVER})
    alone = [PodAffinityTermArgs(label_selector=servers, topology_key=NODE)]
    return AffinityArgs(
        pod_affinity=PodAffinityArgs(required_during_scheduling_ignored_during_execution=together)
        if together
        else None,
        pod_anti_affinity=PodAntiAffinityArgs(required_during_scheduling_ignored_during_execution=alone),
    )


def _apart(model: str, key: str) -> TopologySpreadConstraintArgs:
    return TopologySpreadConstraintArgs(
        max_skew=1,
        topology_key=key,
        # One zone may have no capacity, and MIG slices share nodes: a replica there is better than none.
        when_unsatisfiable="ScheduleAnyway",
        label_selector=LabelSelectorArgs(match_labels=leaders_of(model)),
    )
