"""IAM for the cluster: who may do what, by service account. A policy names resources wherever IAM knows any."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from components.clouds.base import Identity, Way
from planner import cloud_config
from planner.object_sources import ObjectSource

ARN = "arn:aws"
# EKS User Guide, "Set up the Amazon EKS Pod Identity Agent": where it listens on each node.
_AGENT = Way(cidr="169.254.170.23/32", port=80)


def policy(*statements: Mapping[str, Any]) -> pulumi.Output[str]:
    """An IAM policy document; outputs may stand anywhere in a statement."""
    document = {"Version": "2012-10-17", "Statement": list(statements)}
    return pulumi.Output.from_input(document).apply(lambda known: json.dumps(known, sort_keys=True))


def allow(actions: Sequence[str], resources: Any, condition: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A statement that allows actions on resources (one ARN, several, or `*` where IAM knows no resource)."""
    statement: dict[str, Any] = {"Effect": "Allow", "Action": list(actions), "Resource": resources}
    return statement | ({"Condition": condition} if condition else {})


def service_role(
    name: str, service: str, managed_policies: Sequence[str], parent: pulumi.Resource, description: str
) -> tuple[aws.iam.Role, list[aws.iam.RolePolicyAttachment]]:
    """A role of an AWS service, and the attachments that whoever uses it must wait for."""
    child = pulumi.ResourceOptions(parent=parent)
    trust = policy({"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"})
    role = aws.iam.Role(name, assume_role_policy=trust, description=description, opts=child)
    attached = [
        aws.iam.RolePolicyAttachment(
            f"{name}-{managed.rpartition('/')[2]}",
            role=role.name,
            policy_arn=f"{ARN}:iam::aws:policy/{managed}",
            opts=child,
        )
        for managed in managed_policies
    ]
    return role, attached


@dataclass(frozen=True, kw_only=True)
class Identities:
    """Binds service accounts of one cluster to roles, the way that the stack chose.

    IRSA trusts tokens of the cluster's OIDC provider; EKS Pod Identity trusts EKS, which names the service account in
    the session's tags. `issuer` is the provider's URL without its scheme, `network_cidr` holds STS's private endpoint.
    """

    kind: cloud_config.Identity
    cluster: pulumi.Resource
    cluster_name: str
    oidc_provider_arn: pulumi.Output[str]
    issuer: pulumi.Output[str]
    network_cidr: str

    def role(self, name: str, *, namespace: str, service_account: str, parent: pulumi.Resource) -> aws.iam.Role:
        """A role that nobody but this service account of this cluster can take."""
        return aws.iam.Role(
            name,
            assume_role_policy=self._trust(namespace, service_account),
            description=f"{namespace}/{service_account} in {self.cluster_name}",
            opts=pulumi.ResourceOptions(parent=parent),
        )

    def bind(
        self,
        name: str,
        rights: pulumi.Output[str],
        *,
        namespace: str,
        service_account: str,
        parent: pulumi.Resource,
    ) -> Identity:
        """Gives a policy's rights to the service account, through a role of its own."""
        role = self.role(name, namespace=namespace, service_account=service_account, parent=parent)
        granted = aws.iam.RolePolicy(name, role=role.name, policy=rights, opts=pulumi.ResourceOptions(parent=parent))
        if self.kind == "irsa":
            endpoint = Way(cidr=self.network_cidr, port=443)
            return Identity(
                annotations={"eks.amazonaws.com/role-arn": role.arn}, resources=[granted], egress=[endpoint]
            )
        # Pods get its credentials only if it is there when they are made.
        association = aws.eks.PodIdentityAssociation(
            name,
            cluster_name=self.cluster_name,
            namespace=namespace,
            service_account=service_account,
            role_arn=role.arn,
            # The name of the cluster is known long before the cluster is there.
            opts=pulumi.ResourceOptions(parent=parent, depends_on=[self.cluster]),
        )
        return Identity(resources=[granted, association], egress=[_AGENT])

    def _trust(self, namespace: str, service_account: str) -> pulumi.Output[str]:
        if self.kind == "irsa":
            equals = pulumi.Output.all(self.issuer).apply(
                lambda known: {
                    f"{known[0]}:aud": "sts.amazonaws.com",
                    f"{known[0]}:sub": f"system:serviceaccount:{namespace}:{service_account}",
                }
            )
            principal, actions = {"Federated": self.oidc_provider_arn}, ["sts:AssumeRoleWithWebIdentity"]
        else:
            equals = {
                "aws:RequestTag/eks-cluster-name": self.cluster_name,
                "aws:RequestTag/kubernetes-namespace": namespace,
                "aws:RequestTag/kubernetes-service-account": service_account,
            }
            principal, actions = {"Service": "pods.eks.amazonaws.com"}, ["sts:AssumeRole", "sts:TagSession"]
        return policy(
            {"Effect": "Allow", "Principal": principal, "Action": actions, "Condition": {"StringEquals": equals}}
        )


