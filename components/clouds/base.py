"""What every cloud gives to the rest of the program: a cluster, its nodes, volumes, and identities for pods."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pulumi
import pulumi_kubernetes

from components.platform.charts import ChartValues
from planner.fleet import CloudPlan, NodeGroupPlan
from planner.plan import ModelPlan

POD_USER = 10001
"""User and group of every pod that mounts shared files: a number that no user of a node has."""


@dataclass(frozen=True, kw_only=True)
class Volumes:
    """Claims in the serving namespace, by name.

    `engines_rw` is the shared file system for Jobs that fetch weights or build engines, and `engines_ro` the same for
    serving pods; `weights` maps the name of a model with a `bucket://` source to a read-only claim of its prefix. Pods
    wait for `resources`.
    """

    engines_rw: str
    engines_ro: str
    weights: dict[str, str]
    resources: Sequence[pulumi.Resource]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who a service account is in the cloud, by default nobody: its annotations, and what gives it rights.

    Its pods wait for `resources`: some clouds hand rights over only while a pod is made.
    """

    annotations: Mapping[str, pulumi.Input[str]] = field(default_factory=dict[str, pulumi.Input[str]])
    resources: Sequence[pulumi.Resource] = ()


@dataclass(frozen=True, kw_only=True)
class AutoscalerAccess:
    """How the cluster autoscaler reaches the cloud: annotations of its service account, and the cloud's chart values.

    `group_pattern` gives the regular expression that matches a node group's name in the cloud, and no other's. The
    autoscaler waits for `resources`.
    """

    annotations: Mapping[str, pulumi.Input[str]]
    values: Mapping[str, Any]
    group_pattern: Callable[[NodeGroupPlan], str]
    resources: Sequence[pulumi.Resource]


class Cloud(pulumi.ComponentResource, ABC):
    """A cluster made from a plan. `kubeconfig` is secret; `kubernetes` is the provider that its objects must be given.

    Charts whose pods must run depend on `nodes`. `bucket` is the model bucket's name. `mirrors` maps a public image
    registry to the one that caches it for this cluster; it is empty where nothing is cached.
    """

    kubeconfig: pulumi.Output[str]
    kubernetes: pulumi_kubernetes.Provider
    nodes: Sequence[pulumi.Resource]
    bucket: pulumi.Output[str]
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
    def volumes(
        self, namespace: str, models: Sequence[ModelPlan], *, opts: pulumi.ResourceOptions | None = None
    ) -> Volumes:
        """The claims of these models' pods; of `opts` only `depends_on` is used, for what makes the namespace."""

    @abstractmethod
    def autoscaler(self) -> AutoscalerAccess:
        """Access for the service account `cluster-autoscaler` in `kube-system`. To be called once."""

    @abstractmethod
    def device_plugins(self) -> Sequence[ChartValues]:
        """The cloud's own charts that make devices of its nodes known to Kubernetes."""
