"""Who may do what in AWS: nobody but the named service account, and nothing but the named prefix."""

import json
from typing import Any

import pulumi
import pytest

from components.clouds.aws.cloud import Aws
from components.clouds.base import Identity, Way
from planner.object_sources import object_source
from tests.components.aws.stacks import build, document, site, with_pod_identity
from tests.components.world import Recorded

STACK = "aws-dev"
ISSUER = "fleet-cluster-eks-oidcIssuer"


def granted(kind: str, prefix: str | None = "llama/8b") -> tuple[Recorded, dict[str, Any]]:
    """A world in which the service account serving/model may read a prefix, and the account's annotations."""
    plan = site(STACK) if kind == "irsa" else with_pod_identity(site(STACK))

    def use(cloud: Aws) -> None:
        identity = cloud.identity("model", namespace="serving", service_account="model", bucket_prefix=prefix)
        pulumi.export("annotations", dict(identity.annotations))
        pulumi.export("awaited", [resource.urn for resource in identity.resources])

    recorded = build(plan, (), use)
    return recorded, recorded.outputs["annotations"]


def test_irsa_trusts_one_service_account_of_this_cluster() -> None:
    recorded, annotations = granted("irsa")
    (trust,) = document(recorded.one("Role", "fleet-model"), "assumeRolePolicy")

    assert annotations == {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:fleet-model"}
    assert trust["Action"] == ["sts:AssumeRoleWithWebIdentity"]
    assert trust["Principal"] == {"Federated": "fleet-cluster-eks-oidcProviderArn"}
    assert trust["Condition"] == {
        "StringEquals": {
            f"{ISSUER}:aud": "sts.amazonaws.com",
            f"{ISSUER}:sub": "system:serviceaccount:serving:model",
        }
    }
    assert not recorded.of("PodIdentityAssociation")


def test_pod_identity_associates_one_service_account_of_this_cluster() -> None:
    recorded, annotations = granted("pod-identity")
    (trust,) = document(recorded.one("Role", "fleet-model"), "assumeRolePolicy")

    assert annotations == {}
    assert trust["Principal"] == {"Service": "pods.eks.amazonaws.com"}
    assert set(trust["Action"]) == {"sts:AssumeRole", "sts:TagSession"}
    assert trust["Condition"] == {
        "StringEquals": {
            "aws:RequestTag/eks-cluster-name": "tritonfleet-stack",
            "aws:RequestTag/kubernetes-namespace": "serving",
            "aws:RequestTag/kubernetes-service-account": "model",
        }
    }
    assert recorded.one("PodIdentityAssociation", "fleet-model").inputs == {
        "clusterName": "tritonfleet-stack",
        "namespace": "serving",
        "serviceAccount": "model",
        "roleArn": "arn:aws:iam::123456789012:fleet-model",
    }


@pytest.mark.parametrize("kind", ["irsa", "pod-identity"])
@pytest.mark.parametrize("prefix", ["llama/8b", "llama/8b/", "/llama/8b"])
def test_a_service_account_reads_its_prefix_and_nothing_else(kind: str, prefix: str) -> None:
    recorded, _ = granted(kind, prefix)
    policy = recorded.one("RolePolicy", "fleet-model")
    objects, listing, key = document(policy)
    bucket = "arn:aws:s3::123456789012:fleet-storage-models"

    assert policy.inputs["role"] == "fleet-model-name"
    assert (objects["Action"], objects["Resource"]) == (["s3:GetObject"], f"{bucket}/llama/8b/*")
    assert (listing["Action"], listing["Resource"]) == (["s3:ListBucket"], bucket)
    assert listing["Condition"] == {"StringLike": {"s3:prefix": "llama/8b/*"}}
    assert (key["Action"], key["Resource"]) == (["kms:Decrypt"], "arn:aws:kms::123456789012:fleet-keys-data")
    assert key["Condition"] == {"StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}}


@pytest.mark.parametrize("kind", ["irsa", "pod-identity"])
def test_a_service_account_without_a_prefix_gets_no_identity_at_all(kind: str) -> None:
    recorded, annotations = granted(kind, None)

    assert annotations == {}
    assert not recorded.of("Role", "fleet-model")
    assert not recorded.of("PodIdentityAssociation")


@pytest.mark.parametrize(("kind", "count"), [("irsa", 1), ("pod-identity", 2)])
def test_pods_wait_for_their_rights_and_for_what_hands_them_over(kind: str, count: int) -> None:
    recorded, _ = granted(kind)
    made = [*recorded.of("RolePolicy", "fleet-model"), *recorded.of("PodIdentityAssociation", "fleet-model")]

    assert len(made) == count
    assert {resource.urn for resource in made} == set(recorded.outputs["awaited"])


def fetcher(kind: str, source: str) -> tuple[Recorded, Identity]:
    """A world in which the service account serving/fetch may read a bucket that the stack did not make."""
    plan = site(STACK) if kind == "irsa" else with_pod_identity(site(STACK))
    found: list[Identity] = []
    read = object_source(source)
    assert read is not None
    recorded = build(
        plan,
        (),
        lambda cloud: found.append(
            cloud.source_reader("fetch", namespace="serving", service_account="fetch", source=read)
        ),
    )
    return recorded, found[0]


@pytest.mark.parametrize("kind", ["irsa", "pod-identity"])
def test_of_another_bucket_an_account_reads_one_prefix_and_its_objects_key(kind: str) -> None:
    recorded, _ = fetcher(kind, "s3://other-bucket/llama/8b/")
    objects, listing, key = document(recorded.one("RolePolicy", "fleet-fetch"))
    bucket = "arn:aws:s3:::other-bucket"

    assert (objects["Action"], objects["Resource"]) == (["s3:GetObject"], f"{bucket}/llama/8b/*")
    assert (listing["Action"], listing["Resource"]) == (["s3:ListBucket"], bucket)
    assert listing["Condition"] == {"StringLike": {"s3:prefix": "llama/8b/*"}}
    assert key["Action"] == ["kms:Decrypt"]
    assert key["Condition"]["StringLike"] == {
        "kms:ViaService": "s3.*.amazonaws.com",
        "kms:EncryptionContext:aws:s3:arn": [bucket, f"{bucket}/llama/8b/*"],
    }
    (trust,) = document(recorded.one("Role", "fleet-fetch"), "assumeRolePolicy")
    assert "fetch" in json.dumps(trust["Condition"])


def test_a_whole_bucket_is_read_where_no_prefix_is_given() -> None:
    objects, listing, _ = document(fetcher("irsa", "s3://other-bucket")[0].one("RolePolicy", "fleet-fetch"))

    assert objects["Resource"] == "arn:aws:s3:::other-bucket/*"
    assert "Condition" not in listing


def test_credentials_come_from_stss_private_endpoint_or_from_the_nodes_agent() -> None:
    network = site(STACK).network.cidr

    assert fetcher("irsa", "s3://b-b-b/x")[1].egress == [Way(cidr=network, port=443)]
    assert fetcher("pod-identity", "s3://b-b-b/x")[1].egress == [Way(cidr="169.254.170.23/32", port=80)]


@pytest.mark.parametrize("kind", ["irsa", "pod-identity"])
def test_the_autoscaler_changes_this_clusters_groups_only(kind: str) -> None:
    plan = site(STACK) if kind == "irsa" else with_pod_identity(site(STACK))
    seen: list[Any] = []

    def use(cloud: Aws) -> None:
        seen.append(cloud.autoscaling())
        pulumi.export("awaited", [resource.urn for resource in seen[0].resources])

    recorded = build(plan, (), use)
    reads, changes, groups = document(recorded.one("RolePolicy", "fleet-autoscaler"))

    assert all(action.split(":")[1].startswith(("Describe", "Get")) for action in reads["Action"])
    assert set(changes["Action"]) == {
        "autoscaling:SetDesiredCapacity",
        "autoscaling:TerminateInstanceInAutoScalingGroup",
    }
    assert changes["Condition"] == {
        "StringEquals": {"aws:ResourceTag/k8s.io/cluster-autoscaler/tritonfleet-stack": "owned"}
    }
    assert groups["Action"] == ["eks:DescribeNodegroup"]
    assert groups["Resource"] == "arn:aws:eks:us-east-1:123456789012:nodegroup/tritonfleet-stack/*"
    (trust,) = document(recorded.one("Role", "fleet-autoscaler"), "assumeRolePolicy")
    assert "cluster-autoscaler" in json.dumps(trust["Condition"])
    assert bool(seen[0].chart.annotations) is (kind == "irsa")
    associations = recorded.of("PodIdentityAssociation")
    assert len(associations) == (kind == "pod-identity")
    rights = [recorded.one("RolePolicy", "fleet-autoscaler"), *associations]
    assert set(recorded.outputs["awaited"]) == {resource.urn for resource in rights}
    assert seen[0].chart.values == {
        "cloudProvider": "aws",
        "awsRegion": "us-east-1",
        "autoDiscovery": {"clusterName": "tritonfleet-stack"},
    }


def test_no_policy_allows_every_action_on_every_resource() -> None:
    recorded, _ = granted("irsa")
    policies = [*recorded.of("RolePolicy")]

    assert policies
    for policy in policies:
        for statement in document(policy):
            assert "*" not in statement["Action"]
            assert statement["Resource"] != "*" or statement.get("Condition") or _reads_only(statement["Action"])


def _reads_only(actions: list[str]) -> bool:
    return all(action.split(":")[1].startswith(("Describe", "Get")) for action in actions)
