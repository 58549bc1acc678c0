"""What is deployed is what was tested: the very pods of the serving component, run on two hosts as a cluster runs them.

One Job's pod fetches the real model from a Hub, another builds its engine; the leader and the worker serve it over two
network namespaces, each in a container of its own (tests/kubelet). Substituted are: the image, by this machine's file
system and Python; the GPU backend, by the CPU one, which leaves GPUs and RDMA interfaces alone; the Hub's address; and
the times for a pod's end, by shorter ones.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.clouds.base import POD_USER
from planner.sources import checkpoint_folder
from runtime.store import EngineStore
from tests.e2e.deployed import GRACE_SECONDS, REPOSITORY, Deployed, deploy, smollm2_repository
from tests.hosts import Hosts, two_hosts
from tests.hub import COMMIT, TOKEN, Hub
from tests.kubelet.network import in_network_of
from tests.kubelet.pod import Pod
from tests.kubelet.volumes import Object, make_shared

MODELS = ["ensemble", "postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls"]
QUESTION = "<|im_start|>user\nWhat is Kubernetes, in two sentences?<|im_end|>\n<|im_start|>assistant\n"
BUILD_SECONDS = 300


@dataclass
class World:
    """Two hosts with a Hub on the second, one model rendered for them, and the file system that its pods share."""

    deployed: Deployed
    hosts: Hosts
    hub: Hub
    folder: Path
    shared: Path

    def fetch_pod(self, name: str) -> Pod:
        """A pod of the Job that fetches the weights, on the first host."""
        return self._pod(name, self.deployed.fetch["spec"]["template"], 0, {"HF_ENDPOINT": self.hub.url}, {})

    def build_pod(self, name: str) -> Pod:
        """A pod of the build Job, there too."""
        return self._pod(name, self.deployed.build["spec"]["template"], 0, {}, {})

    def group(self) -> tuple[Pod, Pod]:
        """The leader on the first host, and the worker on the second."""
        leader, worker = self.deployed.leader_and_worker()
        of_leader, of_worker = self.deployed.variables
        names = {of_leader["LWS_LEADER_ADDRESS"]: self.hosts.addresses[0]}
        return (
            self._pod(leader["metadata"]["name"], leader, 0, of_leader, names),
            self._pod(worker["metadata"]["name"], worker, 1, of_worker, names),
        )

    def _pod(self, name: str, manifest: Object, host: int, more: dict[str, str], names: dict[str, str]) -> Pod:
        return Pod(
            name,
            manifest,
            self.deployed.objects,
            self.folder / name,
            host=self.hosts.names[host],
            address=self.hosts.addresses[host],
            names=names,
            environment=more,
        )


@pytest.fixture(scope="module")
def world(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("cluster")
    with two_hosts() as hosts:
        refusal = container_refusal(hosts)
        if refusal:
            pytest.skip(f"this machine allows no containers: {refusal}")
        files = smollm2_repository(smollm2_gguf)
        (folder / "config.json").write_bytes(files["config.json"])
        shared = make_shared(folder / "shared file system", POD_USER)
        deployed = deploy(folder / "config.json", {"engines-rw": shared, "engines-ro": shared}, TOKEN)
        hub = Hub({REPOSITORY: files}, gated={REPOSITORY})
        try:
            with in_network_of(hosts.names[1], lambda: hub.serving(hosts.addresses[1])):
                yield World(deployed, hosts, hub, folder, shared)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def container_refusal(hosts: Hosts) -> str:
    """Why a container's file system cannot be made here; empty where it can."""
    script = "t=$(mktemp -d) && mount -t tmpfs none $t && mkdir $t/u $t/w $t/r && "
    script += "mount -t overlay -o lowerdir=/,upperdir=$t/u,workdir=$t/w none $t/r && mount -t proc none /proc; "
    script += "s=$?; umount $t/r; umount $t; rmdir $t; exit $s"
    unshare = ["unshare", "--mount", "--ipc", "--pid", "--fork", "sh", "-c", script]
    tried = ["ip", "netns", "exec", hosts.names[0], *unshare]
    done = subprocess.run(tried, capture_output=True, text=True, check=False)
    return (done.stderr.strip() or "mounting fails") if done.returncode else ""


@pytest.fixture(scope="module")
def built(world: World) -> None:
    """Both Jobs' pods, one after the other, run to their end."""
    for pod, container in ((world.fetch_pod("fetch"), "fetch"), (world.build_pod("build"), "build")):
        assert pod.run_to_its_end(BUILD_SECONDS) == {container: 0}, pod.said()


