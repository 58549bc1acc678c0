"""The memlock DaemonSet: the very script on real processes, and the manifests against a real API server."""

import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.platform.memlock import memlock
from components.platform.memlock.component import SCRIPT, Memlock, MemlockArgs
from tests.cluster.control_plane import ControlPlane
from tests.components.world import run

CAP_SYS_RESOURCE = 24


@pytest.fixture(params=["containerd", "containerd-shim-runc-v2"])
def containerd(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """A process of that name which may lock 64 KiB, as on a node, and raise that by itself up to its hard limit."""
    binary = tmp_path / request.param
    shutil.copy(shutil.which("sleep") or "sleep", binary)
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    process = subprocess.Popen(
        [binary, "60"], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, hard))
    )
    yield process.pid
    process.kill()
    process.wait()


def limit_of(pid: int) -> tuple[int, int]:
    return resource.prlimit(pid, resource.RLIMIT_MEMLOCK)


def test_it_finds_containerd_and_nothing_else(containerd: int) -> None:
    found = list(memlock.processes())

    assert containerd in found
    assert all(Path(f"/proc/{pid}/comm").read_text().strip().startswith("containerd") for pid in found)


def test_it_raises_the_limit_that_containers_inherit_and_says_so_once(
    containerd: int, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, hard = limit_of(containerd)
    assert soft < hard

    for _ in range(2):
        memlock.raise_limit(containerd, (hard, hard))

    assert limit_of(containerd) == (hard, hard)
    assert capsys.readouterr().out.count(f"process {containerd}:") == 1


def test_a_process_that_has_ended_is_no_fault() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()

    memlock.raise_limit(ended.pid, memlock.UNLIMITED)


def test_the_script_lifts_the_limit_altogether(containerd: int) -> None:
    effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    if not int(effective.split()[1], 16) >> CAP_SYS_RESOURCE & 1:
        pytest.skip("this machine does not let its root raise a hard limit (CAP_SYS_RESOURCE)")
    script = subprocess.Popen([sys.executable, str(SCRIPT)])
    try:
        deadline = time.monotonic() + 30
        while limit_of(containerd) != memlock.UNLIMITED and time.monotonic() < deadline:
            time.sleep(0.1)
        assert limit_of(containerd) == memlock.UNLIMITED
    finally:
        script.terminate()
        assert script.wait(timeout=5) == 0


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """What the component registers, by kind."""

    def program() -> None:
        Memlock("memlock", MemlockArgs(namespace="nodes", pools=["h100", "h200"], mirrors={}))

    return {found.inputs["kind"]: found.inputs for found in run(program) if found.type.startswith("kubernetes:")}


def test_it_runs_on_the_pools_nodes_from_their_first_minute(manifests: dict[str, dict[str, Any]]) -> None:
    pod = manifests["DaemonSet"]["spec"]["template"]["spec"]
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]

    assert term["matchExpressions"] == [{"key": "tritonfleet.io/pool", "operator": "In", "values": ["h100", "h200"]}]
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert manifests["ConfigMap"]["data"] == {"memlock.py": SCRIPT.read_text(encoding="utf-8")}


def test_it_has_one_capability_and_no_more(manifests: dict[str, dict[str, Any]]) -> None:
    pod = manifests["DaemonSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    security = container["securityContext"]

    assert security["capabilities"] == {"drop": ["ALL"], "add": ["SYS_RESOURCE"]}
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert not security.get("privileged")
    assert pod["hostPID"] is True
    assert not pod.get("hostNetwork")
    assert pod["automountServiceAccountToken"] is False
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_the_api_server_takes_it(cluster: ControlPlane, manifests: dict[str, dict[str, Any]]) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "nodes", "labels": labels}}

    cluster.apply([space])
    cluster.apply(list(manifests.values()))
