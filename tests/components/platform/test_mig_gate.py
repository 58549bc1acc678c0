"""The MIG gate: the very script and the very manifests, against a real API server."""

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from components.platform.mig_gate import gate
from components.platform.mig_gate.component import SCRIPT, MigGate, MigGateArgs, divided, gated
from planner.pool_labels import MIG_STARTUP_TAINT
from planner.versions import PYTHON_IMAGE
from tests.cluster.control_plane import ControlPlane
from tests.components.platform.plans import plan_of
from tests.components.world import run

NAMESPACE = "mig-gate-test"
USER = f"system:serviceaccount:{NAMESPACE}:mig-gate"
STARTUP = {"key": MIG_STARTUP_TAINT.key, "value": MIG_STARTUP_TAINT.value, "effect": MIG_STARTUP_TAINT.effect}
GPU = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
(MIG,) = plan_of("aws-small-mig").pools
POOL = {"tritonfleet.io/pool": "mig"}
DIVIDED = POOL | {"nvidia.com/mig.config.state": "success"}
SLICES = {"nvidia.com/mig-2g.20gb": "3"}


@pytest.fixture(scope="session")
def manifests() -> list[dict[str, Any]]:
    """What the component registers, as Kubernetes gets it."""

    def program() -> None:
        MigGate("gate", MigGateArgs(namespace=NAMESPACE, pools=[MIG], mirrors={}, depends_on=[]))

    return [resource.inputs for resource in run(program) if resource.type.startswith("kubernetes:")]


@pytest.fixture(scope="session")
def installed(cluster: ControlPlane, manifests: list[dict[str, Any]]) -> ControlPlane:
    """The control plane with the component's objects in a namespace that enforces `restricted`."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}])
    warnings = cluster.apply(manifests)
    assert "Warning" not in warnings
    return cluster


@pytest.fixture
def environment(installed: ControlPlane, tmp_path: Path) -> dict[str, str]:
    """What the pod finds: where the server is, and its own account's token."""
    return {
        "KUBERNETES_SERVICE_HOST": installed.host,
        "KUBERNETES_SERVICE_PORT": str(installed.port),
        "CREDENTIALS": str(installed.service_account(NAMESPACE, "mig-gate", tmp_path / "credentials")),
        "HEARTBEAT": str(tmp_path / "alive"),
        "WATCH_SECONDS": "3",
        "POOLS": json.dumps([divided(MIG)]),
    }


@pytest.fixture
def node(installed: ControlPlane) -> Iterator[Callable[..., str]]:
    """Makes nodes with the start-up taint, and removes them."""
    made: list[str] = []

    def make(name: str, labels: dict[str, str], allocatable: dict[str, str], *taints: dict[str, str]) -> str:
        document = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        resources = {"allocatable": allocatable, "capacity": allocatable}
        installed.apply([document | {"spec": {"taints": list(taints or (GPU, STARTUP))}, "status": resources}])
        made.append(name)
        return name

    yield make
    installed.kubectl("delete", "node", "--wait=false", *made)


def taints(cluster: ControlPlane, name: str) -> list[str]:
    """Keys of a node's taints; the API server itself adds not-ready to a new node."""
    return [taint["key"] for taint in cluster.get("node", name)["spec"].get("taints", [])]


def until(true: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@contextmanager
def running(environment: dict[str, str]) -> Generator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, str(SCRIPT)], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_it_opens_divided_nodes_and_no_others(
    installed: ControlPlane, environment: dict[str, str], node: Callable[..., str]
) -> None:
    first = node("divided", DIVIDED, SLICES)
    others = [
        node("undivided", POOL, SLICES),
        node("pending", POOL | {"nvidia.com/mig.config.state": "pending"}, SLICES),
        node("rebooting", POOL | {"nvidia.com/mig.config.state": "rebooting"}, SLICES),
        node("failed", POOL | {"nvidia.com/mig.config.state": "failed"}, SLICES),
        node("no-slices", DIVIDED, {"nvidia.com/mig-2g.20gb": "0", "nvidia.com/gpu": "1"}),
        node("some-slices", DIVIDED, {"nvidia.com/mig-2g.20gb": "2"}),
        node("other-slices", DIVIDED, {"nvidia.com/mig-1g.10gb": "7"}),
        node("other-pool", DIVIDED | {"tritonfleet.io/pool": "large"}, SLICES),
    ]
    with running(environment):
        assert until(lambda: MIG_STARTUP_TAINT.key not in taints(installed, first))
        # One that is made and divided later, once every node above was seen.
        late = node("late", POOL, SLICES)
        installed.kubectl("label", "node", late, "nvidia.com/mig.config.state=success")
        assert until(lambda: MIG_STARTUP_TAINT.key not in taints(installed, late))

    assert taints(installed, first) == [GPU["key"], "node.kubernetes.io/not-ready"]
    assert [name for name in others if MIG_STARTUP_TAINT.key not in taints(installed, name)] == []


