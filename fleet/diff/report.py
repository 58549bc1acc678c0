"""What a change of a stack means: resources, engines, cost, and what could go wrong, worst first."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from fleet.diff.compare import ResourceChange, compare, shown, unguarded
from fleet.diff.policies import newly_broken
from fleet.diff.revisions import Rendered
from planner.errors import Problem
from policy.data import HOLDS_DATA

RiskKind = Literal["data loss", "refused", "downtime", "exposure", "policy", "unguarded", "capacity", "left behind"]
RISKS: tuple[RiskKind, ...] = (
    "data loss",
    "refused",
    "downtime",
    "exposure",
    "policy",
    "unguarded",
    "capacity",
    "left behind",
)
"""Worst first."""

Status = Literal["same", "changed", "new", "gone", "failed"]

DATA = HOLDS_DATA | {"azure-native:resources:ResourceGroup", "gcp:kms/keyRing:KeyRing"}
"""What holds weights and engines, the key without which nobody can read them, or what goes with them."""

CLUSTERS = ("eks:index:Cluster", "gcp:container/cluster:Cluster", "azure-native:containerservice:ManagedCluster")
POOLS = (
    "aws:eks/nodeGroup:NodeGroup",
    "gcp:container/nodePool:NodePool",
    "azure-native:containerservice:AgentPool",
)
GROUPS = "kubernetes:leaderworkerset.x-k8s.io/v1:LeaderWorkerSet"
_MOST_NODES = ("scalingConfig.maxSize", "autoscaling.totalMaxNodeCount", "maxCount")
_RANGES = (
    "publicAccessCidrs",
    "authorizedIPRanges",
    "cidrBlocks",
    "cidrIpv4",
    "sourceRanges",
    "loadBalancerSourceRanges",
)
_EVERYBODY = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True, kw_only=True)
class Risk:
    """One thing that could go wrong, and of which resource."""

    kind: RiskKind
    resource: str
    what: str


@dataclass(frozen=True, kw_only=True)
class EngineChange:
    """The engine of one model: `before` and `after` are engine keys, None where the stack has no such model."""

    model: str
    before: str | None
    after: str | None


@dataclass(frozen=True, kw_only=True)
class CostChange:
    """USD per month of 730 hours for GPU nodes of the preferred capacity, an estimate from the catalogue's prices.

    None where a price is not known, 0 where there is nothing. `lines` are USD per hour by node group.
    """

    before: float | None
    after: float | None
    lines: tuple[tuple[str, float | None, float | None], ...]
    note: str


@dataclass(frozen=True, kw_only=True)
class StackDiff:
    """One stack between two revisions. `failed` has `problems` alone, by the revision that they are of."""

    stack: str
    status: Status
    changes: tuple[ResourceChange, ...] = ()
    engines: tuple[EngineChange, ...] = ()
    cost: CostChange | None = None
    risks: tuple[Risk, ...] = ()
    notes: tuple[str, ...] = ()
    problems: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict[str, tuple[Problem, ...]])

    @property
    def silent(self) -> bool:
        """Whether there is nothing to tell of it."""
        return self.status == "same" and not (self.engines or self.risks or self.notes or self.cost_moves)

    @property
    def cost_moves(self) -> bool:
        return self.cost is not None and bool(self.cost.lines or self.cost.before != self.cost.after)

    def count(self, action: str) -> int:
        return sum(change.action == action for change in self.changes)


def stack_diff(stack: str, before: Rendered | None, after: Rendered | None) -> StackDiff:
    """The difference of a stack; None: that revision has no such stack."""
    problems = {side: one.problems for side, one in (("base", before), ("head", after)) if one and one.problems}
    if problems:
        return StackDiff(stack=stack, status="failed", problems=problems)
    old, new = before or Rendered(), after or Rendered()
    changes = compare(old.resources, new.resources)
    notes = [f"new warning: {text}" for text in new.messages if text not in old.messages]
    unknown = sorted({change.type for change in changes if not change.known_rule and change.fields})
    if unknown:
        notes.append(f"no replacement rule is known for {', '.join(unknown)}: taken for updates")
    if after is None:
        notes.append("the stack file is gone; what it deployed stays until `pulumi destroy`")
    status: Status = "new" if before is None else "gone" if after is None else "changed" if changes else "same"
    risks = [] if before is None else [*_risks(changes), *_unguarded(old, new), *_policies(old, new)]
    outputs = shown(old.outputs), shown(new.outputs)
    return StackDiff(
        stack=stack,
        status=status,
        changes=changes,
        engines=tuple(_engines(*(output.get("engine_keys", {}) for output in outputs))),
        cost=_cost(*(output.get("cost") for output in outputs)),
        risks=tuple(sorted(risks, key=lambda risk: (RISKS.index(risk.kind), risk.resource))),
        notes=tuple(notes),
    )


def _engines(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[EngineChange]:
    for model in sorted({*before, *after}):
        if before.get(model) != after.get(model):
            yield EngineChange(model=model, before=before.get(model), after=after.get(model))


def _cost(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> CostChange | None:
    if before is None and after is None:
        return None
    olds, news = (
        {line["node_group"]: cast(float | None, line["usd_per_hour"]) for line in (cost or {}).get("lines", ())}
        for cost in (before, after)
    )
    return CostChange(
        before=before.get("usd_per_month") if before else 0.0,
        after=after.get("usd_per_month") if after else 0.0,
        lines=tuple(
            (group, olds.get(group, 0.0), news.get(group, 0.0))
            for group in sorted({*olds, *news})
            if olds.get(group, 0.0) != news.get(group, 0.0)
        ),
        note=(after or before or {}).get("note", ""),
    )


def _risks(changes: tuple[ResourceChange, ...]) -> Iterator[Risk]:
    gone = ("replaced", "deleted")
    for change in changes:
        if change.action in gone and change.protected:
            what = "protected: Pulumi refuses the whole update until `allow_replacement` names it"
            yield Risk(kind="refused", resource=change.name, what=f"{change.action}, but {what}")
        if change.action in gone and change.type in DATA:
            yield _of_data(change)
        if change.type in CLUSTERS and change.action in gone:
            yield Risk(
                kind="downtime", resource=change.name, what=f"the cluster is {change.action}: no model is served"
            )
        if change.type in POOLS:
            yield from _of_pool(change)
        if change.type == GROUPS:
            yield from _of_groups(change)
        for field_ in change.fields:
            if field_.refused:
                what = f"{field_.path} cannot be changed of what is there: the cloud refuses it, and the update fails"
                yield Risk(kind="refused", resource=change.name, what=what)
        if opened := _opened(change):
            yield Risk(kind="exposure", resource=change.name, what=f"{opened} lets everybody in")
    yield from _fallbacks(changes)


def _unguarded(before: Rendered, after: Rendered) -> Iterator[Risk]:
    """Of what holds data, and of clusters: a later change may delete it, which this one does not."""
    for urn in unguarded(before.resources, after.resources):
        if urn.split("::")[2].rpartition("$")[2] in (*DATA, *CLUSTERS):
            what = "loses its protection, or is no longer kept when it is deleted"
            yield Risk(kind="unguarded", resource=urn.rpartition("::")[2], what=what)


def _policies(before: Rendered, after: Rendered) -> Iterator[Risk]:
    for broken in newly_broken(before.resources, after.resources):
        level = "" if broken.mandatory else " (advisory)"
        of = broken.urn.rpartition("::")[2] if broken.urn else "the stack"
        what = f"breaks {broken.rule}{level}: {broken.problem.key}: {broken.problem.what}"
        yield Risk(kind="policy", resource=of, what=what)


def _of_data(change: ResourceChange) -> Risk:
    if change.retained:
        new = "an empty one takes its place, and " if change.action == "replaced" else ""
        what = f"{new}the old one stays, outside the stack, with its data and its cost"
        return Risk(kind="left behind", resource=change.name, what=what)
    return Risk(kind="data loss", resource=change.name, what=f"{change.action}, with all that it holds")


def _of_pool(change: ResourceChange) -> Iterator[Risk]:
    if change.action == "replaced":
        first = "before there are others" if change.deleted_first else "once there are others"
        yield Risk(
            kind="downtime", resource=change.name, what=f"replaced: its nodes end {first}, and all that runs there"
        )
    if change.action == "deleted":
        yield Risk(kind="downtime", resource=change.name, what="deleted: its nodes end, and all that runs there")
    for field_ in change.fields:
        if field_.path in _MOST_NODES and _is_less(field_.after, field_.before):
            what = f"at most {field_.after} nodes instead of {field_.before}"
            yield Risk(kind="capacity", resource=change.name, what=what)


def _of_groups(change: ResourceChange) -> Iterator[Risk]:
    if change.action == "deleted":
        yield Risk(kind="downtime", resource=change.name, what="the model is no longer served")
        return
    replicas = change.inputs.get("spec", {}).get("replicas", 1)
    if change.action == "replaced":
        yield Risk(kind="downtime", resource=change.name, what="replaced: not served until the new groups have loaded")
    elif any(one.path.startswith("spec.leaderWorkerTemplate") for one in change.fields):
        alone = (
            "with one replica nobody serves meanwhile"
            if replicas == 1
            else f"the other of {replicas} replicas serve meanwhile"
        )
        yield Risk(kind="downtime", resource=change.name, what=f"its pods change: every group starts anew; {alone}")
    for field_ in change.fields:
        if field_.path == "spec.replicas" and _is_less(field_.after, field_.before):
            what = f"{field_.after} replicas instead of {field_.before}"
            yield Risk(kind="capacity", resource=change.name, what=what)


def _fallbacks(changes: tuple[ResourceChange, ...]) -> Iterator[Risk]:
    """Pools that lose the capacity that stood in for spot nodes."""
    gained = {_labels(change)[0] for change in changes if change.type in POOLS and change.action == "added"}
    for change in changes:
        pool, capacity = _labels(change)
        if change.type in POOLS and change.action == "deleted" and capacity == "on-demand" and pool not in gained:
            yield Risk(kind="capacity", resource=change.name, what=f"pool {pool} loses its on-demand nodes")


def _labels(change: ResourceChange) -> tuple[str, str]:
    """Pool and capacity type of a node group."""
    inputs = change.inputs
    labels: dict[str, str] = (
        inputs.get("labels") or inputs.get("nodeLabels") or inputs.get("nodeConfig", {}).get("labels", {})
    )
    return labels.get("tritonfleet.io/pool", ""), labels.get("tritonfleet.io/capacity-type", "")


def _opened(change: ResourceChange) -> str | None:
    """The property that now admits every address, and did not."""
    for field_ in change.fields:
        if any(name in field_.path for name in _RANGES):
            before, after = str(field_.before), str(field_.after)
            if any(every in after and every not in before for every in _EVERYBODY):
                return field_.path
    return None


def _is_less(after: Any, before: Any) -> bool:
    return isinstance(after, int | float) and isinstance(before, int | float) and after < before
