"""The simulated cloud itself: a program that it should refuse is refused, and what it reports is what happened."""

from collections.abc import Callable

import pytest

from tests.engine.conftest import Project
from tests.engine.simulated.changes import changed, refused, replacing
from tests.engine.simulated.sdk import computed, unknown_properties

PROGRAM = """
import pulumi
import pulumi_aws as aws
import pulumi_kubernetes as kubernetes

provider = aws.Provider("aws", region="us-east-1")
with_aws = pulumi.ResourceOptions(provider=provider)
bucket = aws.s3.Bucket("weights", opts=with_aws)
cluster = kubernetes.Provider("cluster", kubeconfig=bucket.arn.apply(lambda arn: f"{{'fake': '{arn}'}}"))
kubernetes.core.v1.ConfigMap(
    "settings",
    metadata={"name": "settings", "namespace": "default"},
    data={"bucket": bucket.bucket_regional_domain_name, "text": TEXT},
    opts=pulumi.ResourceOptions(provider=cluster),
)
pulumi.export("bucket", bucket.arn)
"""


def test_a_stack_lives_and_dies(new_project: Callable[[str], Project]) -> None:
    project = new_project("aws-dev")

    def write(old: str = "", new: str = "", text: str = "'one'") -> None:
        (project.folder / "__main__.py").write_text(PROGRAM.replace(old, new).replace("TEXT", text))

    write()
    project.pulumi("up", "--yes")
    assert named(project.events()) == [("create", "weights"), ("create", "settings")]
    write(text="'two'")
    assert named(project.preview()) == [("replace", "settings")]
    write("opts=with_aws", "")
    assert "Default provider for 'aws' disabled" in project.pulumi("preview", fails=True)
    write('"namespace"', '"namespaze"')
    assert "has no property metadata.namespaze" in project.pulumi("preview", fails=True)
    assert project.events() == [], "a preview changes nothing"
    project.pulumi("destroy", "--yes")
    assert named(project.events()) == [("delete", "settings"), ("delete", "weights")]


def named(steps: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(operation, urn.rpartition("::")[2]) for operation, urn in steps]


@pytest.mark.parametrize(
    ("type_", "inputs", "expected"),
    [
        ("aws:eks/nodeGroup:NodeGroup", {"clusterName": "c", "scalingConfig": {"minSize": 0}}, []),
        ("aws:eks/nodeGroup:NodeGroup", {"clustrName": "c"}, ["clustrName"]),
        ("aws:eks/nodeGroup:NodeGroup", {"taints": [{"key": "k", "efect": "NO"}]}, ["taints[0].efect"]),
        ("kubernetes:core/v1:ConfigMap", {"data": {"any.key": "x"}, "metadata": {"labels": {"any": "x"}}}, []),
        (
            "kubernetes:batch/v1:Job",
            {"spec": {"template": {"spec": {"contaners": []}}}},
            ["spec.template.spec.contaners"],
        ),
        ("kubernetes:leaderworkerset.x-k8s.io/v1:LeaderWorkerSet", {"spec": {"what": "the CRD says"}}, []),
        ("eks:index:Cluster", {"skipDefaultNodeGroup": True, "skipEverything": True}, ["skipEverything"]),
        ("aws:Provider", {"region": "us-east-1", "regoin": "x"}, ["regoin"]),
    ],
)
def test_unknown_properties_are_found_at_any_depth(type_: str, inputs: dict[str, object], expected: list[str]) -> None:
    assert list(unknown_properties(type_, inputs)) == expected


def test_computed_outputs_have_their_declared_types() -> None:
    outputs = computed("aws:eks/cluster:Cluster", "fleet", {"name": "given"})
    assert "name" not in outputs
    assert outputs["arn"].startswith("arn:aws:")
    assert outputs["endpoint"] == "fleet-endpoint"
    assert outputs["identities"][0]["oidcs"][0]["issuer"]
    assert computed("kubernetes:leaderworkerset.x-k8s.io/v1:LeaderWorkerSet", "x", {}) == {}


def test_a_change_is_found_and_judged() -> None:
    old = {"instanceTypes": ["a", "b"], "scalingConfig": {"maxSize": 2}, "labels": {"x": "1"}}
    new = {"instanceTypes": ["a", "c"], "scalingConfig": {"maxSize": 3}, "labels": {"x": "1", "y": "2"}}
    paths = list(changed(old, new))
    assert paths == ["instanceTypes[1]", "labels.y", "scalingConfig.maxSize"]
    assert replacing("aws:eks/nodeGroup:NodeGroup", paths) == ["instanceTypes[1]"]
    assert replacing("kubernetes:batch/v1:Job", ["metadata.labels.x", "spec.template.spec.containers"]) == [
        "spec.template.spec.containers"
    ]
    assert replacing("kubernetes:apps/v1:Deployment", ["spec.replicas", "metadata.name"]) == ["metadata.name"]


def test_azure_refuses_what_it_cannot_change() -> None:
    pool = "azure-native:containerservice:AgentPool"
    assert refused(pool, ["maxCount", "vmSize", "scaleSetPriority"]) == ["scaleSetPriority"]
    assert replacing(pool, ["vmSize", "scaleSetPriority"]) == ["vmSize"]
    assert refused("aws:eks/nodeGroup:NodeGroup", ["amiType"]) == []


def test_a_cloud_adds_to_objects_that_it_is_given() -> None:
    given = {"masterAuth": {"clientCertificateConfig": {"issueClientCertificate": False}}}
    assert computed("gcp:container/cluster:Cluster", "fleet", given)["masterAuth"]["clusterCaCertificate"]
    shares = {"networks": [{"network": "n"}], "fileShares": {"name": "s"}}
    assert computed("gcp:filestore/instance:Instance", "files", shares)["networks"][0]["ipAddresses"]
