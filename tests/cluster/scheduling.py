"""A real kube-scheduler for tests: which node a pod lands on, or what keeps it off every one.

    scheduler = Scheduler(cluster, tmp_path)
    scheduler.node("gpu", labels={"pool": "a"}, taints=[taint], allocatable={"nvidia.com/gpu": "8"})
    scheduler.placed(pod)  # Placement(node="gpu", reason="")

Nodes are objects alone, with no kubelet behind them, so that pods land on them and stay there without running.
"""

import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.control_plane import ControlPlane, Manifest, assets, daemon

DECIDE_SECONDS = 60.0
"""A loaded machine is slow; on an idle one a scheduler starts and decides in a fifth of a second."""

ROOMY = {
    "cpu": "256",
    "memory": "2Ti",
    "ephemeral-storage": "10Ti",
    "pods": "110",
    "hugepages-1Gi": "0",
    "hugepages-2Mi": "0",
}
"""What a node offers where a test does not say."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The node that a pod was bound to, or None and the scheduler's reason."""

    node: str | None
    reason: str


class Scheduler:
    """The scheduler of a control plane, with the rights that Kubernetes gives to one; it opens no port."""

    def __init__(self, cluster: ControlPlane, folder: Path) -> None:
        """Keeps its configuration and log in `folder`; skips the test where there is no kube-scheduler."""
        binaries = assets("kube-scheduler")
        self.cluster = cluster
        self._log = folder / "kube-scheduler.log"
        kubeconfig, configuration = folder / "kube-scheduler.kubeconfig", folder / "kube-scheduler.json"
        kubeconfig.write_text(json.dumps(_as_scheduler(json.loads(cluster.kubeconfig.read_text()))))
        configuration.write_text(json.dumps(_configuration(kubeconfig)))
        self._command = [str(binaries / "kube-scheduler"), f"--config={configuration}", "--secure-port=0"]

    def node(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        taints: Iterable[Mapping[str, str]] = (),
        allocatable: Mapping[str, str] | None = None,
    ) -> None:
        """Makes a node that is ready, or makes an existing one so. `allocatable` is beside ROOMY, or instead of it."""
        resources = {**ROOMY, **(allocatable or {})}
        own = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        node = {"apiVersion": "v1", "kind": "Node"}
        metadata = {"name": name, "labels": {**own, **(labels or {})}}
        described = {**node, "metadata": metadata, "spec": {"taints": list(taints)}}
        self._apply(described)
        # Admission taints every new node as not ready. The node lifecycle controller, which does not run here, would
        # remove that taint once the kubelet says Ready.
        self._apply(described)
        status = {"capacity": resources, "allocatable": resources, "conditions": [ready]}
        self._apply({**node, "metadata": {"name": name}, "status": status}, "--subresource=status")

    def bind(self, volumes_and_claims: Iterable[Manifest]) -> None:
        """Stores PersistentVolumes and claims that name theirs; the claims are bound, as the volume controller does."""
        for manifest in volumes_and_claims:
            if manifest["kind"] == "PersistentVolumeClaim":
                bound = {"pv.kubernetes.io/bind-completed": "yes"}
                metadata = {**manifest["metadata"]}
                metadata["annotations"] = {**metadata.get("annotations", {}), **bound}
                manifest = {**manifest, "metadata": metadata}
            self._apply(manifest)

    def create(self, pod: Manifest) -> None:
        """Creates a pod, in place of one of its name; its namespace exists, its service account need not."""
        self.remove(pod)
        # Admission wants the account; the controller that gives one to each namespace does not run here.
        account = {"name": pod["spec"].get("serviceAccountName", "default"), "namespace": _namespace(pod)}
        self._apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
        self.cluster.apply([pod], namespace=_namespace(pod))

    def remove(self, pod: Manifest) -> None:
        """Removes a pod at once: no kubelet would ever say that it ended."""
        now = ("--ignore-not-found", "--force", "--grace-period=0")
        self.cluster.kubectl("delete", "pod", *_named(pod), *now)

    def placed(self, pod: Manifest) -> Placement:
        """Creates a pod and returns what becomes of it. It stays where it lands; one that lands nowhere is removed.

        Each call runs a scheduler of its own, so none may be `running`. A scheduler reads everything before it decides
        anything, while one that runs already might decide before it hears of a node that changed a moment ago.
        """
        self.create(pod)
        with self.running():
            found = self.decided(pod)
        if not found.node:
            self.remove(pod)
        return found

    @contextmanager
    def running(self) -> Generator[None]:
        """Runs the scheduler while the block lasts: it places what waits, and tries again as nodes change."""
        with daemon(self._command, self._log):
            yield

    def decided(self, pod: Manifest) -> Placement:
        """What a running scheduler did with a pod: it landed, or was refused and waits."""
        return self._wait_for(pod, lambda found: bool(found.node or found.reason))

    def landed(self, pod: Manifest) -> Placement:
        """Where a running scheduler puts a pod, refused before or not."""
        return self._wait_for(pod, lambda found: bool(found.node))

    def clear(self) -> None:
        """Removes all nodes and pods."""
        self.cluster.kubectl("delete", "pods", "--all", "--all-namespaces", "--force", "--grace-period=0")
        self.cluster.kubectl("delete", "nodes", "--all")

    def _wait_for(self, pod: Manifest, enough: Callable[[Placement], bool]) -> Placement:
        deadline = time.monotonic() + DECIDE_SECONDS
        while not enough(found := self._placement(pod)):
            if time.monotonic() > deadline:
                said = found.reason or self._log.read_text(errors="replace")[-3000:]
                raise AssertionError(f"{' '.join(_named(pod))} has no node after {DECIDE_SECONDS:.0f} s: {said}")
            time.sleep(0.1)
        return found

    def _placement(self, pod: Manifest) -> Placement:
        stored = self.cluster.get("pod", *_named(pod))
        conditions = {condition["type"]: condition for condition in stored["status"].get("conditions", [])}
        said = conditions.get("PodScheduled", {})
        # Its other reason, SchedulerError, is an accident that it recovers from.
        refused = said.get("reason") == "Unschedulable"
        return Placement(node=stored["spec"].get("nodeName"), reason=said["message"] if refused else "")

    def _apply(self, manifest: Manifest, *flags: str) -> None:
        """What the manifest names becomes so, whoever set it before; the rest of the object stays."""
        asked = ("apply", "--server-side", "--force-conflicts", *flags, "-f", "-")
        self.cluster.kubectl(*asked, stdin=json.dumps(manifest))


def _as_scheduler(kubeconfig: dict[str, Any]) -> dict[str, Any]:
    """The administrator's access, used in the scheduler's name: the API server grants what its roles allow."""
    (user,) = kubeconfig["users"]
    return {**kubeconfig, "users": [{**user, "user": {**user["user"], "as": "system:kube-scheduler"}}]}


def _configuration(kubeconfig: Path) -> dict[str, Any]:
    """Nobody else could lead, and a pod that was refused is tried again within a second of a change."""
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "leaderElection": {"leaderElect": False},
        "podInitialBackoffSeconds": 1,
        "podMaxBackoffSeconds": 1,
    }


def _namespace(pod: Manifest) -> str:
    return pod["metadata"].get("namespace", "default")


def _named(pod: Manifest) -> tuple[str, ...]:
    return (pod["metadata"]["name"], "--namespace", _namespace(pod))
