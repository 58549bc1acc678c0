"""The EKS control plane, its log group and keys, and the add-ons that nodes and pods cannot do without."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws
import pulumi_eks as eks

from components.clouds.aws.identity import ARN, Identities
from components.clouds.aws.network import LOG_DAYS, NetworkIds
from components.clouds.base import guarded
from planner.fleet import CloudPlan

CONTROL_PLANE_LOGS = ("api", "audit", "authenticator", "controllerManager", "scheduler")
_ADMINISTRATOR = f"{ARN}:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"


@dataclass(frozen=True, kw_only=True)
class ClusterArgs:
    """`cluster_name` is the name in AWS; `secrets_key_arn` encrypts Kubernetes secrets, `log_key_arn` the logs."""

    plan: CloudPlan
    cluster_name: str
    network: NetworkIds
    secrets_key_arn: pulumi.Input[str]
    log_key_arn: pulumi.Input[str]


class Cluster(pulumi.ComponentResource):
    """The control plane, without nodes. Nodes need `before_nodes`; `security_group_id` is what all of them share.

    Whoever speaks to Kubernetes needs `api_rules` to be there, and to be there still when the stack is taken down.
    """

    cluster_name: str
    kubeconfig: pulumi.Output[str]
    security_group_id: pulumi.Output[str]
    identities: Identities
    resource: eks.Cluster
    api_rules: list[pulumi.Resource]
    before_nodes: list[pulumi.Resource]

    def __init__(self, name: str, args: ClusterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AwsCluster", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        plan, config = args.plan, args.plan.cluster
        # EKS would make this group itself: unencrypted, and kept for ever.
        logs = aws.cloudwatch.LogGroup(
            f"{name}-logs",
            name=control_plane_log_group(args.cluster_name),
            kms_key_id=args.log_key_arn,
            retention_in_days=LOG_DAYS,
            opts=child,
        )
        self.cluster_name = args.cluster_name
        self.resource = eks.Cluster(
            f"{name}-eks",
            name=args.cluster_name,
            version=config.kubernetes_version,
            vpc_id=args.network.vpc,
            private_subnet_ids=list(args.network.private_subnets.values()),
            kubernetes_service_ip_address_range=plan.network.service_cidr,
            authentication_mode=eks.AuthenticationMode.API,
            access_entries={_entry_name(arn): _administrator(arn) for arn in config.administrators},
            encryption_config_key_arn=args.secrets_key_arn,
            enabled_cluster_log_types=list(CONTROL_PLANE_LOGS),
            endpoint_private_access=True,
            endpoint_public_access=bool(config.api_cidrs),
            public_access_cidrs=list(config.api_cidrs) or None,
            create_oidc_provider=plan.aws.identity == "irsa",
            # Everything below this control plane is made in the open, by us: node groups, add-ons, security groups.
            skip_default_node_group=True,
            skip_default_security_groups=True,
            create_instance_role=False,
            node_associate_public_ip_address=False,
            bootstrap_self_managed_addons=False,
            use_default_vpc_cni=True,
            kube_proxy_addon_options=eks.KubeProxyAddonOptionsArgs(enabled=False),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[logs], protect=guarded(plan, "cluster")),
        )
        self.kubeconfig = pulumi.Output.secret(self.resource.kubeconfig_json)
        self.security_group_id = self.resource.cluster_security_group_id
        self.identities = Identities(
            kind=plan.aws.identity,
            cluster=self.resource,
            cluster_name=args.cluster_name,
            oidc_provider_arn=self.resource.oidc_provider_arn,
            issuer=self.resource.oidc_issuer,
            network_cidr=plan.network.cidr,
        )
        # The private endpoint answers only whom this group admits: by default nodes, and nobody who deploys.
        self.api_rules = [
            aws.vpc.SecurityGroupIngressRule(
                f"{name}-api-{cidr}",
                security_group_id=self.security_group_id,
                description="Kubernetes API from the VPC and the networks peered with it",
                cidr_ipv4=cidr,
                ip_protocol="tcp",
                from_port=443,
                to_port=443,
                opts=child,
            )
            for cidr in (plan.network.cidr, *plan.network.peered_cidrs)
        ]
        self.before_nodes = self._network_add_ons(name, plan)
        self.register_outputs({"cluster_name": args.cluster_name})

    def _network_add_ons(self, name: str, plan: CloudPlan) -> list[pulumi.Resource]:
        """What a node needs to become ready, and so does not wait for nodes itself."""
        role = self.identities.role(f"{name}-cni", namespace="kube-system", service_account="aws-node", parent=self)
        attached = aws.iam.RolePolicyAttachment(
            f"{name}-cni",
            role=role.name,
            policy_arn=f"{ARN}:iam::aws:policy/AmazonEKS_CNI_Policy",
            opts=pulumi.ResourceOptions(parent=self),
        )
        agent: list[pulumi.Resource] = []
        if plan.aws.identity == "pod-identity":
            agent = [add_on(f"{name}-pod-identity", "eks-pod-identity-agent", self, parent=self)]
        cni = add_on(
            f"{name}-cni",
            "vpc-cni",
            self,
            # NetworkPolicies are wishes until the CNI enforces them.
            values={"enableNetworkPolicy": "true"},
            role=role,
            service_account="aws-node",
            parent=self,
            depends_on=[attached, *agent],
        )
        return [*agent, cni, add_on(f"{name}-kube-proxy", "kube-proxy", self, parent=self)]


def add_on(
    name: str,
    add_on_name: str,
    cluster: Cluster,
    *,
    parent: pulumi.Resource,
    values: dict[str, Any] | None = None,
    role: aws.iam.Role | None = None,
    service_account: str | None = None,
    depends_on: Sequence[pulumi.Resource] = (),
) -> aws.eks.Addon:
    """An EKS add-on at the version that EKS has as default for the cluster's Kubernetes version.

    No version is given on purpose. EKS chooses at creation and keeps its choice, so nothing changes behind our back
    (pulumi-eks would look up the most recent one at every preview), while a version pinned here is one that EKS
    withdraws some day, and that some Kubernetes versions never had.
    """
    irsa = cluster.identities.kind == "irsa"
    bound = aws.eks.AddonPodIdentityAssociationArgs
    return aws.eks.Addon(
        name,
        cluster_name=cluster.cluster_name,
        addon_name=add_on_name,
        configuration_values=json.dumps(values, sort_keys=True) if values else None,
        service_account_role_arn=role.arn if role and irsa else None,
        pod_identity_associations=[bound(role_arn=role.arn, service_account=service_account)]
        if role and service_account and not irsa
        else None,
        resolve_conflicts_on_create="OVERWRITE",
        resolve_conflicts_on_update="OVERWRITE",
        opts=pulumi.ResourceOptions(parent=parent, depends_on=[cluster.resource, *depends_on]),
    )


def control_plane_log_group(cluster_name: str) -> str:
    """EKS writes to this name and no other."""
    return f"/aws/eks/{cluster_name}/cluster"


def _administrator(arn: str) -> eks.AccessEntryArgs:
    everywhere = aws.eks.AccessPolicyAssociationAccessScopeArgs(type="cluster")
    return eks.AccessEntryArgs(
        principal_arn=arn,
        access_policies={"admin": eks.AccessPolicyAssociationArgs(policy_arn=_ADMINISTRATOR, access_scope=everywhere)},
    )


def _entry_name(arn: str) -> str:
    """Names the entry by whom it admits, so that another order of administrators changes nothing."""
    return f"admin-{hashlib.sha256(arn.encode()).hexdigest()[:8]}"
