"""The control plane: who reaches it, who may do what in it, and what it keeps of what happened."""

import json
from dataclasses import replace

import pytest

from planner.fleet import CloudPlan
from tests.components.aws.stacks import build, built, document, site, with_pod_identity
from tests.components.world import Recorded

STACK = "aws-llama-405b"


@pytest.fixture(scope="module")
def world() -> Recorded:
    return built(STACK)


def with_cluster(plan: CloudPlan, **changes: object) -> CloudPlan:
    return replace(plan, cluster=plan.cluster.model_copy(update=changes))


def test_a_control_plane_without_nodes_groups_or_add_ons_of_pulumi_eks(world: Recorded) -> None:
    cluster = world.one("eks:index:Cluster").inputs

    assert cluster["skipDefaultNodeGroup"] is True
    assert cluster["skipDefaultSecurityGroups"] is True
    assert cluster["createInstanceRole"] is False
    assert cluster["nodeAssociatePublicIpAddress"] is False
    assert cluster["bootstrapSelfManagedAddons"] is False
    assert cluster["useDefaultVpcCni"] is True
    assert cluster["kubeProxyAddonOptions"]["enabled"] is False


def test_the_plan_says_name_version_and_ranges(world: Recorded) -> None:
    cluster = world.one("eks:index:Cluster").inputs

    assert cluster["name"] == "tritonfleet-stack"
    assert cluster["version"] == "1.35"
    assert cluster["kubernetesServiceIpAddressRange"] == "172.20.0.0/16"
    assert cluster["vpcId"] == "fleet-network-vpc-id"
    assert cluster["privateSubnetIds"] == [f"fleet-network-private-use1-az{n}-id" for n in (1, 4, 6)]
    assert "publicSubnetIds" not in cluster


def test_the_api_is_public_only_for_the_ranges_that_the_stack_names(world: Recorded) -> None:
    cluster = world.one("eks:index:Cluster").inputs

    assert cluster["endpointPrivateAccess"] is True
    assert cluster["endpointPublicAccess"] is True
    assert cluster["publicAccessCidrs"] == ["198.51.100.0/24"]


def test_without_ranges_the_api_is_reached_from_inside_only() -> None:
    recorded = build(with_cluster(site(STACK), api_cidrs=()))
    cluster = recorded.one("eks:index:Cluster").inputs

    assert cluster["endpointPrivateAccess"] is True
    assert cluster["endpointPublicAccess"] is False
    assert "publicAccessCidrs" not in cluster
    rule = recorded.one("SecurityGroupIngressRule", "cluster-api").inputs
    assert rule["securityGroupId"] == "fleet-cluster-eks-clusterSecurityGroupId"
    assert (rule["cidrIpv4"], rule["fromPort"], rule["toPort"]) == ("10.40.0.0/16", 443, 443)
    assert rule["ipProtocol"] == "tcp"


def test_peered_networks_reach_the_private_api() -> None:
    plan = site(STACK)
    peered = replace(plan, network=replace(plan.network, peered_cidrs=("10.99.0.0/16",)))
    rules = build(peered).of("SecurityGroupIngressRule", "cluster-api")
    assert {rule.inputs["cidrIpv4"] for rule in rules} == {plan.network.cidr, "10.99.0.0/16"}
    assert {(rule.inputs["fromPort"], rule.inputs["toPort"]) for rule in rules} == {(443, 443)}


def test_administrators_come_by_access_entries_and_no_config_map() -> None:
    named = with_cluster(site(STACK), administrators=("arn:aws:iam::123456789012:role/platform",))
    cluster = build(named).one("eks:index:Cluster").inputs
    (entry,) = cluster["accessEntries"].values()

    assert cluster["authenticationMode"] == "API"
    assert entry["principalArn"] == "arn:aws:iam::123456789012:role/platform"
    (granted,) = entry["accessPolicies"].values()
    assert granted["policyArn"].endswith("/AmazonEKSClusterAdminPolicy")
    assert granted["accessScope"] == {"type": "cluster"}


def test_another_order_of_administrators_changes_nothing() -> None:
    arns = ("arn:aws:iam::123456789012:role/a", "arn:aws:iam::123456789012:role/b")
    one, other = (
        build(with_cluster(site(STACK), administrators=order)).one("eks:index:Cluster").inputs["accessEntries"]
        for order in (arns, arns[::-1])
    )

    assert one == other
    assert len(one) == 2


def test_secrets_are_encrypted_with_a_key_of_their_own_that_rotates(world: Recorded) -> None:
    assert world.one("eks:index:Cluster").inputs["encryptionConfigKeyArn"].endswith(":fleet-keys-secrets")
    for key in world.of("aws:kms/key:Key"):
        assert key.inputs["enableKeyRotation"] is True
        assert key.inputs["deletionWindowInDays"] == 30
    assert len(world.of("aws:kms/key:Key")) == 3


