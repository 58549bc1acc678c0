"""ECR as a cache of public image registries: nodes pull from inside the region, and a registry's bad day passes by."""

import hashlib

import pulumi
import pulumi_aws as aws

from components.clouds.aws.identity import ARN, allow, policy

UPSTREAMS = {"registry.k8s.io": "kubernetes", "public.ecr.aws": "ecr-public", "quay.io": "quay"}
"""Registries that ECR caches without credentials (ECR User Guide, "pull through cache"), and our names for them."""


def pull_through_caches(
    name: str,
    *,
    cluster_name: str,
    region: str,
    account: pulumi.Input[str],
    node_role: aws.iam.Role,
    parent: pulumi.Resource,
) -> dict[str, pulumi.Output[str]]:
    """A cache for every upstream, and the nodes' right to fill it; by registry, where its images are cached."""
    child = pulumi.ResourceOptions(parent=parent)
    prefix = cache_prefix(cluster_name)
    aws.iam.RolePolicy(
        f"{name}-pull-through",
        role=node_role.name,
        # The first pull of an image makes its repository, with the rights of the node that pulls.
        policy=policy(
            allow(
                ["ecr:BatchImportUpstreamImage", "ecr:CreateRepository"],
                pulumi.Output.concat(f"{ARN}:ecr:{region}:", account, f":repository/{prefix}/*"),
            )
        ),
        opts=child,
    )
    mirrors: dict[str, pulumi.Output[str]] = {}
    for registry, short in UPSTREAMS.items():
        rule = aws.ecr.PullThroughCacheRule(
            f"{name}-{short}",
            ecr_repository_prefix=f"{prefix}/{short}",
            upstream_registry_url=registry,
            opts=child,
        )
        mirrors[registry] = pulumi.Output.concat(
            rule.registry_id, f".dkr.ecr.{region}.amazonaws.com/", rule.ecr_repository_prefix
        )
    return mirrors


def cache_prefix(cluster_name: str) -> str:
    """Rules are the account's, so the cluster's name sets them apart; ECR leaves 30 characters for all of it."""
    room = 30 - 1 - max(map(len, UPSTREAMS.values()))
    if len(cluster_name) <= room:
        return cluster_name
    return f"{cluster_name[: room - 7].rstrip('-')}-{hashlib.sha256(cluster_name.encode()).hexdigest()[:6]}"
