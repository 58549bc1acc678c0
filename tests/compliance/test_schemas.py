"""Every object that a stack deploys is one that Kubernetes 1.36 takes: by its schemas, and by its API server."""

import json
import time
from collections.abc import Generator
from pathlib import Path

import kubernetes_validate
import pytest

from tests.cluster.control_plane import ControlPlane, control_plane
from tests.compliance.workloads import DEPLOYED, SERVING, Object, built_in, objects, pods, serving_pods

CRD = Path(__file__).parents[3] / "shared" / "crds" / "leaderworkersets-v0.10.0.yaml"

OF_THE_CLOUDS = ("cloud.google.com/", "networking.gke.io/", "mellanox.com/")
"""Kinds that GKE has, and one that a chart brings: the API server of this test knows them not."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ControlPlane]:
    if not CRD.is_file():
        pytest.skip("the CRD that LeaderWorkerSet v0.10.0 publishes is not beside this checkout (shared/crds)")
    with control_plane(tmp_path_factory.mktemp("cluster")) as running:
        running.kubectl("apply", "--server-side", "-f", str(CRD))
        _wait_until_served(running, "leaderworkersets.leaderworkerset.x-k8s.io")
        yield running


@pytest.mark.parametrize("stack", DEPLOYED)
def test_core_objects_match_the_schemas_of_kubernetes_1_36(stack: str) -> None:
    core = [item for item in objects(stack) if built_in(item)] + pods(stack)
    assert len(core) > 10
    for item in core:
        kubernetes_validate.validate(item, "1.36", strict=True)


def test_the_schemas_would_refuse_a_misspelled_field() -> None:
    (pod, *_) = serving_pods("aws-dev")
    pod["spec"]["containers"][0]["securityContxt"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, "1.36", strict=True)


@pytest.mark.parametrize("stack", DEPLOYED)
def test_the_api_server_takes_every_object(cluster: ControlPlane, stack: str) -> None:
    every = objects(stack)
    cluster.apply([item for item in every if item["kind"] == "Namespace"])
    for item in every:
        if item["apiVersion"].startswith(OF_THE_CLOUDS):
            continue
        refused = cluster.refusal([item])
        assert not refused, f"{item['kind']} {item['metadata']['name']}: {refused}"


@pytest.mark.parametrize("stack", DEPLOYED)
def test_the_api_server_finds_every_serving_pod_restricted(cluster: ControlPlane, stack: str) -> None:
    cluster.apply([item for item in objects(stack) if item["kind"] == "Namespace"])
    namespace = cluster.get("namespace", SERVING)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    found = serving_pods(stack)
    assert {pod["metadata"]["name"].rpartition("-")[2] for pod in found} >= {"leader", "worker", "pod"}
    for pod in found:
        _with_service_account(cluster, pod)
        assert not cluster.refusal([pod]), pod["metadata"]["name"]


def test_the_judge_refuses_a_privileged_pod(cluster: ControlPlane) -> None:
    cluster.apply([item for item in objects("aws-dev") if item["kind"] == "Namespace"])
    (pod, *_) = serving_pods("aws-dev")
    _with_service_account(cluster, pod)
    pod["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] = ["IPC_LOCK"]
    assert "violates PodSecurity" in cluster.refusal([pod])


def _wait_until_served(cluster: ControlPlane, resource: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            cluster.kubectl("get", resource, "--all-namespaces")
            return
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _with_service_account(cluster: ControlPlane, pod: Object) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "judged", "namespace": SERVING}}
    cluster.apply([account])
    pod["spec"]["serviceAccountName"] = "judged"
    json.dumps(pod)  # it is data alone: nothing unknown is left in it
