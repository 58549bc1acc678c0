"""What is deployed is what was tested: the very pods of the serving component, run on two hosts as a cluster runs them.

One Job's pod fetches the real model from a Hub, another builds its engine, a third installs the frontend's packages;
the leader with its frontend and the worker serve over two network namespaces, each container by itself (tests/kubelet).
Substituted are: the images, by this machine's file system and Python; the GPU backend, by the CPU one, which leaves
GPUs and RDMA interfaces alone; the addresses of the Hub and of PyPI; and the times for a pod's end, by shorter ones.
"""

import copy
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.clouds.base import POD_USER
from components.serving.keys import keys_file
from planner.sources import checkpoint_folder
from runtime.store import EngineStore
from tests.e2e.deployed import API_KEY, GRACE_SECONDS, REPOSITORY, Deployed, deploy, smollm2_repository
from tests.hosts import Hosts, two_hosts
from tests.hub import COMMIT, TOKEN, Hub
from tests.kubelet.network import in_network_of
from tests.kubelet.pod import Pod
from tests.kubelet.volumes import Object, make_shared, rewrite_atomically

ROOT = Path(__file__).parents[2]
MODELS = ["ensemble", "postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls"]
QUESTION = "<|im_start|>user\nWhat is Kubernetes, in two sentences?<|im_end|>\n<|im_start|>assistant\n"
BUILD_SECONDS = 300
ROTATED = "sk-the-key-that-a-team-was-given-later"


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

    def environment_pod(self, name: str, index: str) -> Pod:
        """A pod of the Job that installs packages, there too, for this machine alone; `index` is a package index."""
        template = copy.deepcopy(self.deployed.environment["spec"]["template"])
        template["spec"]["containers"][0]["command"] += ["--machine", platform.machine()]
        host = self.hosts.addresses[1]
        pip = {"PIP_INDEX_URL": index, "PIP_TRUSTED_HOST": host, "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}
        return self._pod(name, template, 0, pip, {})

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


def test_the_job_installs_the_packages_once(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    wheels = downloaded(tmp_path_factory.mktemp("wheels"))
    host = world.hosts.names[1]
    with in_network_of(host, lambda: package_index(wheels, world.hosts.addresses[1])) as index:
        installing = world.environment_pod("install", index)
        assert installing.run_to_its_end(300) == {"install": 0}, installing.said()
    (folder,) = (path for path in (world.shared / "environments").iterdir() if path.name not in ("staging", "locks"))
    assert {path.name for path in folder.iterdir()} == {platform.machine(), "sitecustomize.py"}
    assert (folder / platform.machine() / "tritonclient" / "grpc").is_dir()
    assert not [*(world.shared / "environments" / "staging").iterdir()]
    # Once more, with no index that could be asked: there is nothing left to do.
    again = world.environment_pod("install-again", "http://10.213.77.2:9/")
    assert again.run_to_its_end(60) == {"install": 0}, again.said()


def downloaded(folder: Path) -> Path:
    """The wheels of requirements/pods.txt for this Python, laid out as an index; skips where none are to be had."""
    command = [sys.executable, "-m", "pip", "download", "--dest", str(folder / "all"), "--only-binary", ":all:"]
    command += ["--require-hashes", "--requirement", str(ROOT / "requirements" / "pods.txt"), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no package index can be reached from here: {done.stderr.strip().splitlines()[-1]}")
    for wheel in (folder / "all").iterdir():
        package = folder / wheel.name.split("-")[0].lower().replace("_", "-").replace(".", "-")
        package.mkdir(exist_ok=True)
        wheel.rename(package / wheel.name)
    return folder


@contextmanager
def package_index(folder: Path, address: str) -> Generator[str]:
    """A package index: its folders, listed. Yields its URL."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer((address, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{address}:{server.server_port}/"
        server.shutdown()


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
        until_ready(leader)
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

        (openai,) = (port for port in service["ports"] if port["name"] == "openai")
        base = f"http://{leader.address}:{leader.port(openai['targetPort'])}"
        assert_openai(world, leader, base)

        # The pods are deleted while requests are in flight; they still get their whole answers.
        with ThreadPoolExecutor(4) as pool:
            long = pool.submit(ask, world, url, 48)
            stream = pool.submit(chat, world.hosts, base, API_KEY, max_tokens=48, min_tokens=48, stream=True)
            until_in_flight(world, f"http://{leader.address}:{leader.port('metrics')}/metrics", 2)
            ends = [pool.submit(pod.stop) for pod in (leader, worker)]
            assert len(long.result()) > len(answer)
            assert long.result().startswith(answer)
            status, said = stream.result()
            assert status == 200
            assert said.rstrip().endswith("data: [DONE]"), leader.said()
            assert '"finish_reason":"' in said, said[-500:]
            assert '"error"' not in said
            for pod, (status, took) in zip((leader, worker), [end.result() for end in ends], strict=True):
                print(f"{pod.name} ended with status {status} after {took:.1f} s of {GRACE_SECONDS}")
                assert status == 0, pod.said()
                assert took < GRACE_SECONDS
        assert "stopping: no new requests" in leader.said()
    finally:
        leader.destroy()
        worker.destroy()


def until_in_flight(world: World, url: str, count: int) -> None:
    """Waits until the engine computes that many requests."""
    program = "import re, sys, time, urllib.request as u\n"
    program += "while float(re.search(r'request_type=\"active\".*} (\\S+)', u.urlopen(sys.argv[1]).read().decode())[1])"
    program += " < int(sys.argv[2]): time.sleep(0.05)"
    command = ["ip", "netns", "exec", world.hosts.names[1], sys.executable, "-c", program, url, str(count)]
    subprocess.run(command, check=True, timeout=60)


def until_ready(pod: Pod) -> None:
    """Waits for the frontend's probe as a kubelet does; it asks Triton now and then."""
    end = time.monotonic() + 30
    while not pod.probe("readinessProbe", "frontend")[0]:
        assert time.monotonic() < end, pod.probe("readinessProbe", "frontend")[1] + pod.said()
        time.sleep(0.2)


def assert_openai(world: World, leader: Pod, base: str) -> None:
    """The Service's first port speaks OpenAI's API to who has the key, and to whom it is given while all runs."""
    status, body = chat(world.hosts, base, API_KEY, max_tokens=8)
    assert status == 200, body + leader.said()
    assert json.loads(body)["choices"][0]["message"]["content"].startswith("Kubernetes")
    assert [chat(world.hosts, base, key, max_tokens=8)[0] for key in ("", "sk-another")] == [401, 401]
    assert "<title>" in request(world.hosts, f"{base}/ui/", "")[1]
    assert_confined(leader, "frontend")
    environment = leader.run_inside("python3 -c 'import tritonclient; print(tritonclient.__file__)'", "frontend")
    if any((world.shared / "environments").glob("*/sitecustomize.py")):
        assert environment.startswith("/shared/environments/")

    process = frontend_process(leader)
    folder = leader.volumes["api-keys"][1]
    assert folder is not None
    keys = keys_file({"team-a": ROTATED}, {}).encode()
    rewrite_atomically(folder, {"keys.json": keys}, mode=0o440, group=POD_USER)
    assert [chat(world.hosts, base, key, max_tokens=8)[0] for key in (ROTATED, API_KEY)] == [200, 401]
    old = keys_file({"default": API_KEY}, {}).encode()
    rewrite_atomically(folder, {"keys.json": old}, mode=0o440, group=POD_USER)

    # A frontend that dies is started again in its container, which no controller hears of.
    assert frontend_process(leader) == process
    process.kill()
    process.wait()
    until_ready(leader)
    assert frontend_process(leader) != process
    assert leader.sidecars["frontend"].poll() is None
    assert chat(world.hosts, base, API_KEY, max_tokens=8)[0] == 200


def frontend_process(leader: Pod) -> psutil.Process:
    """The one that frontend.keep has started."""
    inside = psutil.Process(leader.sidecars["frontend"].pid).children(recursive=True)
    (found,) = (process for process in inside if process.cmdline()[1:3] == ["-m", "frontend"])
    return found


def assert_confined(pod: Pod, sidecar: str = "") -> None:
    """The running container is what its manifest promises: nobody's root, with a file system that it cannot change."""
    said = pod.read("/proc/1/status", sidecar)
    status = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(POD_USER)}
    assert status["NoNewPrivs"] == "1"
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16}
    folders = "/ /opt/tritonfleet /opt/tritonfleet/runtime /opt/tritonfleet/models /shared /etc"
    writable = pod.run_inside(f"for d in {folders}; do test -w $d && echo $d; done", sidecar)
    assert writable == ""
    assert "launcher" in pod.read("/run/tritonfleet/state.json", sidecar)


def chat(hosts: Hosts, base: str, key: str, **options: Any) -> tuple[int, str]:
    """Status and body of a chat's answer, from the other host."""
    messages = [{"role": "user", "content": "What is Kubernetes, in two sentences?"}]
    body = {"model": "smollm2", "messages": messages, "temperature": 0, **options}
    return request(hosts, f"{base}/v1/chat/completions", key, json.dumps(body))


def request(hosts: Hosts, url: str, key: str, body: str = "") -> tuple[int, str]:
    program = "import sys, http.client, urllib.parse as p; u = p.urlsplit(sys.argv[1]); "
    program += "c = http.client.HTTPConnection(u.netloc, timeout=60); "
    program += "h = {'Authorization': 'Bearer ' + sys.argv[2]} if sys.argv[2] else {}; "
    program += "c.request('POST' if sys.argv[3] else 'GET', u.path, sys.argv[3] or None, h); "
    program += "r = c.getresponse(); print(r.status); print(r.read().decode())"
    command = ["ip", "netns", "exec", hosts.names[1], sys.executable, "-c", program, url, key, body]
    status, _, said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout.partition(
        "\n"
    )
    return int(status), said


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
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout
