"""Namespaces, quota and network policies: what the program registers, judged by a real API server."""

import json
from collections.abc import Sequence
from typing import Any

import pulumi
import pytest

from components.platform.namespaces import limits, namespaces, serving_rules
from tests.cluster.control_plane import ControlPlane
from tests.components.platform.plans import mixed_plan, plan_of
from tests.components.world import Recorded, run

CONTAINER = {
    "name": "server",
    "image": "registry.example/server:1",
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
}
POD: dict[str, Any] = {
    "automountServiceAccountToken": False,
    "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
}


class Room(pulumi.ComponentResource):
    """Stands for the platform."""

    def __init__(self) -> None:
        super().__init__("test:index:Room", "platform")


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    def program() -> None:
        room = Room()
        spaces = namespaces(mixed_plan(), "platform", room)
        serving_rules(mixed_plan(), name="platform", parent=room, depends_on=[spaces["tritonfleet"]])

    return run(program)


@pytest.fixture(scope="module")
def serving(cluster: ControlPlane, recorded: Recorded) -> ControlPlane:
    """The control plane with everything applied; what a cluster's own controllers would add, is added here."""
    cluster.apply(namespace.inputs for namespace in recorded.of("Namespace"))
    cluster.apply(
        other.inputs for other in recorded if other.type.rpartition(":")[2] in ("ResourceQuota", "NetworkPolicy")
    )
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    for namespace in ("tritonfleet", "lws-system", "gpu-operator"):
        cluster.apply([account], namespace=namespace)
    hard = recorded.one("ResourceQuota").inputs["spec"]["hard"]
    status = json.dumps({"status": {"hard": hard, "used": dict.fromkeys(hard, "0")}})
    arguments = ("resourcequota", "tritonfleet", "--subresource=status", "--type=merge", "--patch", status)
    cluster.kubectl("patch", "--namespace=tritonfleet", *arguments)
    return cluster


def pod(name: str, resources: dict[str, str], **spec: object) -> dict[str, Any]:
    container = CONTAINER | {"resources": {"limits": resources, "requests": resources}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {**POD, "containers": [container], **spec},
    }


def test_only_the_vendors_namespace_admits_privileged_pods(serving: ControlPlane) -> None:
    host = pod("host", {}, hostPID=True)
    for namespace in ("tritonfleet", "lws-system"):
        assert 'violates PodSecurity "restricted' in serving.refusal([host], namespace=namespace)
        assert serving.refusal([pod("plain", {})], namespace=namespace) == ""
    assert serving.refusal([host], namespace="gpu-operator") == ""


def test_a_workload_that_would_be_refused_is_warned_of(serving: ControlPlane) -> None:
    template = {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
    spec = {"selector": {"matchLabels": {"app": "a"}}, "template": template}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": spec}

    assert "Warning: would violate PodSecurity" in serving.refusal([deployment], namespace="tritonfleet")


@pytest.mark.parametrize(
    ("resource", "most"), [("nvidia.com/gpu", 72), ("nvidia.com/mig-2g.20gb", 12), ("vpc.amazonaws.com/efa", 256)]
)
def test_no_more_is_admitted_than_the_pools_have(serving: ControlPlane, resource: str, most: int) -> None:
    assert serving.refusal([pod("most", {resource: str(most)})], namespace="tritonfleet") == ""
    assert "exceeded quota" in serving.refusal([pod("more", {resource: str(most + 1)})], namespace="tritonfleet")


@pytest.mark.parametrize("kind", ["LoadBalancer", "NodePort"])
def test_nothing_is_reached_from_outside(serving: ControlPlane, kind: str) -> None:
    def service(kind: str) -> dict[str, Any]:
        spec = {"type": kind, "ports": [{"port": 8000}], "selector": {"app": "a"}}
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "door"}, "spec": spec}

    assert "exceeded quota" in serving.refusal([service(kind)], namespace="tritonfleet")
    assert serving.refusal([service("ClusterIP")], namespace="tritonfleet") == ""


def test_the_quota_follows_the_plan() -> None:
    assert limits(plan_of("aws-dev")) == {
        "persistentvolumeclaims": "22",
        "pods": "22",
        # One node of either capacity type.
        "requests.nvidia.com/gpu": "2",
        "services.loadbalancers": "0",
        "services.nodeports": "0",
    }
    assert limits(plan_of("aws-llama-405b"))["requests.vpc.amazonaws.com/efa"] == str(2 * 3 * 32)
    assert "requests.nvidia.com/gpu" not in limits(plan_of("aws-small-mig"))


def test_everything_is_denied_but_dns_and_metrics(recorded: Recorded) -> None:
    policies = {policy.inputs["metadata"]["name"]: policy.inputs["spec"] for policy in recorded.of("NetworkPolicy")}
    assert policies.keys() == {"default-deny", "allow-dns", "allow-metrics"}

    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert policies["allow-dns"]["egress"] == [
        {
            "to": [
                *(
                    {
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                        "podSelector": {"matchLabels": {"k8s-app": app}},
                    }
                    for app in ("kube-dns", "node-local-dns")
                ),
                {"ipBlock": {"cidr": "169.254.20.10/32"}},
            ],
            "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
        }
    ]
    assert policies["allow-dns"]["policyTypes"] == ["Egress"]
    assert policies["allow-metrics"] == {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "triton"}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [{"namespaceSelector": {"matchLabels": {"tritonfleet.io/metrics": "true"}}}],
                "ports": [{"port": port, "protocol": "TCP"} for port in (8002, 9000)],
            }
        ],
    }


def test_the_rules_are_there_before_anything_runs(recorded: Recorded) -> None:
    namespace = recorded.one("Namespace", "platform-tritonfleet").urn
    rules: Sequence[Any] = [*recorded.of("NetworkPolicy"), *recorded.of("ResourceQuota")]
    assert len(rules) == 4
    for rule in rules:
        assert rule.inputs["metadata"]["namespace"] == "tritonfleet"
        assert namespace in rule.depends_on
