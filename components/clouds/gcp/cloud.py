"""Google Cloud: a GKE cluster made from a plan, with everything that it stands on."""

from collections.abc import Sequence
from typing import cast

import pulumi
import pulumi_kubernetes

from components.clouds.base import Autoscaling, Cloud, Identity, Volumes, guarded
from components.clouds.gcp.administrators import administer
from components.clouds.gcp.cluster import Cluster, ClusterArgs, node_account
from components.clouds.gcp.compute_classes import compute_class
from components.clouds.gcp.fabric import Fabric, fabrics, network_objects
from components.clouds.gcp.identity import Identities
from components.clouds.gcp.installers import install_gpudirect
from components.clouds.gcp.keys import Keys, KeysArgs
from components.clouds.gcp.network import Network, NetworkArgs
from components.clouds.gcp.pools import GpuPool, NodesArgs, SystemNodes
from components.clouds.gcp.project import cluster_name, provider
from components.clouds.gcp.storage import Storage, StorageArgs
from components.clouds.gcp.volumes import Claims, ClaimsArgs
from components.platform.charts import ChartValues
from planner.errors import Problem
from planner.fleet import CloudPlan
from planner.object_sources import ObjectSource
from planner.plan import ModelPlan
from planner.sources import bucket_prefix as prefix_of
from planner.versions import GPUDIRECT, python_image