@pytest.mark.usefixtures("built")
def test_the_jobs_fetch_the_weights_and_publish_the_engine(world: World) -> None:
    engine = world.deployed.plan.engine.id
    store = EngineStore(world.shared / "store")
    assert [info.id for info in store.list()] == [engine]
    assert store.verify(engine) == []
    checkpoint = world.shared / "checkpoints" / checkpoint_folder(f"hf://{REPOSITORY}", COMMIT)
    assert {path.name for path in checkpoint.iterdir()} >= {"config.json", "model-00001-of-00002.safetensors"}
    assert not (checkpoint / "pytorch_model.bin").exists()
    assert {path.stat().st_uid for path in [checkpoint, *checkpoint.iterdir()]} == {POD_USER}
    # Once more, as after the loss of the node that it ran on: there is nothing left to do.
    asked = world.hub.gets.total()
    assert world.fetch_pod("fetch-again").run_to_its_end(60) == {"fetch": 0}
    assert world.build_pod("build-again").run_to_its_end(60) == {"build": 0}
    assert world.hub.gets.total() == asked


@pytest.mark.usefixtures("built")
def test_the_group_starts_answers_at_its_service_and_ends_in_time(world: World) -> None:
    service = world.deployed.service["spec"]
    leader, worker = world.group()
    try:
        leader.start()
        worker.start()
        seconds = [pod.until_started() for pod in (worker, leader)]
        print(f"\nthe worker's launcher is up after {seconds[0]:.1f} s, the group after {sum(seconds):.1f} s")
        for pod in (leader, worker):
            for kind in ("readinessProbe", "livenessProbe"):
                assert pod.probe(kind)[0], pod.probe(kind)[1] + pod.said()
        assert worker.probe("readinessProbe")[1] == "worker 1: joined\n"

        # The Service knows the leader by its labels, and the port by its name.
        assert [pod for pod in (leader, worker) if service["selector"].items() <= pod.labels.items()] == [leader]
        (http,) = (port for port in service["ports"] if port["name"] == "http")
        url = f"http://{leader.address}:{leader.port(http['targetPort'])}/v2"
        answer = ask(world, url, 32)
        assert answer.startswith("Kubernetes is a")
        assert models(world, url) == MODELS
        for pod in (leader, worker):
            assert_confined(pod)

        # The pods are deleted while a request is in flight; it still gets its whole answer.
        with ThreadPoolExecutor(3) as pool:
            long = pool.submit(ask, world, url, 100)
            time.sleep(0.5)
            ends = [pool.submit(pod.stop) for pod in (leader, worker)]
            assert len(long.result()) > len(answer)
            assert long.result().startswith(answer)
            for pod, (status, took) in zip((leader, worker), [end.result() for end in ends], strict=True):
                print(f"{pod.name} ended with status {status} after {took:.1f} s of {GRACE_SECONDS}")
                assert status == 0, pod.said()
                assert took < GRACE_SECONDS
        assert "stopping: no new requests" in leader.said()
    finally:
        leader.destroy()
        worker.destroy()


def assert_confined(pod: Pod) -> None:
    """The running container is what its manifest promises: nobody's root, with a file system that it cannot change."""
    status = dict(line.split(":\t", 1) for line in pod.read("/proc/1/status").splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(POD_USER)}
    assert status["NoNewPrivs"] == "1"
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16}
    folders = "/ /opt/tritonfleet /opt/tritonfleet/runtime /opt/tritonfleet/models /shared /etc"
    writable = pod.run_inside(f"for d in {folders}; do test -w $d && echo $d; done")
    assert writable == ""
    assert "launcher" in pod.read("/run/tritonfleet/state.json")


def ask(world: World, url: str, tokens: int) -> str:
    """The answer to one question from the other host, as a client would put it."""
    body = json.dumps({"text_input": QUESTION, "max_tokens": tokens})
    return str(json.loads(post(world, f"{url}/models/tensorrt_llm_bls/generate", body))["text_output"])


def models(world: World, url: str) -> list[str]:
    """The models that Triton has, by its own word."""
    index = json.loads(post(world, f"{url}/repository/index", "{}"))
    assert {model["state"] for model in index} == {"READY"}
    return sorted(model["name"] for model in index)


def post(world: World, url: str, body: str) -> str:
    program = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], sys.argv[2].encode(), 60).read().decode())"
    command = ["ip", "netns", "exec", world.hosts.names[1], sys.executable, "-c", program, url, body]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout
