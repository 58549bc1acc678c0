"""Azure: an AKS cluster made from a plan, with everything that it stands on."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pulumi
import pulumi_azure_native as azure
import pulumi_kubernetes
from pulumi_azure_native.resources import ResourceGroup

from components.clouds.azure.cluster import Cluster, ClusterArgs
from components.clouds.azure.identity import Readers, ReadersArgs
from components.clouds.azure.infiniband import Infiniband, InfinibandArgs
from components.clouds.azure.keys import Keys, KeysArgs
from components.clouds.azure.lustre_driver import LustreDriver
from components.clouds.azure.network import Network, NetworkArgs, keeps_network
from components.clouds.azure.pools import GpuPool, PoolArgs, scale_set_pattern
from components.clouds.azure.storage import Storage, StorageArgs
from components.clouds.azure.volumes import Claims, ClaimsArgs
from components.clouds.base import Autoscaling, Cloud, Identity, Volumes, guarded
from components.platform.charts import ChartValues
from planner.errors import Problem
from planner.fleet import CloudPlan
from planner.object_sources import ObjectSource, storage_account
from planner.plan import ModelPlan
from planner.sources import bucket_prefix as prefix_of


class Azure(Cloud):
    """Resource group, network, AKS, agent pools, bucket and file system of one stack. Azure knows the cluster as
    `<project>-<stack>`."""

    def __init__(
        self, name: str, plan: CloudPlan, models: Sequence[ModelPlan], opts: pulumi.ResourceOptions | None = None
    ) -> None:
        self._prefix, self._plan = name, plan
        provider = azure.Provider(name, subscription_id=plan.azure.subscription)
        inherited = pulumi.ResourceOptions(providers=[provider])
        super().__init__(name, plan, models, pulumi.ResourceOptions.merge(inherited, opts))
        self._child = pulumi.ResourceOptions(parent=self)
        named, keep = cluster_name(pulumi.get_project(), pulumi.get_stack()), plan.storage.keep_data
        # With a suffix of Pulumi's: a group that was kept does not stand in the way of the next one.
        self._group = ResourceGroup(
            f"{name}-{named}",
            location=plan.region,
            opts=pulumi.ResourceOptions(parent=self, protect=keep, retain_on_delete=keep),
        )
        # Azure is asked for no subscription: what is made in it carries its id.
        subscription = self._group.id.apply(lambda id_: id_.split("/")[2])
        keys = Keys(
            f"{name}-keys",
            KeysArgs(
                region=plan.region,
                resource_group=self._group.name,
                subscription=subscription,
                keep=keep,
                lustre=plan.storage.kind == "lustre",
            ),
            self._child,
        )
        network = Network(
            f"{name}-network",
            NetworkArgs(
                plan=plan.network,
                region=plan.region,
                resource_group=self._group.name,
                kept=keeps_network(plan.storage),
            ),
            self._child,
        )
        self._cluster = Cluster(
            f"{name}-cluster",
            ClusterArgs(
                plan=plan,
                cluster_name=named,
                resource_group=self._group.name,
                subscription=subscription,
                network=network,
                disk_encryption_set_id=keys.disks.id,
                disks_granted=keys.disks_granted,
                blobs=any(prefix_of(model.config.source) is not None for model in models),
            ),
            self._child,
        )
        self.kubeconfig = self._cluster.kubeconfig
        self.kubernetes = pulumi_kubernetes.Provider(
            f"{name}-kubernetes",
            kubeconfig=self.kubeconfig,
            # Otherwise a kubeconfig that is unknown for a moment would look like another cluster.
            cluster_identifier=named,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[self._cluster.resource]),
        )
        pools = self._pools(network)
        self._storage = Storage(
            f"{name}-storage",
            StorageArgs(
                plan=plan.storage,
                resource_group=self._group.name,
                region=plan.region,
                zones=plan.network.zones,
                api_cidrs=plan.cluster.api_cidrs,
                network_id=network.id,
                endpoint_subnet_id=network.endpoints,
                lustre_subnet_id=network.lustre,
                # Azure knows a new right everywhere after minutes, and a cluster takes minutes to make.
                key=replace(keys.data, granted=[*keys.data.granted, self._cluster.resource]),
                protect=guarded(plan, "storage"),
            ),
            self._child,
        )
        self.bucket = self._storage.bucket.url
        self._readers = Readers(
            f"{name}-readers",
            ReadersArgs(
                subscription=subscription,
                resource_group=self._group.name,
                region=plan.region,
                issuer=self._cluster.issuer,
                bucket=self._storage.bucket,
            ),
            self._child,
        )
        self._inside = pulumi.ResourceOptions(parent=self, providers=[self.kubernetes])
        self._drivers: list[pulumi.Resource] = []
        if plan.storage.kind == "lustre":
            self._drivers = LustreDriver(f"{name}-lustre-driver", self._inside).resources
        self.nodes = [self._cluster.resource, *(group for pool in pools for group in pool.groups)]
        if any(pool.fabric for pool in plan.pools):
            Infiniband(f"{name}-infiniband", InfinibandArgs(plan=plan, nodes=self.nodes), self._inside)
        self.mirrors = {}
        self.register_outputs({"cluster_name": named, "bucket": self.bucket})

    def identity(self, name: str, *, namespace: str, service_account: str, bucket_prefix: str | None) -> Identity:
        return self._readers.identity(
            name, namespace=namespace, service_account=service_account, bucket_prefix=bucket_prefix
        )

    def source_reader(self, name: str, *, namespace: str, service_account: str, source: ObjectSource) -> Identity:
        account_id = storage_account(self._plan.azure.storage_accounts, source.account)
        assert account_id, f"the planner lets no stack pass that does not say where {source.account} is"
        return self._readers.source_identity(
            name, namespace=namespace, service_account=service_account, source=source, account_id=account_id
        )

    def volumes(
        self, namespace: str, models: Sequence[ModelPlan], *, opts: pulumi.ResourceOptions | None = None
    ) -> Volumes:
        # Components do not pass this on to their children.
        awaited = cast(Sequence[pulumi.Resource], opts.depends_on or ()) if opts else ()
        storage = self._storage
        claims = Claims(
            f"{self._prefix}-claims",
            ClaimsArgs(
                namespace=namespace,
                models=models,
                files=storage.files,
                bucket=storage.bucket,
                readers=self._readers,
                protect=guarded(self._plan, "storage"),
                depends_on=[*awaited, *self._drivers, *storage.files.ready, *storage.bucket.ready],
            ),
            self._inside,
        )
        return claims.volumes

    def autoscaling(self) -> Autoscaling:
        return Autoscaling(group_pattern=scale_set_pattern)

    def charts(self) -> Sequence[ChartValues]:
        # InfiniBand's comes with an object of its own kind, which has to wait for it.
        return []

    @classmethod
    def unreachable(cls, plan: CloudPlan) -> list[Problem]:
        del plan  # all of it is made here
        return []

    def _pools(self, network: Network) -> list[GpuPool]:
        args = PoolArgs(
            plan=self._plan,
            cluster_name=self._cluster.resource.name,
            resource_group=self._group.name,
            subnet_id=network.nodes,
            depends_on=[self._cluster.resource],
        )
        return [GpuPool(f"{self._prefix}-{pool.name}", pool, args, self._child) for pool in self._plan.pools]


def cluster_name(project: str, stack: str) -> str:
    """The cluster's name in Azure. Known before anything exists.

    So short that the resource group's, which is longer by `azure-` and Pulumi's eight letters, keeps to the 63 that AKS
    allows it with an overlay.
    """
    return re.sub("[^a-z0-9]+", "-", f"{project}-{stack}".lower())[:48].strip("-")
