"""What every cloud gives to the rest of the program: a cluster, its nodes, volumes, and identities for pods."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pulumi
import pulumi_kubernetes

from components.platform.charts import ChartValues
from planner.errors import Problem
from planner.fleet import CloudPlan, NodeGroupPlan
from planner.object_sources import ObjectSource
from planner.plan import ModelPlan

POD_USER = 10001
"""User and group of every pod that mounts shared files: a number that no user of a node has."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way out of the cluster: a range and a TCP port."""

    cidr: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Volumes:
    """Claims in the serving namespace, by name.

    `engines_rw` is the shared file system for Jobs that fetch weights or build engines, and `engines_ro` the same for
    serving pods; `weights` maps the name of a model with a `bucket://` source to a read-only claim of its prefix. Pods
    wait for `resources`. Those that mount `weights` have `weights_annotations`, and may go where `weights_egress` says.
    """

    engines_rw: str
    engines_ro: str
    weights: dict[str, str]
    resources: Sequence[pulumi.Resource]
    weights_annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    weights_egress: Sequence[Way] = ()


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who a service account is in the cloud, by default nobody: its annotations, and what gives it rights.

    Its pods wait for `resources`: some clouds hand rights over only while a pod is made. Pods that are somebody by
    themselves, and not by a volume, have `pod_labels`, and get their credentials over `egress`.
    """

    annotations: Mapping[str, pulumi.Input[str]] = field(default_factory=dict[str, pulumi.Input[str]])
    resources: Sequence[pulumi.Resource] = ()
    pod_labels: Mapping[str, str] = field(default_factory=dict[str, str])
    egress: Sequence[Way] = ()


@dataclass(frozen=True, kw_only=True)
class AutoscalerChart:
    """How our own cluster autoscaler reaches the cloud: annotations of its service account, and chart values."""

    annotations: Mapping[str, pulumi.Input[str]]
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Autoscaling:
    """Who makes nodes come and go, and in which order node groups are tried.

    `chart` is None where the cloud runs the autoscaler. `group_pattern` gives the regular expression that matches a
    node group's name in the cloud, and no other's, for the priority expander; it is None where something in
    `resources` says the order. What waits for nodes waits for `resources`.
    """

    chart: AutoscalerChart | None = None
    group_pattern: Callable[[NodeGroupPlan], str] | None = None
    resources: Sequence[pulumi.Resource] = ()


def guarded(plan: CloudPlan, thing: str) -> bool:
    """Whether Pulumi is to refuse to replace or delete `thing`: `cluster`, `storage`, or a pool as `pools.NAME`."""
    return plan.storage.keep_data and thing not in plan.allow_replacement


class Cloud(pulumi.ComponentResource, ABC):
    """A cluster made from a plan. `kubeconfig` is secret; `kubernetes` is the provider that its objects must be given.

    `context` is the one to use in the kubeconfig, None for its current one. Charts whose pods must run depend on
    `nodes`. `bucket` is the model bucket's name or URL, None where there is none. `mirrors` maps a public image
    registry to the one that caches it for this cluster; it is empty where nothing is cached.
    """

    kubeconfig: pulumi.Output[str]
    kubernetes: pulumi_kubernetes.Provider
    context: str | None = None
    nodes: Sequence[pulumi.Resource]
    bucket: pulumi.Output[str] | None
    mirrors: Mapping[str, pulumi.Output[str]]

    def __init__(
        self,
        name: str,
        plan: CloudPlan,  # noqa: ARG002 - this signature is every cloud's
        models: Sequence[ModelPlan],  # noqa: ARG002
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Clouds call this first and make everything after; `models` say what pods will mount."""
        super().__init__(f"tritonfleet:clouds:{type(self).__name__}", name, None, opts)

    @abstractmethod
    def identity(self, name: str, *, namespace: str, service_account: str, bucket_prefix: str | None) -> Identity:
        """Lets a service account read one prefix of the model bucket, and nothing where the prefix is None.

        `name` names the resources made for it.
        """

    @abstractmethod
    def source_reader(self, name: str, *, namespace: str, service_account: str, source: ObjectSource) -> Identity:
        """Lets a service account read what lies below the prefix of a bucket that the stack did not make.

        `source` is of the cloud's own object store; `name` names the resources made for it.
        """

    @abstractmethod
    def volumes(
        self, namespace: str, models: Sequence[ModelPlan], *, opts: pulumi.ResourceOptions | None = None
    ) -> Volumes:
        """The claims of these models' pods; of `opts` only `depends_on` is used, for what makes the namespace."""

    @abstractmethod
    def autoscaling(self) -> Autoscaling:
        """For the service account `cluster-autoscaler` in `kube-system` where it is our own. To be called once."""

    @abstractmethod
    def charts(self) -> Sequence[ChartValues]:
        """The cloud's own charts, such as those that make devices of its nodes known to Kubernetes."""

    @classmethod
    @abstractmethod
    def unreachable(cls, plan: CloudPlan) -> list[Problem]:
        """What is wrong with what must be there before the program starts. It may look over the network, and makes
        nothing."""
