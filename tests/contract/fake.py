"""A cloud that is only its contract: the least that a new one would have to make."""

import re
from collections.abc import Sequence
from typing import Any

import pulumi
import pulumi_kubernetes
from pulumi_kubernetes.core.v1 import (
    PersistentVolumeClaim,
    PersistentVolumeClaimSpecArgs,
    VolumeResourceRequirementsArgs,
)
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs

from components.clouds.base import Autoscaling, Cloud, Identity, Volumes, guarded
from components.platform.charts import ChartValues
from planner.errors import Problem
from planner.fleet import CloudPlan, NodeGroupPlan, PoolPlan
from planner.object_sources import ObjectSource
from planner.plan import ModelPlan
from planner.sources import bucket_prefix


class Thing(pulumi.CustomResource):
    """What the fake cloud calls a resource: a type and inputs."""

    def __init__(self, kind: str, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions) -> None:
        super().__init__(f"fake:index:{kind}", name, inputs, opts)


class FakeProvider(pulumi.ProviderResource):
    def __init__(self, name: str) -> None:
        super().__init__("fake", name, {})


class Fake(Cloud):
    """A cluster, a node pool for each node group, a bucket, a file system, and a right for each identity."""

    def __init__(
        self, name: str, plan: CloudPlan, models: Sequence[ModelPlan], opts: pulumi.ResourceOptions | None = None
    ) -> None:
        inherited = pulumi.ResourceOptions(providers=[FakeProvider(name)])
        super().__init__(name, plan, models, pulumi.ResourceOptions.merge(inherited, opts))
        self._name, self._plan = name, plan
        cluster = Thing("Cluster", f"{name}-cluster", {}, self._child(protect=guarded(plan, "cluster")))
        self.kubeconfig = pulumi.Output.secret(cluster.id.apply(lambda id_: f"kubeconfig of {id_}"))
        self.kubernetes = pulumi_kubernetes.Provider(
            f"{name}-kubernetes",
            kubeconfig=self.kubeconfig,
            cluster_identifier=name,
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.nodes = [self._pool(pool, group, cluster) for pool in plan.pools for group in pool.node_groups]
        self.mirrors = {}
        keep = plan.storage.keep_data
        data = self._child(protect=guarded(plan, "storage"), retain_on_delete=keep)
        self._files = Thing("Files", f"{name}-files", {"kind": plan.storage.kind}, data)
        self._bucket = Thing("Bucket", f"{name}-models", {}, data)
        self.bucket = self._bucket.id
        self.register_outputs({})

    def identity(self, name: str, *, namespace: str, service_account: str, bucket_prefix: str | None) -> Identity:
        if bucket_prefix is None:
            return Identity()
        reads = {"bucket": self.bucket, "prefix": bucket_prefix, "account": f"{namespace}/{service_account}"}
        right = Thing("Right", f"{self._name}-{name}", reads, self._child())
        return Identity(annotations={"cloud.example/right": right.id}, resources=[right])

    def source_reader(self, name: str, *, namespace: str, service_account: str, source: ObjectSource) -> Identity:
        reads = {"bucket": source.bucket, "prefix": source.prefix, "account": f"{namespace}/{service_account}"}
        right = Thing("Right", f"{self._name}-{name}", reads, self._child())
        return Identity(annotations={"cloud.example/right": right.id}, resources=[right])

    def volumes(
        self, namespace: str, models: Sequence[ModelPlan], *, opts: pulumi.ResourceOptions | None = None
    ) -> Volumes:
        kept = guarded(self._plan, "storage")
        weights = {m.name: f"weights-{m.name}" for m in models if bucket_prefix(m.config.source) is not None}
        modes = {"engines": "ReadWriteMany", "engines-readonly": "ReadOnlyMany"}
        modes |= dict.fromkeys(weights.values(), "ReadOnlyMany")
        awaited: Any = (opts and opts.depends_on) or []
        claims = [
            PersistentVolumeClaim(
                f"{namespace}-{claim}",
                metadata=ObjectMetaArgs(name=claim, namespace=namespace),
                spec=PersistentVolumeClaimSpecArgs(
                    access_modes=[mode],
                    storage_class_name="fake",
                    resources=VolumeResourceRequirementsArgs(requests={"storage": "1Gi"}),
                ),
                opts=pulumi.ResourceOptions(
                    parent=self,
                    provider=self.kubernetes,
                    depends_on=[*awaited, self._files],
                    protect=kept and claim not in weights.values(),
                ),
            )
            for claim, mode in modes.items()
        ]
        return Volumes(engines_rw="engines", engines_ro="engines-readonly", weights=weights, resources=claims)

    def autoscaling(self) -> Autoscaling:
        return Autoscaling(group_pattern=lambda group: f"^{re.escape(f'{self._name}-{group.name}')}$")

    def charts(self) -> Sequence[ChartValues]:
        return []

    @classmethod
    def unreachable(cls, plan: CloudPlan) -> list[Problem]:
        del plan
        return []

    def _pool(self, pool: PoolPlan, group: NodeGroupPlan, cluster: Thing) -> Thing:
        inputs = {
            "cluster": cluster.id,
            "capacity": group.capacity,
            "labels": group.labels,
            "taints": [{"key": taint.key, "value": taint.value, "effect": taint.effect} for taint in group.taints],
            "size": {"smallest": group.min_nodes, "largest": group.max_nodes},
            "zones": list(group.zones),
        }
        opts = self._child(protect=guarded(self._plan, f"pools.{pool.name}"), ignore_changes=["size.now"])
        return Thing("NodePool", f"{self._name}-{group.name}", inputs, opts)

    def _child(self, **options: Any) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=self, **options)