def test_only_the_two_log_groups_may_use_the_logs_key(world: Recorded) -> None:
    account, service = document(world.one("aws:kms/key:Key", "fleet-keys-logs"))

    assert account["Principal"] == {"AWS": "arn:aws:iam::123456789012:root"}
    assert service["Principal"] == {"Service": "logs.us-east-1.amazonaws.com"}
    arns = service["Condition"]["ArnEquals"]["kms:EncryptionContext:aws:logs:arn"]
    prefix = "arn:aws:logs:us-east-1:123456789012:log-group:"
    assert {arn.removeprefix(prefix) for arn in arns} == {group.inputs["name"] for group in world.of("LogGroup")}


def test_every_control_plane_log_goes_to_an_encrypted_group_made_before(world: Recorded) -> None:
    cluster, logs = world.one("eks:index:Cluster"), world.one("LogGroup", "cluster-logs")

    assert set(cluster.inputs["enabledClusterLogTypes"]) == {
        "api",
        "audit",
        "authenticator",
        "controllerManager",
        "scheduler",
    }
    assert logs.inputs["name"] == "/aws/eks/tritonfleet-stack/cluster"
    assert logs.inputs["retentionInDays"] == 90
    assert logs.inputs["kmsKeyId"].endswith(":fleet-keys-logs")
    assert logs.urn in cluster.depends_on


def test_the_component_runs_under_the_stacks_own_providers(world: Recorded) -> None:
    cluster = world.one("eks:index:Cluster")

    assert cluster.provider == world.one("pulumi:providers:eks").urn
    assert cluster.providers["aws"] == world.one("pulumi:providers:aws").urn


def test_the_cluster_is_protected_while_data_is_kept(world: Recorded) -> None:
    plan = site(STACK)
    loose = build(replace(plan, storage=replace(plan.storage, keep_data=False)))

    assert world.one("eks:index:Cluster").protect is True
    assert loose.one("eks:index:Cluster").protect is False
    assert all(key.protect and key.retain_on_delete for key in world.of("aws:kms/key:Key"))
    assert not any(key.protect or key.retain_on_delete for key in loose.of("aws:kms/key:Key"))


def test_the_cni_enforces_network_policies_with_rights_of_its_own(world: Recorded) -> None:
    cni, role = world.one("Addon", "cluster-cni"), world.one("Role", "cluster-cni")

    assert cni.inputs["addonName"] == "vpc-cni"
    assert json.loads(cni.inputs["configurationValues"]) == {"enableNetworkPolicy": "true"}
    assert cni.inputs["serviceAccountRoleArn"].endswith(f":{role.name}")
    (trust,) = document(role, "assumeRolePolicy")
    assert trust["Condition"]["StringEquals"]["fleet-cluster-eks-oidcIssuer:sub"] == (
        "system:serviceaccount:kube-system:aws-node"
    )
    attached = world.one("RolePolicyAttachment", "cluster-cni")
    assert attached.inputs["policyArn"].endswith("/AmazonEKS_CNI_Policy")
    assert attached.urn in cni.depends_on


def test_nodes_wait_for_their_network_and_name_resolution_waits_for_nodes(world: Recorded) -> None:
    system, gpu = world.one("NodeGroup", "system"), world.one("NodeGroup", "h100-spot")
    cluster = world.one("eks:index:Cluster")

    for group in (system, gpu):
        assert {world.one("Addon", name).urn for name in ("cluster-cni", "kube-proxy")} <= group.depends_on
        assert cluster.urn in group.depends_on
    assert system.urn in world.one("Addon", "coredns").depends_on
    assert system.urn in world.one("Addon", "fsx-csi").depends_on


def test_add_ons_have_no_version_that_could_change_or_vanish(world: Recorded) -> None:
    add_ons = world.of("Addon")

    assert {add_on.inputs["addonName"] for add_on in add_ons} == {
        "vpc-cni",
        "kube-proxy",
        "coredns",
        "aws-fsx-csi-driver",
    }
    for add_on in add_ons:
        assert "addonVersion" not in add_on.inputs
        assert add_on.inputs["clusterName"] == "tritonfleet-stack"
        assert add_on.inputs["resolveConflictsOnCreate"] == add_on.inputs["resolveConflictsOnUpdate"] == "OVERWRITE"


def test_pod_identity_has_its_agent_and_no_oidc_provider(world: Recorded) -> None:
    recorded = build(with_pod_identity(site(STACK)))
    agent, cni = recorded.one("Addon", "pod-identity"), recorded.one("Addon", "cluster-cni")

    assert world.one("eks:index:Cluster").inputs["createOidcProvider"] is True
    assert recorded.one("eks:index:Cluster").inputs["createOidcProvider"] is False
    assert agent.inputs["addonName"] == "eks-pod-identity-agent"
    assert agent.urn in cni.depends_on
    assert agent.urn in recorded.one("NodeGroup", "h100-spot").depends_on
    (bound,) = cni.inputs["podIdentityAssociations"]
    assert bound["serviceAccount"] == "aws-node"
    assert bound["roleArn"].endswith(":fleet-cluster-cni")
    assert "serviceAccountRoleArn" not in cni.inputs
    assert not world.of("Addon", "pod-identity")
