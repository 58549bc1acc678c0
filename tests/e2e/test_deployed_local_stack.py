"""The local stack on a cluster: the very objects that the program registers for it, run as a kind node would run them.

The build Job's pod takes the weights from a package in the image and publishes the engine on the claim; the group's one
pod serves it, and a client asks at its Service from another host. Substituted are the image, by this machine's file
system and Python, and LeaderWorkerSet's controller, by what it adds to the pod.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.clouds.base import POD_USER
from fleet.recorder import Recording, Registered, plain
from fleet.synthesis import record_program
from planner.plan import FleetPlan, plan_file
from planner.stack_file import read_stack_file
from runtime.store import EngineStore
from tests.e2e.test_deployed_pods import (
    BUILD_SECONDS,
    MODELS,
    QUESTION,
    assert_confined,
    chat,
    container_refusal,
    until_ready,
)
from tests.hosts import Hosts, two_hosts
from tests.kubelet.pod import Pod
from tests.kubelet.volumes import Object, Objects, make_shared

STACK = Path(__file__).parents[2] / "stacks" / "Pulumi.local.yaml"
TOKEN = "a-password-that-Pulumi-made"


@dataclass
class Cluster:
    """The stack's objects, the folder behind its claim, and two hosts: the node, and where a client is."""

    plan: FleetPlan
    recording: Recording
    objects: Objects
    hosts: Hosts
    folder: Path
    shared: Path

    def one(self, kind: str, name: str = "") -> Object:
        """The only object of a kind whose name begins so, as the program registered it."""
        (found,) = (made for made in _of(self.recording, kind) if made["metadata"]["name"].startswith(name))
        return found

    def pod(self, name: str, manifest: Object, environment: dict[str, str]) -> Pod:
        """A pod on the node."""
        host, address = self.hosts.names[0], self.hosts.addresses[0]
        names = {variable: address for key, variable in environment.items() if key == "LWS_LEADER_ADDRESS"}
        folder = self.folder / name
        return Pod(
            name, manifest, self.objects, folder, host=host, address=address, names=names, environment=environment
        )

    def leader(self) -> Pod:
        """The pod of the only group, with what LeaderWorkerSet adds to it."""
        made = self.one("LeaderWorkerSet")
        name, spec = made["metadata"]["name"], made["spec"]["leaderWorkerTemplate"]
        assert spec["size"] == 1
        template = spec["leaderTemplate"]
        labels = {"name": name, "group-index": "0", "worker-index": "0"}
        labels = {f"leaderworkerset.sigs.k8s.io/{key}": value for key, value in labels.items()}
        manifest = {"metadata": {"labels": template["metadata"]["labels"] | labels}, "spec": template["spec"]}
        address = f"{name}-0.{name}.{made['metadata']['namespace']}"
        variables = {"LWS_LEADER_ADDRESS": address, "LWS_GROUP_SIZE": "1", "LWS_WORKER_INDEX": "0"}
        return self.pod(f"{name}-0", manifest, variables)


@pytest.fixture(scope="module")
def cluster(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    assert smollm2_gguf.exists()
    folder = tmp_path_factory.mktemp("cluster")
    recording = record_program(read_stack_file(STACK), stack="local", preview=False, computed=_computed)
    with two_hosts() as hosts:
        if refusal := container_refusal(hosts):
            pytest.skip(f"this machine allows no containers: {refusal}")
        shared = make_shared(folder / "volume", POD_USER)
        (claim,) = _of(recording, "PersistentVolumeClaim")
        objects = Objects(
            _by_name(recording, "ConfigMap"), _by_name(recording, "Secret"), {claim["metadata"]["name"]: shared}
        )
        try:
            yield Cluster(plan_file(STACK), recording, objects, hosts, folder, shared)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def test_the_stack_builds_its_engine_and_answers_at_its_service(cluster: Cluster) -> None:
    (model,) = cluster.plan.models
    build = cluster.pod("build", cluster.one("Job", "engine-")["spec"]["template"], {})
    assert build.run_to_its_end(BUILD_SECONDS) == {"build": 0}, build.said()
    store = EngineStore(cluster.shared / "store")
    assert [info.id for info in store.list()] == [model.engine.id]
    assert store.verify(model.engine.id) == []

    service, leader = cluster.one("Service")["spec"], cluster.leader()
    try:
        leader.start()
        print(f"\nthe group is up after {leader.until_started():.1f} s")
        until_ready(leader)
        assert leader.probe("readinessProbe")[0], leader.said()
        assert leader.probe("livenessProbe")[0], leader.said()
        assert service["selector"].items() <= leader.labels.items()
        (http,) = (port for port in service["ports"] if port["name"] == "http")
        url = f"http://{leader.address}:{leader.port(http['targetPort'])}/v2"

        assert ask(cluster, url).startswith("Kubernetes is a")
        assert sorted(found["name"] for found in post(cluster, f"{url}/repository/index", {})) == MODELS
        assert_confined(leader)
        (openai,) = (port for port in service["ports"] if port["name"] == "openai")
        base = f"http://{leader.address}:{leader.port(openai['targetPort'])}"
        status, said = chat(cluster.hosts, base, f"sk-{TOKEN}", max_tokens=8)
        assert (status, "Kubernetes" in said) == (200, True), said
        assert chat(cluster.hosts, base, "sk-another", max_tokens=8)[0] == 401
        used, limit = memory_mib(leader.process), memory_limit(leader.container)
        print(f"{model.world_size} ranks use {used} MiB of {limit}")
        assert used < 0.8 * limit, "no room for a full KV cache"
        used, limit = memory_mib(leader.sidecars["frontend"]), memory_limit(leader.manifest_of("frontend"))
        print(f"the frontend uses {used} MiB of {limit}")
        assert used < 0.5 * limit, "a container that is killed for memory takes its group along"

        status, seconds = leader.stop()
        assert status == 0, leader.said()
        assert seconds < leader.spec["terminationGracePeriodSeconds"]
    finally:
        leader.destroy()


def ask(cluster: Cluster, url: str) -> str:
    """The answer to one question from the other host, as a client would put it."""
    body = {"text_input": QUESTION, "max_tokens": 16}
    return str(post(cluster, f"{url}/models/tensorrt_llm_bls/generate", body)["text_output"])


def post(cluster: Cluster, url: str, body: object) -> Any:
    program = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], sys.argv[2].encode()).read().decode())"
    command = ["ip", "netns", "exec", cluster.hosts.names[1], sys.executable, "-c", program, url, json.dumps(body)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout)


def memory_limit(container: Object) -> int:
    """In MiB."""
    return int(container["resources"]["limits"]["memory"].removesuffix("Mi"))


def memory_mib(container: "subprocess.Popen[bytes] | None") -> int:
    """What a container's processes hold, pages that several share counted once."""
    assert container is not None
    inside = psutil.Process(container.pid).children(recursive=True)
    return sum(int(process.memory_full_info().pss) for process in inside) >> 20


def _computed(resource: Registered) -> dict[str, Any]:
    return {"result": TOKEN} if resource.type.endswith("RandomPassword") else {}


def _of(recording: Recording, kind: str) -> list[Object]:
    return [plain(made.inputs) for made in recording.resources if made.type.rpartition(":")[2] == kind]


def _by_name(recording: Recording, kind: str) -> dict[str, Object]:
    return {made["metadata"]["name"]: made for made in _of(recording, kind)}
