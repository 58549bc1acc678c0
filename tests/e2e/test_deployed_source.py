"""The pod that a stack renders for weights in a bucket fetches them from a server that speaks S3, as somebody.

It runs in a container of its own (tests/kubelet), on one host; S3 (moto) is on another. What EKS does to a pod with an
identity is done to this one: its webhook's variables and token, and its agent at 169.254.170.23, which gives
credentials to whoever has the token. Moto refuses strangers, and believes everybody else: that the credentials came
from the agent is what is counted.
"""

import copy
import json
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from components.clouds.base import POD_USER
from planner.sources import checkpoint_folder
from runtime.fetch import RECORD
from runtime.process_tree import die_with_parent
from tests import tiny_llama
from tests.components.serving.stacks import LARGE, planned, served, with_source
from tests.e2e.test_deployed_pods import container_refusal
from tests.hosts import Hosts, ip, two_hosts
from tests.kubelet.network import in_network_of
from tests.kubelet.pod import Pod
from tests.kubelet.volumes import Object, Objects, make_shared
from tests.object_stores import BUCKET, MOTO

AGENT = "169.254.170.23"
# EKS says /var/run, which is a link in every image.
TOKENS = "/run/secrets/pods.eks.amazonaws.com/serviceaccount"
TOKEN = "eks-pod-identity-token"
S3_PORT = 5000
SOURCE = f"s3://{BUCKET}/llama/405b"
UPLOAD = """
import sys, time, urllib.request as u
from pathlib import Path
url, bucket, prefix, folder = sys.argv[1:]
owner = {"Authorization": "AWS owner:b", "Content-Type": "application/octet-stream"}
put = lambda path, data: u.urlopen(u.Request(f"{url}/{path}", data, owner, method="PUT"), timeout=10).close()
for attempt in range(300):
    try:
        put(bucket, b"")
        break
    except OSError:
        time.sleep(0.1)
for path in Path(folder).iterdir():
    put(f"{bucket}/{prefix}/{path.name}", path.read_bytes())
"""


@dataclass
class Agent:
    """EKS's Pod Identity agent: credentials for a pod that shows its token."""

    asked: list[str] = field(default_factory=list[str])

    @contextmanager
    def serving(self) -> Generator["Agent"]:
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.headers.get("Authorization", ""))
                keys = {"AccessKeyId": "ASIAPOD", "SecretAccessKey": "secret", "Token": "session"}
                body = json.dumps(keys | {"Expiration": "2999-01-01T00:00:00Z"}).encode()
                self.send_response(200 if asked[-1] == "of-this-pod" else 403)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer((AGENT, 80), Handler)
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


@dataclass
class World:
    hosts: Hosts
    agent: Agent
    shared: Path
    folder: Path
    revision: str
    objects: Objects
    template: Object

    def pod(self, name: str, *, somebody: bool = True) -> Pod:
        """A pod of the fetch Job as EKS's webhook changes it."""
        manifest = copy.deepcopy(self.template)
        region, url = {"AWS_REGION": "eu-west-1"}, f"http://{self.hosts.addresses[1]}:{S3_PORT}"
        if somebody:
            manifest["spec"]["volumes"].append({"name": TOKEN, "secret": {"secretName": TOKEN}})
            for container in manifest["spec"]["containers"]:
                container["volumeMounts"].append({"name": TOKEN, "mountPath": TOKENS, "readOnly": True})
            region |= {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{AGENT}/v1/credentials"}
            region |= {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": f"{TOKENS}/{TOKEN}"}
        return Pod(
            name,
            manifest,
            self.objects,
            self.folder / name,
            host=self.hosts.names[0],
            address=self.hosts.addresses[0],
            environment={**region, "AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true"},
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if not MOTO.exists():
        pytest.skip("no moto here: `make setup` installs it")
    folder = tmp_path_factory.mktemp("source")
    with two_hosts() as hosts:
        if refusal := container_refusal(hosts):
            pytest.skip(f"this machine allows no containers: {refusal}")
        plan = with_source(planned(LARGE), SOURCE)
        recorded = served(plan)
        shared = make_shared(folder / "shared", POD_USER)
        config_maps = {found.inputs["metadata"]["name"]: found.inputs for found in recorded.of("ConfigMap")}
        secrets = {TOKEN: {"stringData": {TOKEN: "of-this-pod"}}}
        ip("-n", hosts.names[0], "addr", "add", f"{AGENT}/32", "dev", "lo")
        inside = ["ip", "netns", "exec", hosts.names[1]]
        command = [*inside, MOTO, "-m", "moto.server", "-H", hosts.addresses[1], "-p", str(S3_PORT)]
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(command, stdout=quiet, stderr=quiet, preexec_fn=die_with_parent)
        try:
            published = tiny_llama.write(folder / "published")
            url = f"http://{hosts.addresses[1]}:{S3_PORT}"
            uploaded = [sys.executable, "-c", UPLOAD, url, BUCKET, "llama/405b", str(published)]
            subprocess.run([*inside, *uploaded], check=True, timeout=60)
            with in_network_of(hosts.names[0], Agent().serving) as agent:
                yield World(
                    hosts=hosts,
                    agent=agent,
                    shared=shared,
                    folder=folder,
                    revision=plan.models[0].config.revision or "",
                    objects=Objects(config_maps, secrets, {"engines-rw": shared}),
                    template=recorded.one("Job", "-weights-").inputs["spec"]["template"],
                )
        finally:
            server.kill()
            server.wait()


def test_a_pod_that_is_nobody_says_so_and_publishes_nothing(world: World) -> None:
    pod = world.pod("nobody", somebody=False)

    assert pod.run_to_its_end(120) == {"fetch": 1}
    assert f"no credentials were found for {SOURCE}" in pod.said()
    assert "Traceback" not in pod.said()
    assert not (world.shared / "checkpoints" / checkpoint_folder(SOURCE, world.revision)).exists()


def test_a_pod_with_an_identity_fetches_its_weights(world: World) -> None:
    pod = world.pod("somebody")

    assert pod.run_to_its_end(120) == {"fetch": 0}, pod.said()
    checkpoint = world.shared / "checkpoints" / checkpoint_folder(SOURCE, world.revision)
    fetched = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != RECORD}
    assert fetched == {path.name: path.read_bytes() for path in (world.folder / "published").iterdir()}
    assert {path.stat().st_uid for path in [checkpoint, *checkpoint.iterdir()]} == {POD_USER}
    assert world.agent.asked
    assert set(world.agent.asked) == {"of-this-pod"}
