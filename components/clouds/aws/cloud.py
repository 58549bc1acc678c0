"""AWS: an EKS cluster made from a plan, with everything that it stands on."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import pulumi
import pulumi_aws as aws
import pulumi_eks
import pulumi_kubernetes

from components.clouds.aws.cluster import Cluster, ClusterArgs, add_on
from components.clouds.aws.identity import autoscaler_policy, read_prefix, read_source, service_role
from components.clouds.aws.keys import Keys, KeysArgs
from components.clouds.aws.network import Network, NetworkArgs, NetworkIds, existing_network
from components.clouds.aws.pools import GpuPool, NodesArgs, SystemNodes, scaling_group_pattern
from components.clouds.aws.pull_through import pull_through_caches
from components.clouds.aws.storage import Storage, StorageArgs, kept_zone
from components.clouds.aws.volumes import Claims, ClaimsArgs
from components.clouds.base import AutoscalerChart, Autoscaling, Cloud, Identity, Volumes, guarded
from components.platform.charts import ChartValues, gpu_node_tolerations
from planner.errors import Problem
from planner.fleet import CloudPlan
from planner.object_sources import ObjectSource
from planner.plan import ModelPlan
from planner.pool_labels import POOL_LABEL
from planner.sources import bucket_prefix as prefix_of

NODE_POLICIES = ("AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly")
"""All that a node itself may do: find itself, join, pull images. Pods and the CNI have roles of their own."""

_CSI_DRIVERS = {"nfs": "aws-efs-csi-driver", "lustre": "aws-fsx-csi-driver"}


class Aws(Cloud):
    """VPC, EKS, node groups, bucket and file system of one stack. AWS knows it as `<project>-<stack>`."""

    def __init__(
        self, name: str, plan: CloudPlan, models: Sequence[ModelPlan], opts: pulumi.ResourceOptions | None = None
    ) -> None:
        self._prefix, self._plan = name, plan
        self._cluster_name = cluster_name(pulumi.get_project(), pulumi.get_stack())
        # Default providers are off: pulumi-eks, a component of another process, needs one of its own to run at all.
        inherited = pulumi.ResourceOptions(providers=[self._aws(), pulumi_eks.Provider(name)])
        super().__init__(name, plan, models, pulumi.ResourceOptions.merge(inherited, opts))
        self._child = pulumi.ResourceOptions(parent=self)
        node_role, node_rights = service_role(
            f"{name}-node", "ec2.amazonaws.com", NODE_POLICIES, self, f"Nodes of {self._cluster_name}"
        )
        # The account is asked of no API: what is made in it carries its number.
        self._account = pulumi.Output.from_input(plan.aws.account or node_role.arn.apply(lambda arn: arn.split(":")[4]))
        self._keys = Keys(
            f"{name}-keys",
            KeysArgs(
                cluster_name=self._cluster_name,
                region=plan.region,
                account=self._account,
                keep=plan.storage.keep_data,
            ),
            self._child,
        )
        network = self._network()
        self._cluster = Cluster(
            f"{name}-cluster",
            ClusterArgs(
                plan=plan,
                cluster_name=self._cluster_name,
                network=network,
                secrets_key_arn=self._keys.secrets.arn,
                log_key_arn=self._keys.logs.arn,
            ),
            self._child,
        )
        self.kubeconfig = self._cluster.kubeconfig
        self.kubernetes = pulumi_kubernetes.Provider(
            f"{name}-kubernetes",
            kubeconfig=self.kubeconfig,
            # Otherwise a kubeconfig that is unknown for a moment would look like another cluster.
            cluster_identifier=self._cluster_name,
            # What admits Pulumi to the private endpoint comes before the first object, and goes after the last one.
            opts=pulumi.ResourceOptions(parent=self, depends_on=self._cluster.api_rules),
        )
        nodes = NodesArgs(
            plan=plan,
            cluster_name=self._cluster_name,
            network=network,
            node_role_arn=node_role.arn,
            security_group_id=self._cluster.security_group_id,
            depends_on=[self._cluster.resource, *self._cluster.before_nodes, *node_rights, *network.ways_out],
        )
        system = SystemNodes(f"{name}-system", nodes, self._child)
        pools = [GpuPool(f"{name}-{pool.name}", pool, nodes, self._child) for pool in plan.pools]
        self._storage = Storage(
            f"{name}-storage",
            StorageArgs(
                plan=plan.storage,
                network=network,
                security_group_id=self._cluster.security_group_id,
                key_arn=self._keys.data.arn,
                protect=guarded(plan, "storage"),
            ),
            self._child,
        )
        self.bucket = self._storage.bucket.bucket
        names = add_on(f"{name}-coredns", "coredns", self._cluster, parent=self, depends_on=[system.group])
        self._drivers = self._csi_drivers(models, system.group)
        self.nodes = [system.group, *(group for pool in pools for group in pool.groups), names]
        self.mirrors = self._mirrors(node_role)
        self.register_outputs({"cluster_name": self._cluster_name, "bucket": self.bucket})

    def identity(self, name: str, *, namespace: str, service_account: str, bucket_prefix: str | None) -> Identity:
        if bucket_prefix is None:
            return Identity()
        rights = read_prefix(self._storage.bucket.arn, self._keys.data.arn, self._plan.region, bucket_prefix.strip("/"))
        return self._grant(name, rights, namespace, service_account)

    def source_reader(self, name: str, *, namespace: str, service_account: str, source: ObjectSource) -> Identity:
        return self._grant(name, read_source(source), namespace, service_account)

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
                bucket=self._storage.bucket.bucket,
                region=self._plan.region,
                protect=guarded(self._plan, "storage"),
                depends_on=[*awaited, *self._drivers, *self._storage.files.ready],
            ),
            pulumi.ResourceOptions(parent=self, providers=[self.kubernetes]),
        )
        return claims.volumes

    def autoscaling(self) -> Autoscaling:
        rights = autoscaler_policy(self._cluster_name, self._plan.region, self._account)
        identity = self._grant("autoscaler", rights, "kube-system", "cluster-autoscaler")
        values = {
            "cloudProvider": "aws",
            "awsRegion": self._plan.region,
            "autoDiscovery": {"clusterName": self._cluster_name},
        }
        return Autoscaling(
            chart=AutoscalerChart(annotations=identity.annotations, values=values),
            group_pattern=partial(scaling_group_pattern, self._prefix),
            resources=identity.resources,
        )

    def charts(self) -> Sequence[ChartValues]:
        pools = [pool.name for pool in self._plan.pools if pool.rdma_interfaces]
        if not pools:
            return []
        values = {
            "tolerations": gpu_node_tolerations(self._plan),
            # The chart lists instance types; our label says the same of types that it does not know yet.
            "supportedInstanceLabels": {"keys": [POOL_LABEL], "values": pools},
        }
        return [
            ChartValues(chart="aws-efa-k8s-device-plugin", namespace="kube-system", values=values, on_gpu_nodes=True)
        ]

    @classmethod
    def unreachable(cls, plan: CloudPlan) -> list[Problem]:
        del plan  # all of it is made here
        return []

    def _aws(self) -> aws.Provider:
        account = self._plan.aws.account
        return aws.Provider(
            self._prefix,
            region=self._plan.region,
            # Credentials of another account end the update before it has made anything there.
            allowed_account_ids=[account] if account else None,
            default_tags=aws.ProviderDefaultTagsArgs(
                tags={"tritonfleet.io/cluster": self._cluster_name, "app.kubernetes.io/managed-by": "pulumi"}
            ),
        )

    def _network(self) -> NetworkIds:
        plan = self._plan
        existing = existing_network(plan.network)
        if existing is not None:
            return existing
        args = NetworkArgs(
            plan=plan.network,
            region=plan.region,
            cluster_name=self._cluster_name,
            identity=plan.aws.identity,
            log_key_arn=self._keys.logs.arn,
            kept_zone=kept_zone(plan.storage),
        )
        return Network(f"{self._prefix}-network", args, self._child).ids

    def _csi_drivers(self, models: Sequence[ModelPlan], system: aws.eks.NodeGroup) -> list[pulumi.Resource]:
        """The drivers of what pods mount. They only mount what exists, calling no AWS API, and so get no role.

        All three run on tainted nodes by default.
        """
        kinds = [_CSI_DRIVERS[self._plan.storage.kind]]
        if any(prefix_of(model.config.source) is not None for model in models):
            kinds.append("aws-mountpoint-s3-csi-driver")
        return [
            add_on(f"{self._prefix}-{kind.removeprefix('aws-')}", kind, self._cluster, parent=self, depends_on=[system])
            for kind in kinds
        ]

    def _mirrors(self, node_role: aws.iam.Role) -> Mapping[str, pulumi.Output[str]]:
        if not self._plan.images.pull_through:
            return {}
        return pull_through_caches(
            self._prefix,
            cluster_name=self._cluster_name,
            region=self._plan.region,
            account=self._account,
            node_role=node_role,
            parent=self,
        )

    def _grant(self, name: str, rights: pulumi.Output[str], namespace: str, service_account: str) -> Identity:
        return self._cluster.identities.bind(
            f"{self._prefix}-{name}", rights, namespace=namespace, service_account=service_account, parent=self
        )


def cluster_name(project: str, stack: str) -> str:
    """The cluster's name in AWS, in the letters that EKS and ECR both take. Known before anything exists."""
    return re.sub("[^a-z0-9]+", "-", f"{project}-{stack}".lower()).strip("-")
