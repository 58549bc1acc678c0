"""The whole cloud: its providers, names, secrets, caches, and that a preview sees what an update makes."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pulumi
import pytest

from components.clouds import cloud_class
from components.clouds.aws.cloud import Aws, cluster_name
from components.clouds.aws.pull_through import cache_prefix
from components.clouds.base import Cloud, guarded
from components.platform.charts import ChartValues
from planner.fleet import CloudPlan
from tests.components.aws.stacks import EXAMPLES, build, built, document, site
from tests.components.world import UNKNOWN

STACK = "aws-llama-405b"
CLUSTER, CLAIMS = "Cluster:fleet-cluster-eks", ("engines", "engines-readonly")


@pytest.mark.parametrize("stack", EXAMPLES)
def test_a_preview_registers_what_an_update_does(stack: str) -> None:
    update, preview = built(stack), built(stack, preview=True)

    assert set(preview.resources) == set(update.resources)
    for urn, resource in preview.resources.items():
        other = update.resources[urn]
        assert set(resource.inputs) == set(other.inputs), urn
        assert (resource.protect, resource.retain_on_delete) == (other.protect, other.retain_on_delete), urn
        for key, value in resource.inputs.items():
            if UNKNOWN not in str(value):
                assert value == other.inputs[key], (urn, key)


@pytest.mark.parametrize("stack", EXAMPLES)
def test_every_resource_has_an_explicit_provider_and_a_parent(stack: str) -> None:
    recorded = built(stack)
    providers = {r.type.rpartition(":")[2]: r.urn for r in recorded if r.type.startswith("pulumi:providers:")}

    for resource in recorded:
        package = resource.type.split(":")[0]
        if package in ("aws", "eks", "kubernetes"):
            assert resource.provider == providers[package], resource.urn
            assert "tritonfleet:clouds:" in resource.parent, resource.urn


def test_the_aws_provider_is_bound_to_region_and_account_and_tags_everything() -> None:
    plan = site(STACK)
    bound = build(replace(plan, aws=plan.aws.model_copy(update={"account": "123456789012"})))
    provider, loose = bound.one("pulumi:providers:aws").inputs, built(STACK).one("pulumi:providers:aws").inputs

    assert provider["region"] == "us-east-1"
    assert provider["allowedAccountIds"] == '["123456789012"]'
    assert "allowedAccountIds" not in loose
    assert '"tritonfleet.io/cluster": "tritonfleet-stack"' in provider["defaultTags"]


def test_the_kubeconfig_is_secret_everywhere() -> None:
    recorded = built(STACK)
    provider = recorded.one("pulumi:providers:kubernetes")

    assert "kubeconfig" in recorded.secrets
    assert "kubeconfig" in provider.secrets
    assert provider.inputs["clusterIdentifier"] == "tritonfleet-stack"


FILES = {f"{kind}:serving-{name}" for kind in ("PersistentVolume", "PersistentVolumeClaim") for name in CLAIMS} | {
    "LustreFileSystem:fleet-storage-files"
}
GROUPS = {"NodeGroup:fleet-h100-spot", "NodeGroup:fleet-h100-on-demand"}
KEYS = {f"Key:fleet-keys-{name}" for name in ("data", "logs", "secrets")}


def protected(plan: CloudPlan) -> set[str]:
    """Type and name of what Pulumi is to replace or delete under no circumstances, but the bucket and its settings."""
    recorded = build(plan, (), lambda cloud: cloud.volumes("serving", ()))
    kinds = [(r.type.rpartition(":")[2], r.name) for r in recorded if r.protect]
    assert any(kind == "Bucket" for kind, _ in kinds) == guarded(plan, "storage")
    return {f"{kind}:{name}" for kind, name in kinds if not kind.startswith("Bucket")}


@pytest.mark.parametrize(
    ("named", "left"),
    [
        ((), {CLUSTER, *KEYS, *FILES, *GROUPS}),
        (("cluster",), {*KEYS, *FILES, *GROUPS}),
        (("storage",), {CLUSTER, *KEYS, *GROUPS}),
        (("pools.h100",), {CLUSTER, *KEYS, *FILES}),
    ],
)
def test_what_must_not_be_replaced_by_accident_is_protected(named: tuple[str, ...], left: set[str]) -> None:
    plan = replace(site(STACK), allow_replacement=named)

    assert protected(plan) == left
    assert protected(replace(plan, storage=replace(plan.storage, keep_data=False))) == set()


@pytest.mark.parametrize("identity", ["irsa", "pod-identity"])
@pytest.mark.parametrize("stack", EXAMPLES)
def test_everything_inside_the_cluster_waits_for_the_cluster(stack: str, identity: str) -> None:
    """EKS knows it by a name, which Pulumi knows before there is a cluster."""
    plan = site(stack)
    plan = replace(plan, aws=plan.aws.model_copy(update={"identity": identity}))

    def use(cloud: Aws) -> None:
        cloud.autoscaling()
        cloud.identity("model", namespace="serving", service_account="model", bucket_prefix="llama")

    recorded = build(plan, (), use)
    inside = [r for r in recorded if "clusterName" in r.inputs]

    kinds = {r.type.rpartition(":")[2] for r in inside}
    assert kinds == {"Addon", "NodeGroup"} | ({"PodIdentityAssociation"} if identity == "pod-identity" else set())
    for resource in inside:
        assert recorded.one("eks:index:Cluster").urn in resource.depends_on, resource.urn


def test_kubernetes_is_reached_only_while_its_api_admits_us() -> None:
    plan = site(STACK)
    peered = build(replace(plan, network=replace(plan.network, peered_cidrs=("10.99.0.0/16",))))
    rules = {rule.urn for rule in peered.of("SecurityGroupIngressRule", "cluster-api")}

    assert len(rules) == 2
    assert rules <= peered.one("pulumi:providers:kubernetes").depends_on


def test_charts_that_need_pods_wait_for_nodes_and_names() -> None:
    seen: list[list[str]] = []
    recorded = build(site(STACK), (), lambda cloud: seen.append([n._name for n in cloud.nodes]))  # pyright: ignore[reportPrivateUsage]

    assert seen == [["fleet-system", "fleet-h100-spot", "fleet-h100-on-demand", "fleet-coredns"]]
    assert recorded.one("Addon", "fleet-coredns")


def test_efa_devices_are_announced_on_the_pools_that_have_them() -> None:
    plan, seen = site(STACK), list[Sequence[ChartValues]]()
    build(plan, (), lambda cloud: seen.append(cloud.charts()))
    ((chart,),) = seen

    assert (chart.chart, chart.namespace, chart.on_gpu_nodes) == ("aws-efa-k8s-device-plugin", "kube-system", True)
    assert chart.values["supportedInstanceLabels"] == {"keys": ["tritonfleet.io/pool"], "values": ["h100"]}
    tolerated = {toleration["key"] for toleration in chart.values["tolerations"]}
    assert tolerated == {taint.key for group in plan.pools[0].node_groups for taint in group.taints}


def test_pools_without_efa_need_no_device_plugin_of_the_cloud() -> None:
    seen: list[Sequence[ChartValues]] = []
    build(site("aws-dev"), (), lambda cloud: seen.append(cloud.charts()))

    assert seen == [[]]


def test_pull_through_caches_public_registries_for_nodes() -> None:
    plan = site(STACK)

    def use(cloud: Aws) -> None:
        pulumi.export("mirrors", dict(cloud.mirrors))

    recorded = build(replace(plan, images=plan.images.model_copy(update={"pull_through": True})), (), use)
    rules = {
        r.inputs["upstreamRegistryUrl"]: r.inputs["ecrRepositoryPrefix"] for r in recorded.of("PullThroughCacheRule")
    }

    assert set(rules) == {"registry.k8s.io", "public.ecr.aws", "quay.io"}
    assert len(set(rules.values())) == 3
    for registry, prefix in rules.items():
        assert prefix.startswith("tritonfleet-stack/")
        assert recorded.outputs["mirrors"][registry].endswith(f".dkr.ecr.us-east-1.amazonaws.com/{prefix}")
    (statement,) = document(recorded.one("RolePolicy", "pull-through"))
    assert set(statement["Action"]) == {"ecr:BatchImportUpstreamImage", "ecr:CreateRepository"}
    assert statement["Resource"] == "arn:aws:ecr:us-east-1:123456789012:repository/tritonfleet-stack/*"
    assert recorded.one("RolePolicy", "pull-through").inputs["role"] == "fleet-node-name"


def test_nothing_is_cached_unless_the_stack_asks() -> None:
    assert not built(STACK).of("PullThroughCacheRule")
    assert not built(STACK).of("RolePolicy", "pull-through")


@pytest.mark.parametrize(
    ("project", "stack", "name"),
    [
        ("tritonfleet", "aws-llama-405b", "tritonfleet-aws-llama-405b"),
        ("tritonfleet", "Prod_EU.1", "tritonfleet-prod-eu-1"),
        ("tritonfleet", "a--b", "tritonfleet-a-b"),
    ],
)
def test_the_clusters_name_is_one_that_aws_takes(project: str, stack: str, name: str) -> None:
    assert cluster_name(project, stack) == name


def test_cache_prefixes_fit_ecr_and_differ_by_cluster() -> None:
    names = ("tritonfleet-dev", "tritonfleet-aws-llama-405b", "tritonfleet-aws-llama-405b-fp8")
    prefixes = [cache_prefix(name) for name in names]

    assert prefixes[0] == "tritonfleet-dev"
    assert len(set(prefixes)) == 3
    for prefix in prefixes:
        assert len(f"{prefix}/ecr-public") <= 30
        assert "--" not in prefix


def test_a_cloud_is_found_by_name() -> None:
    assert cloud_class("aws") is Aws
    assert issubclass(Aws, Cloud)


def test_choosing_a_cloud_imports_no_other_clouds_sdk() -> None:
    root = Path(__file__).parents[3]
    program = "import sys, components.clouds as c; c.cloud_class('aws'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    names = {module.split(".")[0] for module in loaded.stdout.split()}

    assert "pulumi_aws" in names
    assert not names & {"pulumi_gcp", "pulumi_azure_native"}
    before = subprocess.run(
        [sys.executable, "-c", "import sys, components.clouds; print(*sys.modules)"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pulumi" not in before.stdout.split()