def read_prefix(
    bucket_arn: pulumi.Output[str], key_arn: pulumi.Output[str], region: str, prefix: str
) -> pulumi.Output[str]:
    """Reading one prefix of an encrypted bucket: its objects, the listing below it, and their key through S3 alone."""
    objects = pulumi.Output.concat(bucket_arn, "/", prefix, "/*")
    return policy(
        allow(["s3:GetObject"], objects),
        allow(["s3:ListBucket"], bucket_arn, {"StringLike": {"s3:prefix": f"{prefix}/*"}}),
        allow(["kms:Decrypt"], key_arn, {"StringEquals": {"kms:ViaService": f"s3.{region}.amazonaws.com"}}),
    )


def read_source(source: ObjectSource) -> pulumi.Output[str]:
    """Reading a bucket that somebody else made, below a prefix. Its key is not known: what S3 encrypted for these
    objects may be decrypted, by way of S3 and where the key's own policy allows it."""
    arn = f"{ARN}:s3:::{source.bucket}"
    below = f"{source.prefix}/*" if source.prefix else "*"
    listing = {"StringLike": {"s3:prefix": below}} if source.prefix else None
    # S3 User Guide, "SSE-KMS encryption context": the object's ARN, or the bucket's where it has a bucket key.
    of_objects = {"kms:ViaService": "s3.*.amazonaws.com", "kms:EncryptionContext:aws:s3:arn": [arn, f"{arn}/{below}"]}
    return policy(
        allow(["s3:GetObject"], f"{arn}/{below}"),
        allow(["s3:ListBucket"], arn, listing),
        allow(["kms:Decrypt"], f"{ARN}:kms:*:*:key/*", {"StringLike": of_objects}),
    )


def autoscaler_policy(cluster_name: str, region: str, account: pulumi.Input[str]) -> pulumi.Output[str]:
    """What the autoscaler's AWS provider calls: reading is not tied to a resource by IAM, changing is by EKS's tag."""
    owned = {"StringEquals": {f"aws:ResourceTag/k8s.io/cluster-autoscaler/{cluster_name}": "owned"}}
    return policy(
        allow(
            [
                "autoscaling:DescribeAutoScalingGroups",
                "autoscaling:DescribeAutoScalingInstances",
                "autoscaling:DescribeLaunchConfigurations",
                "autoscaling:DescribeScalingActivities",
                "autoscaling:DescribeTags",
                "ec2:DescribeImages",
                "ec2:DescribeInstanceTypes",
                "ec2:DescribeLaunchTemplateVersions",
                "ec2:GetInstanceTypesFromInstanceRequirements",
            ],
            "*",
        ),
        allow(["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"], "*", owned),
        allow(
            ["eks:DescribeNodegroup"],
            pulumi.Output.concat(f"{ARN}:eks:{region}:", account, f":nodegroup/{cluster_name}/*"),
        ),
    )
