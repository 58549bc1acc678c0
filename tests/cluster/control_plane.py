"""A real Kubernetes control plane for tests: etcd and kube-apiserver on loopback, admission and RBAC as in a cluster.

    with control_plane(tmp_path) as cluster:
        cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}])
        refusal = cluster.refusal([pod], namespace="n")  # what admission says, "" if it would let it in

The binaries are those of `setup-envtest`: KUBEBUILDER_ASSETS names the folder with etcd, kube-apiserver and kubectl.
Nothing runs pods: there is no controller and no kubelet, so Deployments and LeaderWorkerSets make none. A scheduler is
in scheduling.py.
"""

import json
import os
import secrets
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_ports

START_SECONDS = 120.0
"""A loaded machine is slow; on an idle one the API server is ready after two seconds."""

Manifest = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ControlPlane:
    """A running control plane. `ca_file` proves who it is; `admin_token` may do everything."""

    host: str
    port: int
    ca_file: Path
    admin_token: str
    kubeconfig: Path
    _kubectl: Path

    @property
    def url(self) -> str:
        """Where the API server listens."""
        return f"https://{self.host}:{self.port}"

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Standard output of kubectl as the administrator; fails the test with what kubectl said."""
        done = self._run(arguments, stdin)
        if done.returncode:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def apply(self, manifests: Iterable[Manifest], *, namespace: str | None = None) -> str:
        """Applies manifests in their order; warnings of admission are in what comes back."""
        done = self._run(("apply", "-f", "-", *_in(namespace)), _stream(manifests))
        if done.returncode:
            raise AssertionError(done.stderr)
        return done.stdout + done.stderr

    def refusal(self, manifests: Iterable[Manifest], *, namespace: str | None = None) -> str:
        """Why admission would refuse these, or warns of them; empty if it takes them in silence. Nothing is stored."""
        done = self._run(("apply", "--dry-run=server", "-f", "-", *_in(namespace)), _stream(manifests))
        return done.stderr.strip()

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get … -o json`."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def may(self, user: str, verb: str, resource: str, *, namespace: str | None = None) -> bool:
        """Whether RBAC allows a user (`system:serviceaccount:NAMESPACE:NAME`) this; `resource` as in `nodes/status`."""
        whole, _, part = resource.partition("/")
        asked = ("auth", "can-i", verb, whole, "--as", user, *_in(namespace))
        done = self._run((*asked, f"--subresource={part}") if part else asked, "")
        return done.stdout.strip() == "yes"

    def service_account(self, namespace: str, name: str, folder: Path) -> Path:
        """A folder as a pod finds it mounted: `token` of an existing account, and `ca.crt`."""
        folder.mkdir(parents=True, exist_ok=True)
        token = self.kubectl("create", "token", name, "--namespace", namespace)
        (folder / "token").write_text(token.strip())
        shutil.copyfile(self.ca_file, folder / "ca.crt")
        return folder

    def _run(self, arguments: Iterable[str], stdin: str) -> subprocess.CompletedProcess[str]:
        command = [str(self._kubectl), f"--kubeconfig={self.kubeconfig}", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


def assets(*more: str) -> Path:
    """The folder of the control plane's binaries and of those named; skips the test where one is missing."""
    named = os.environ.get("KUBEBUILDER_ASSETS")
    if not named:
        pytest.skip("KUBEBUILDER_ASSETS is not set: `make control-plane` builds one, `setup-envtest` installs one")
    folder = Path(named)
    for binary in ("etcd", "kube-apiserver", "kubectl", *more):
        if not (folder / binary).is_file():
            pytest.skip(f"KUBEBUILDER_ASSETS names {folder}, which has no {binary}: `make control-plane` builds it")
    return folder


@contextmanager
def control_plane(folder: Path, *, apiserver_flags: Iterable[str] = ()) -> Generator[ControlPlane]:
    """Starts one that keeps everything in `folder`, and ends it."""
    binaries = assets()
    folder.mkdir(parents=True, exist_ok=True)
    client_port, peer_port, port = free_ports(3)
    token, signing_key, tokens = secrets.token_hex(16), folder / "sa.key", folder / "tokens.csv"
    tokens.write_text(f'{token},admin,admin,"system:masters"\n')
    subprocess.run(["openssl", "genrsa", "-out", str(signing_key), "2048"], check=True, capture_output=True)
    etcd_url = f"http://127.0.0.1:{client_port}"
    etcd = [
        f"--data-dir={folder / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={etcd_url}",
        f"--advertise-client-urls={etcd_url}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
    ]
    apiserver = [
        f"--etcd-servers={etcd_url}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder / 'certificates'}",
        f"--token-auth-file={tokens}",
        "--authorization-mode=RBAC",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={signing_key}",
        f"--service-account-signing-key-file={signing_key}",
        "--endpoint-reconciler-type=none",
        # As in any cluster: what may be privileged is for Pod Security to say.
        "--allow-privileged=true",
        *apiserver_flags,
    ]
    cluster = ControlPlane(
        host="127.0.0.1",
        port=port,
        # Self-signed on first start; the file carries its own CA.
        ca_file=folder / "certificates" / "apiserver.crt",
        admin_token=token,
        kubeconfig=folder / "kubeconfig",
        _kubectl=binaries / "kubectl",
    )
    _write_kubeconfig(cluster)
    with (
        daemon([str(binaries / "etcd"), *etcd], folder / "etcd.log") as store,
        daemon([str(binaries / "kube-apiserver"), *apiserver], folder / "kube-apiserver.log") as server,
    ):
        _wait_until_ready(cluster, (store, server), folder)
        yield cluster


@contextmanager
def daemon(command: list[str], log: Path) -> Generator[subprocess.Popen[bytes]]:
    """A program that runs while the block lasts; what it prints is in `log`."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            yield process
        finally:
            # Nothing that it holds is worth an orderly stop.
            process.kill()
            process.wait()


def _wait_until_ready(cluster: ControlPlane, processes: Iterable[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(cluster):
        dead = [process for process in processes if process.poll() is not None]
        if dead or time.monotonic() > deadline:
            log = (folder / "kube-apiserver.log").read_text(errors="replace")[-3000:]
            raise AssertionError(f"no control plane after {START_SECONDS:.0f} s, or one that ended: {log}")
        time.sleep(0.1)


def _answers(cluster: ControlPlane) -> bool:
    if not cluster.ca_file.exists():
        return False
    request = urllib.request.Request(
        f"{cluster.url}/readyz", headers={"Authorization": f"Bearer {cluster.admin_token}"}
    )
    try:
        context = ssl.create_default_context(cafile=str(cluster.ca_file))
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ssl.SSLError, OSError):
        return False


def _write_kubeconfig(cluster: ControlPlane) -> None:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [
            {"name": "test", "cluster": {"server": cluster.url, "certificate-authority": str(cluster.ca_file)}}
        ],
        "users": [{"name": "admin", "user": {"token": cluster.admin_token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
    }
    cluster.kubeconfig.write_text(json.dumps(content))


def _stream(manifests: Iterable[Manifest]) -> str:
    """Kubectl reads concatenated JSON documents as it reads YAML ones."""
    return "\n".join(json.dumps(manifest) for manifest in manifests)


def _in(namespace: str | None) -> tuple[str, ...]:
    return ("--namespace", namespace) if namespace else ()