class Gcp(Cloud):
    """VPC, GKE, node pools, bucket and file system of one stack. Google Cloud knows it as `<project>-<stack>`."""

    def __init__(
        self, name: str, plan: CloudPlan, models: Sequence[ModelPlan], opts: pulumi.ResourceOptions | None = None
    ) -> None:
        self._prefix, self._plan = name, plan
        self._cluster_name = cluster_name(pulumi.get_project(), pulumi.get_stack())
        self._project = plan.gcp.project or ""  # the planner lets no stack pass without
        inherited = pulumi.ResourceOptions(providers=[provider(name, plan, self._cluster_name)])
        super().__init__(name, plan, models, pulumi.ResourceOptions.merge(inherited, opts))
        self._child = pulumi.ResourceOptions(parent=self)
        account, node_rights = node_account(f"{name}-node", self._cluster_name, self._project, self)
        keys = Keys(f"{name}-keys", KeysArgs(region=plan.region, storage=plan.storage), self._child)
        network = Network(
            f"{name}-network",
            NetworkArgs(
                plan=plan.network,
                region=plan.region,
                node_account=account.email,
                lustre=plan.storage.kind == "lustre",
                keep=plan.storage.keep_data,
            ),
            self._child,
        )
        self._fabrics = fabrics(name, plan, self._project, self._cluster_name, parent=self)
        before_nodes = [keys.disks_grant, *node_rights, *network.ways_out]
        cluster = Cluster(
            f"{name}-cluster",
            ClusterArgs(
                plan=plan,
                project=self._project,
                cluster_name=self._cluster_name,
                network=network,
                node_account=account.email,
                secrets_key=keys.secrets.id,
                disks_key=keys.disks.id,
                reads_bucket=any(prefix_of(model.config.source) is not None for model in models),
                # Its first nodes, which nobody keeps, need what all nodes need.
                depends_on=[keys.secrets_grant, *before_nodes],
            ),
            self._child,
        )
        self._gke, self.kubeconfig = cluster.resource, cluster.kubeconfig
        self.kubernetes = pulumi_kubernetes.Provider(
            f"{name}-kubernetes",
            kubeconfig=self.kubeconfig,
            # Otherwise a kubeconfig that is unknown for a moment would look like another cluster.
            cluster_identifier=self._cluster_name,
            # The network that the objects' controllers need goes after the last of them.
            opts=pulumi.ResourceOptions(parent=self, depends_on=[cluster.resource, *network.ways_out]),
        )
        nodes = NodesArgs(
            plan=plan,
            cluster_name=self._cluster_name,
            cluster=cluster.resource.name,
            service_account=account.email,
            disks_key=keys.disks.id,
            fabrics={kind: fabric.node_networks for kind, fabric in self._fabrics.items()},
            depends_on=before_nodes,
        )
        system = SystemNodes(f"{name}-system", nodes, self._child)
        pools = [GpuPool(f"{name}-{pool.name}", pool, nodes, self._child) for pool in plan.pools]
        self.nodes = [system.pool, *(node_pool for pool in pools for node_pool in pool.pools)]
        self._storage = Storage(
            f"{name}-storage",
            StorageArgs(
                plan=plan.storage,
                project=self._project,
                region=plan.region,
                network=network.network,
                private_services=network.private_services,
                nodes_cidr=plan.network.subnets[0].private_cidr,
                key_id=keys.data.id,
                key_grants=keys.data_grants,
                protect=guarded(plan, "storage"),
            ),
            self._child,
        )
        self.bucket, self.mirrors = self._storage.bucket, {}
        self._identities = Identities(
            name,
            cluster_name=self._cluster_name,
            project=self._project,
            project_number=keys.project_number,
            bucket=self._storage.bucket,
            cluster=cluster.resource,
            parent=self,
        )
        # Objects of Kubernetes have its provider from their parent.
        self._in_cluster = pulumi.ComponentResource(
            "tritonfleet:clouds:GcpObjects",
            f"{name}-objects",
            None,
            pulumi.ResourceOptions(parent=self, providers=[self.kubernetes]),
        )
        for principal in plan.cluster.administrators:
            administer(f"{name}-admin", principal, self._project, parent=self._in_cluster)
        self.register_outputs({"cluster_name": self._cluster_name, "bucket": self.bucket})

    def identity(self, name: str, *, namespace: str, service_account: str, bucket_prefix: str | None) -> Identity:
        if bucket_prefix is None:
            return Identity()
        return self._identities.read_prefix(
            f"{self._prefix}-{name}",
            namespace=namespace,
            service_account=service_account,
            prefix=bucket_prefix.strip("/"),
        )

    def source_reader(self, name: str, *, namespace: str, service_account: str, source: ObjectSource) -> Identity:
        return self._identities.read_source(
            f"{self._prefix}-{name}", namespace=namespace, service_account=service_account, source=source
        )

    def volumes(
        self, namespace: str, models: Sequence[ModelPlan], *, opts: pulumi.ResourceOptions | None = None
    ) -> Volumes:
        # Components do not pass this on to their children.
        awaited = cast(Sequence[pulumi.Resource], opts.depends_on or ()) if opts else ()
        claims = Claims(
            f"{self._prefix}-claims",
            ClaimsArgs(
                namespace=namespace,
                models=models,
                files=self._storage.files,
                bucket=self._storage.bucket,
                protect=guarded(self._plan, "storage"),
                # The drivers are parts of the cluster.
                depends_on=[*awaited, self._gke, *self._storage.files.ready],
            ),
            pulumi.ResourceOptions(parent=self, providers=[self.kubernetes]),
        )
        return claims.volumes

    def autoscaling(self) -> Autoscaling:
        """GKE's own autoscaler, told the order of node pools by compute classes; with it goes what the pods that it
        makes room for find on their nodes."""
        classes = [
            compute_class(f"{self._prefix}-{pool.name}", pool, parent=self._in_cluster, depends_on=self.nodes)
            for pool in self._plan.pools
        ]
        objects = [made for kind, fabric in self._fabrics.items() for made in self._fabric_objects(kind, fabric)]
        return Autoscaling(resources=[*classes, *objects])

    def charts(self) -> Sequence[ChartValues]:
        return []

    @classmethod
    def unreachable(cls, plan: CloudPlan) -> list[Problem]:
        del plan  # all of it is made here
        return []

    def _fabric_objects(self, kind: str, fabric: Fabric) -> list[pulumi.Resource]:
        name = f"{self._prefix}-{kind}"
        objects = network_objects(name, fabric.interfaces, parent=self._in_cluster)
        if kind in GPUDIRECT:
            pools = [pool.name for pool in self._plan.pools if pool.fabric and pool.fabric.kind == kind]
            python = python_image(self._plan.images.python_digest)
            objects += install_gpudirect(
                name, kind, pools, python=python, parent=self._in_cluster, depends_on=self.nodes
            )
        return objects
