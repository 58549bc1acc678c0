"""Who reaches a model's pods, whom they reach, and how many may be taken away."""

from ipaddress import ip_address, ip_network

import pytest

from tests.components.serving.stacks import (
    EXAMPLES,
    LARGE,
    TWO_REPLICAS,
    Values,
    container,
    every_template,
    planned,
    served,
    templates,
)
from tests.components.world import Recorded

RANKS = {"app.kubernetes.io/name": "triton", "app.kubernetes.io/instance": "llama-405b"}
LEADERS = {
    "leaderworkerset.sigs.k8s.io/name": "llama-405b-group",
    "leaderworkerset.sigs.k8s.io/worker-index": "0",
}


def policy(recorded: Recorded, name: str) -> Values:
    return recorded.one("NetworkPolicy", name).inputs["spec"]


def test_a_service_selects_the_leaders_of_its_model_and_stays_inside() -> None:
    recorded = served()
    service = recorded.one("Service").inputs

    assert service["metadata"]["name"] == "llama-405b"
    assert service["metadata"]["name"] != recorded.one("LeaderWorkerSet").inputs["metadata"]["name"], (
        "the controller makes a headless Service of the set's name"
    )
    assert service["spec"]["type"] == "ClusterIP"
    assert service["spec"]["selector"] == LEADERS
    leader = templates(recorded, "llama-405b")["leader"]
    ports = [port for name in ("frontend", "triton") for port in container(leader, name)["ports"]]
    named = {port["name"]: port["containerPort"] for port in ports}
    given = [(port["name"], port["port"]) for port in service["spec"]["ports"]]
    assert given == [(name, named[name]) for name in ("openai", "http", "grpc", "metrics")]
    assert all(port["targetPort"] == port["name"] for port in service["spec"]["ports"])
    assert recorded.outputs["endpoints"] == {"llama-405b": "http://llama-405b.tritonfleet.svc:9000/v1"}


def test_pulumi_waits_for_no_endpoint() -> None:
    """Of a model with no replicas there would never be one."""
    assert served().one("Service").inputs["metadata"]["annotations"] == {"pulumi.com/skipAwait": "true"}


def test_ranks_of_several_nodes_reach_each_other_and_nobody_else() -> None:
    recorded = served()
    spec = policy(recorded, "serving-llama-405b-ranks")

    assert spec["podSelector"]["matchLabels"] == RANKS
    for template in templates(recorded, "llama-405b").values():
        assert template["metadata"]["labels"].items() >= RANKS.items()
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [{"from": [{"podSelector": {"matchLabels": RANKS}}]}]
    assert spec["egress"] == [{"to": [{"podSelector": {"matchLabels": RANKS}}]}]


def test_a_single_pod_has_nobody_to_reach() -> None:
    assert not served(planned(TWO_REPLICAS)).of("NetworkPolicy", "ranks")


def test_clients_reach_leaders_for_requests_only() -> None:
    spec = policy(served(), "serving-llama-405b-clients")

    assert spec["podSelector"]["matchLabels"] == LEADERS
    assert spec["policyTypes"] == ["Ingress"]
    (rule,) = spec["ingress"]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"tritonfleet.io/client": "true"}}}]
    assert rule["ports"] == [{"port": port, "protocol": "TCP"} for port in (9000, 8000, 8001)]


@pytest.mark.parametrize(("job", "name"), [("-weights-", "weights-fetch"), ("-environment-", "environment")])
def test_only_what_fetches_leaves_the_cluster_and_not_for_instance_metadata(job: str, name: str) -> None:
    recorded = served(planned(LARGE))
    assert len([p for p in recorded.of("NetworkPolicy") if "ipBlock" in repr(p.inputs)]) == 2
    spec = recorded.one("NetworkPolicy", job).inputs["spec"]
    chosen = spec["podSelector"]["matchLabels"].items()
    leaving = [t for t in every_template(recorded) if chosen <= t["metadata"]["labels"].items()]
    assert leaving == [recorded.one("Job", job).inputs["spec"]["template"]], "no pod that builds or serves"
    assert leaving[0]["metadata"]["labels"]["app.kubernetes.io/name"] == name
    assert spec["policyTypes"] == ["Egress"]
    (rule,) = spec["egress"]
    assert rule["ports"] == [{"port": 443, "protocol": "TCP"}]
    (block,) = [peer["ipBlock"] for peer in rule["to"]]
    assert block["cidr"] == "0.0.0.0/0"
    # Neither the instance's metadata, nor nodes, pods and private endpoints, nor the Kubernetes API.
    for address in ("169.254.169.254", "169.254.170.23", "10.40.3.7", "172.20.0.1", "192.168.1.1", "100.64.0.1"):
        assert any(ip_address(address) in ip_network(closed) for closed in block["except"]), address
    assert not any(ip_address("151.101.1.1") in ip_network(closed) for closed in block["except"])


def test_one_group_may_be_taken_at_a_time_and_a_single_one_too() -> None:
    for stack in EXAMPLES:
        recorded = served(planned(stack))
        for budget in recorded.of("PodDisruptionBudget"):
            spec = budget.inputs["spec"]
            assert spec["maxUnavailable"] == 1
            assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
            model = budget.inputs["metadata"]["name"]
            for template in templates(recorded, model).values():
                assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items(), (
                    "an evicted worker takes its group down as a leader does"
                )