def test_it_waits_for_the_device_plugin(
    installed: ControlPlane, environment: dict[str, str], node: Callable[..., str]
) -> None:
    name = node("slow-plugin", DIVIDED, {"cpu": "4"})
    with running(environment):
        time.sleep(2)
        assert MIG_STARTUP_TAINT.key in taints(installed, name)
        patch = '{"status": {"allocatable": {"nvidia.com/mig-2g.20gb": "3"}}}'
        installed.kubectl("patch", "node", name, "--subresource=status", "--type=merge", "--patch", patch)

        assert until(lambda: MIG_STARTUP_TAINT.key not in taints(installed, name))


def plugin(cluster: ControlPlane, name: str) -> str:
    """What a node says of its device plugin."""
    return cluster.get("node", name)["metadata"]["labels"]["nvidia.com/gpu.deploy.device-plugin"]


def test_where_the_cloud_divides_it_lets_the_device_plugin_start(
    installed: ControlPlane, environment: dict[str, str], node: Callable[..., str]
) -> None:
    (pool,) = plan_of("azure-small-mig").pools
    assert gated(pool)
    assert not any(group.startup_taints for group in pool.node_groups)
    assert divided(pool) == {"labels": pool.node_selector, "product": "-MIG-2g."}
    born = pool.node_groups[0].labels
    product = "nvidia.com/gpu.product"
    first = node("seen-divided", born | {product: "NVIDIA-H100-NVL-MIG-2g.24gb"}, {}, GPU)
    closed = [
        node("not-yet-seen", born, {}, GPU),
        node("whole", born | {product: "NVIDIA-H100-NVL"}, {}, GPU),
        node("no-slices-yet", born | {product: "NVIDIA-H100-NVL-MIG-INVALID"}, {}, GPU),
        node("otherwise-divided", born | {product: "NVIDIA-H100-NVL-MIG-1g.12gb"}, {}, GPU),
        node("another-pool", born | {product: "NVIDIA-H100-NVL-MIG-2g.24gb", "tritonfleet.io/pool": "l4"}, {}, GPU),
    ]
    with running(environment | {"POOLS": json.dumps([divided(pool)])}):
        assert until(lambda: plugin(installed, first) == "true")
        # AKS may put back what it was told when the pool was made.
        installed.kubectl("label", "node", first, "--overwrite", "nvidia.com/gpu.deploy.device-plugin=false")
        assert until(lambda: plugin(installed, first) == "true")
        late = closed.pop(1)
        installed.kubectl("label", "node", late, "--overwrite", f"{product}=NVIDIA-H100-NVL-MIG-2g.24gb")
        assert until(lambda: plugin(installed, late) == "true")

    assert {plugin(installed, name) for name in closed} == {"false"}
    assert taints(installed, first)[0] == GPU["key"], "nothing else of the node changes"


def test_it_outlives_a_refused_token(
    installed: ControlPlane, environment: dict[str, str], node: Callable[..., str]
) -> None:
    token = Path(environment["CREDENTIALS"], "token")
    good = token.read_text()
    token.write_text("expired")
    name = node("patient", DIVIDED, SLICES)
    with running(environment) as process:
        assert process.stdout
        assert any("Unauthorized" in process.stdout.readline() for _ in range(2))
        token.write_text(good)

        assert until(lambda: MIG_STARTUP_TAINT.key not in taints(installed, name))


