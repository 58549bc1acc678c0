"""A cluster that is there already: nothing of it is made but what the models themselves need."""

from collections.abc import Sequence

import pulumi
import pulumi_kubernetes
from pulumi_kubernetes.core.v1 import (
    PersistentVolumeClaim,
    PersistentVolumeClaimSpecArgs,
    VolumeResourceRequirementsArgs,
)
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs

from components.clouds.base import Autoscaling, Cloud, Identity, Volumes, guarded
from components.labels import LABELS
from components.platform.charts import ChartValues
from planner.cloud_config import ExistingConfig
from planner.errors import Problem
from planner.fleet import CloudPlan
from planner.object_sources import ObjectSource
from planner.plan import ModelPlan

CLAIM = "engines"


class Existing(Cloud):
    """Access to a cluster, and one volume of its storage class. Its nodes, charts and identities are its owner's."""

    def __init__(
        self, name: str, plan: CloudPlan, models: Sequence[ModelPlan], opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__(name, plan, models, opts)
        self._plan = plan
        self._config = _config(plan)
        self.context = self._config.context
        # The path as it is: Pulumi's provider knows what ~ means, and the home of another machine is no change.
        self.kubeconfig = pulumi.Output.secret(self._config.kubeconfig)
        self.kubernetes = pulumi_kubernetes.Provider(
            f"{name}-kubernetes",
            kubeconfig=self.kubeconfig,
            context=self.context,
            # Another context is another cluster; a server that moved, or a kubeconfig somewhere else, is not.
            cluster_identifier=self.context or f"{pulumi.get_project()}-{pulumi.get_stack()}",
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.nodes = ()
        self.bucket = None
        self.mirrors = {}
        self.register_outputs({})

    def identity(self, name: str, *, namespace: str, service_account: str, bucket_prefix: str | None) -> Identity:
        del name, namespace, service_account, bucket_prefix  # the same for all of them; there is no bucket
        return Identity(annotations=dict(self._config.service_account_annotations))

    def source_reader(self, name: str, *, namespace: str, service_account: str, source: ObjectSource) -> Identity:
        raise NotImplementedError(f"the planner lets no stack pass whose pods would have to be somebody at {source}")

    def volumes(
        self, namespace: str, models: Sequence[ModelPlan], *, opts: pulumi.ResourceOptions | None = None
    ) -> Volumes:
        """One claim, read and written. Storage classes provision a volume for each claim, so that a second one would
        be another volume; serving pods mount this one read-only.

        Where the class binds at its first consumer, Pulumi takes the claim as soon as it is pending (pulumi-kubernetes
        4.16, untilCoreV1PersistentVolumeClaimReady), and elsewhere when it is bound: then a class that provisions
        nothing is told of here, and not by a build that never starts.
        """
        del models  # none has a bucket
        claim = PersistentVolumeClaim(
            f"{namespace}-{CLAIM}",
            metadata=ObjectMetaArgs(name=CLAIM, namespace=namespace, labels=LABELS),
            spec=PersistentVolumeClaimSpecArgs(
                access_modes=[self._config.access_mode],
                storage_class_name=self._config.storage_class,
                resources=VolumeResourceRequirementsArgs(requests={"storage": _gibibytes(self._config.volume_gib)}),
            ),
            opts=pulumi.ResourceOptions(
                parent=self,
                provider=self.kubernetes,
                depends_on=opts.depends_on if opts else None,
                protect=guarded(self._plan, "storage"),
            ),
        )
        return Volumes(engines_rw=CLAIM, engines_ro=CLAIM, weights={}, resources=[claim])

    def autoscaling(self) -> Autoscaling:
        return Autoscaling()

    def charts(self) -> Sequence[ChartValues]:
        return []

    @classmethod
    def unreachable(cls, plan: CloudPlan) -> list[Problem]:
        # Asking takes the whole Kubernetes client, which nothing else here needs.
        from components.clouds.existing.reach import problems_of

        return problems_of(_config(plan))


def _config(plan: CloudPlan) -> ExistingConfig:
    assert plan.existing is not None, "the plan of an existing cluster says which"
    return plan.existing


def _gibibytes(count: int) -> str:
    """A quantity as Kubernetes writes it back: said in another unit, it would differ at every preview."""
    return f"{count}Gi" if count % 1024 else f"{count // 1024}Ti"
