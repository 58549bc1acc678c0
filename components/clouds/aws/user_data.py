"""What a node does before its kubelet starts, as EC2 user data.

EKS adds its own part to ours (EKS User Guide, "Customize managed nodes with launch templates"). Of a node's services,
`nodeadm-config` runs before cloud-init, then come our scripts, then `nodeadm-run`, which reads /etc/eks/nodeadm.d and
starts containerd and the kubelet (awslabs/amazon-eks-ami, nodeadm examples and templates/al2023).
"""

from collections.abc import Iterator, Sequence

from planner.fleet import NodeGroupPlan, PoolPlan, StoragePlan, Taint

_BOUNDARY = "TRITONFLEET"


def user_data(pool: PoolPlan, group: NodeGroupPlan, storage: StoragePlan) -> str | None:
    """The MIME document of a node group's nodes; None where the image does all that is needed."""
    parts = list(_node_config(pool, storage))
    if steps := list(_steps(pool, group, storage)):
        parts.append(_shell(steps))
    return _document(parts) if parts else None


def _document(parts: Sequence[tuple[str, str]]) -> str:
    lines = ["MIME-Version: 1.0", f'Content-Type: multipart/mixed; boundary="{_BOUNDARY}"', ""]
    for kind, text in parts:
        lines += [f"--{_BOUNDARY}", f"Content-Type: {kind}", "", text]
    return "\n".join([*lines, f"--{_BOUNDARY}--", ""])


def system_user_data(storage: StoragePlan) -> str | None:
    """The same for the nodes without GPUs: the Job that downloads weights writes them to the shared file system."""
    steps = list(_lustre_client(storage))
    return _document([_shell(steps)]) if steps else None


def uses_local_disks(pool: PoolPlan, storage: StoragePlan) -> bool:
    """Whether containers and emptyDirs lie on the node's own NVMe disks."""
    return storage.node_cache and pool.local_nvme_gb > 0


def _node_config(pool: PoolPlan, storage: StoragePlan) -> Iterator[tuple[str, str]]:
    if uses_local_disks(pool, storage):
        # One array of all local disks, and on it what the kubelet and containerd write: emptyDirs and images.
        yield "application/node.eks.aws", _NODE_CONFIG + "  instance:\n    localStorage:\n      strategy: RAID0\n"


def _shell(steps: Sequence[str]) -> tuple[str, str]:
    return 'text/x-shellscript; charset="us-ascii"', "\n".join(["#!/bin/bash", "set -euo pipefail", *steps, ""])


def _steps(pool: PoolPlan, group: NodeGroupPlan, storage: StoragePlan) -> Iterator[str]:
    if pool.fabric and pool.fabric.hugepages_mib:
        # Early, while memory is in one piece; the kubelet counts them once, when it starts.
        yield _file(
            "/etc/sysctl.d/90-tritonfleet.conf",
            [f"vm.nr_hugepages = {pool.fabric.hugepages_mib // 2}"],
        )
        yield "sysctl --load=/etc/sysctl.d/90-tritonfleet.conf"
    if pool.rdma_interfaces:
        # RDMA pins memory. With this limit pods may do so without IPC_LOCK, a capability that `restricted` forbids.
        yield _file("/etc/systemd/system/containerd.service.d/90-memlock.conf", ["[Service]", "LimitMEMLOCK=infinity"])
        yield "systemctl daemon-reload"
    if group.startup_taints:
        # Only here: EKS would put taints of the node group back after they were removed. EKS gives the kubelet the
        # group's own taints in the same flag, whose last occurrence counts: so all of them.
        taints = _flag([*group.taints, *group.startup_taints])
        config = f"{_NODE_CONFIG}  kubelet:\n    flags:\n      - --register-with-taints={taints}"
        yield _file("/etc/eks/nodeadm.d/90-startup-taints.yaml", config.splitlines())
    yield from _lustre_client(storage)


def _lustre_client(storage: StoragePlan) -> Iterator[str]:
    if storage.kind == "lustre":
        # Not in the image. Last, and without an end to the node where it fails: only mounts would then.
        yield "for attempt in 1 2 3 4 5; do dnf install -y lustre-client && break; sleep 10; done"


_NODE_CONFIG = "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n"


def _file(path: str, lines: Sequence[str]) -> str:
    folder = path.rpartition("/")[0]
    return "\n".join([f"mkdir -p {folder}", f"cat > {path} <<'END'", *lines, "END"])


def _flag(taints: Sequence[Taint]) -> str:
    return ",".join(f"{taint.key}={taint.value}:{taint.effect}" for taint in taints)