def test_it_changes_nothing_on_a_node_that_changed_meanwhile(
    installed: ControlPlane,
    environment: dict[str, str],
    node: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for key in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.setenv(key, environment[key])
    monkeypatch.setattr(gate, "POOLS", [divided(MIG)])
    monkeypatch.setattr(gate, "CREDENTIALS", Path(environment["CREDENTIALS"]))
    name = node("moving", DIVIDED, SLICES, STARTUP, GPU)
    stale = installed.get("node", name)
    installed.kubectl("taint", "node", name, f"{STARTUP['key']}-")
    before = taints(installed, name)
    assert before[0] == GPU["key"], "what is first now must not be mistaken for what was"

    gate.open_gate(stale)

    assert taints(installed, name) == before
    assert "moving: HTTP Error 422" in capsys.readouterr().out


def test_it_ends_at_once_when_its_pod_is_stopped(environment: dict[str, str]) -> None:
    with running(environment) as process:
        assert until(Path(environment["HEARTBEAT"]).exists)
        process.terminate()

        assert process.wait(timeout=2) == 0


def test_its_probe_sees_a_loop_that_stands_still(tmp_path: Path) -> None:
    heartbeat = tmp_path / "alive"

    def probe() -> int:
        environment = {**os.environ, "HEARTBEAT": str(heartbeat), "WATCH_SECONDS": "60"}
        return subprocess.run([sys.executable, str(SCRIPT), "--alive"], env=environment, check=False).returncode

    assert probe() == 1, "not begun yet"
    heartbeat.touch()
    assert probe() == 0
    os.utime(heartbeat, (time.time() - 600, time.time() - 600))
    assert probe() == 1


def test_its_account_may_do_nothing_else(installed: ControlPlane) -> None:
    assert installed.may(USER, "patch", "nodes")
    assert installed.may(USER, "watch", "nodes")
    for verb, resource in (
        ("delete", "nodes"),
        ("create", "nodes"),
        ("update", "nodes"),
        ("patch", "nodes/status"),
        ("get", "secrets"),
        ("list", "pods"),
        ("create", "pods"),
        ("get", "configmaps"),
    ):
        assert not installed.may(USER, verb, resource, namespace=NAMESPACE), f"{verb} {resource}"


def test_its_pod_meets_the_restricted_standard(installed: ControlPlane, manifests: list[dict[str, Any]]) -> None:
    deployment = next(manifest for manifest in manifests if manifest["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gate", **template["metadata"]}}

    assert installed.refusal([pod | {"spec": template["spec"]}], namespace=NAMESPACE) == ""


def test_its_pod_runs_the_script_on_a_system_node(manifests: list[dict[str, Any]]) -> None:
    by_kind = {manifest["kind"]: manifest for manifest in manifests}
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert by_kind["ConfigMap"]["data"] == {"gate.py": SCRIPT.read_text(encoding="utf-8")}
    assert by_kind["ConfigMap"]["immutable"] is True
    assert {"name": "script", "configMap": {"name": by_kind["ConfigMap"]["metadata"]["name"]}} in pod["volumes"]
    assert container["command"] == ["python3", "/opt/mig-gate/gate.py"]
    assert container["image"] == PYTHON_IMAGE
    (pools,) = [variable["value"] for variable in container["env"] if variable["name"] == "POOLS"]
    assert json.loads(pools) == [{"labels": DIVIDED, "resource": "nvidia.com/mig-2g.20gb", "slices": 3}]
    assert "tolerations" not in pod, "GPU nodes are tainted, so it lands on a system node"
    assert by_kind["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in by_kind["NetworkPolicy"]["spec"]


def test_the_script_needs_the_standard_library_alone() -> None:
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
        for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 130


def test_it_removes_the_taint_that_the_plan_gives() -> None:
    assert MIG_STARTUP_TAINT.key == gate.TAINT
    assert {taint.key for group in MIG.node_groups for taint in group.startup_taints} == {gate.TAINT}


def test_pools_that_are_not_divided_begin_open() -> None:
    assert gated(MIG)
    assert not [pool.name for pool in plan_of("aws-dev").pools if gated(pool)]
