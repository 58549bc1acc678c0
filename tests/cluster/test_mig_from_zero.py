"""MIG from zero nodes on each cloud, by the real scheduler and the real gate: a pod that asks for a slice lands on
divided GPUs alone, and the autoscaler can size a pool from zero for it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from components.platform.mig_gate.component import SCRIPT, divided
from planner.errors import PlanError
from planner.fleet import NodeGroupPlan
from planner.pool_labels import CAPACITY_LABEL, DEVICE_PLUGIN_LABEL, MIG_STATE_LABEL, NODE_GROUP_LABEL, POOL_LABEL
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fleets import Node, born, members, pool_of, template
from tests.cluster.scheduling import Scheduler
from tests.contract.programs import cloud_of, edited, plan_of

CASES = ("aws-small-mig", "gcp-small-mig", "azure-small-mig")
GPU, PRODUCT = "nvidia.com/gpu", "nvidia.com/gpu.product"
WHOLE = "NVIDIA-H100-80GB-HBM3"


def groups() -> list[tuple[str, NodeGroupPlan]]:
    return [(case, group) for case in CASES for group in pool_of(case).node_groups]


def divided_node(case: str, group: NodeGroupPlan) -> Node:
    """A node of the group whose life is complete."""
    node, pool = born(case, group), pool_of(case)
    labels = {
        "aws": {MIG_STATE_LABEL: "success"},
        "gcp": {},
        "azure": {PRODUCT: f"{WHOLE}-MIG-{pool.mig_profile}", DEVICE_PLUGIN_LABEL: "true"},
    }[cloud_of(case)]
    startup = {taint.key for taint in group.startup_taints}
    return Node(
        labels=node.labels | labels,
        taints=[taint for taint in node.taints if taint["key"] not in startup],
        allocatable=node.allocatable | {str(pool.gpu_resource): str(pool.units_per_node)},
    )


@pytest.mark.parametrize(("case", "group"), groups(), ids=lambda value: getattr(value, "name", value))
def test_a_slice_is_given_by_a_node_that_is_divided_and_by_no_other(
    place: Callable[[str], Scheduler], case: str, group: NodeGroupPlan
) -> None:
    scheduler, pool = place(case), pool_of(case)
    (pod,) = members(case, plan_of(case).models[0].name)
    assert scheduler.placed(pod).node is None, "there is no node at all"

    node = born(case, group)
    node.put(scheduler, "new")
    assert scheduler.placed(pod).node is None, "its GPUs are not there yet"

    if cloud_of(case) == "aws":
        Node(labels=node.labels, taints=node.taints, allocatable=node.allocatable | {GPU: "1"}).put(scheduler, "new")
        assert scheduler.placed(pod).node is None, "its GPU is whole"
        # The MIG manager restarts the device plugin before it reports success.
        slices = node.allocatable | {str(pool.gpu_resource): str(pool.units_per_node)}
        Node(labels=node.labels | {MIG_STATE_LABEL: "pending"}, taints=[], allocatable=slices).put(scheduler, "new")
        assert scheduler.placed(pod).node is None, "nobody has said that it is divided"

    # Another pool has whole GPUs, which a cloud may call by the name of slices.
    other = {key: value for key, value in node.labels.items() if key != POOL_LABEL and value != pool.name}
    other |= {POOL_LABEL: "large", NODE_GROUP_LABEL: "large-spot", CAPACITY_LABEL: group.capacity}
    Node(labels=other, taints=node.taints, allocatable=node.allocatable | {GPU: "8"}).put(scheduler, "large")
    assert scheduler.placed(pod).node is None, "a whole GPU of another pool is no slice"

    divided_node(case, group).put(scheduler, "new")
    assert scheduler.placed(pod).node == "new"


@pytest.mark.parametrize(("case", "group"), groups(), ids=lambda value: getattr(value, "name", value))
def test_the_autoscaler_sees_that_a_new_node_would_do(
    place: Callable[[str], Scheduler], case: str, group: NodeGroupPlan
) -> None:
    scheduler = place(case)
    template(case, group).put(scheduler, "template-node")

    pods = [pod for model in plan_of(case).models for pod in members(case, model.name)]
    assert [scheduler.placed(pod).node for pod in pods] == ["template-node"] * len(pods)
    assert len(pods) == pool_of(case).units_per_node == 3
    (fourth,) = members(case, plan_of(case).models[0].name, group=1)
    assert "Insufficient" in scheduler.placed(fourth).reason, "it would ask for a second node"


@pytest.mark.parametrize("case", ["aws-small-mig", "azure-small-mig"])
def test_the_gate_opens_a_node_for_a_waiting_pod(
    place: Callable[[str], Scheduler], scheduled_cluster: ControlPlane, tmp_path: Path, case: str
) -> None:
    scheduler, pool = place(case), pool_of(case)
    (pod,) = members(case, plan_of(case).models[0].name)
    node = born(case, pool.node_groups[0])
    slices = node.allocatable | {str(pool.gpu_resource): str(pool.units_per_node)}
    with scheduler.running(), gate(scheduled_cluster, case, tmp_path):
        scheduler.create(pod)
        node.put(scheduler, "new")
        assert scheduler.decided(pod).node is None
        if cloud_of(case) == "aws":
            Node(labels=node.labels, taints=node.taints, allocatable=slices).put(scheduler, "new")
            time.sleep(1)
            assert taints(scheduled_cluster) > {GPU}, "the taint stays until the MIG manager reports success"
            scheduled_cluster.kubectl("label", "node", "new", f"{MIG_STATE_LABEL}=success")
        else:
            label(scheduled_cluster, f"{PRODUCT}={WHOLE}")
            time.sleep(1)
            assert plugin(scheduled_cluster) == "false", "the device plugin stays away from a whole GPU"
            label(scheduled_cluster, f"{PRODUCT}={WHOLE}-MIG-{pool.mig_profile}")
            until(lambda: plugin(scheduled_cluster) == "true")
            # The operator now starts the device plugin there, which finds slices and nothing else.
            status = json.dumps({"status": {"allocatable": slices, "capacity": slices}})
            scheduled_cluster.kubectl("patch", "node", "new", "--subresource=status", "--type=merge", "--patch", status)

        assert scheduler.landed(pod).node == "new"


@pytest.mark.parametrize("case", CASES)
def test_no_engine_is_spread_over_slices(case: str) -> None:
    with pytest.raises(PlanError) as refused:
        edited(case, lambda values: values["models"][0].update(tensor_parallel=2))
    assert any(problem.key.startswith("models[0]") and "MIG" in str(problem) for problem in refused.value.problems)


@contextmanager
def gate(cluster: ControlPlane, case: str, folder: Path) -> Generator[None]:
    """The gate of a case's pool, with the administrator's rights: its own are test_mig_gate.py's."""
    (folder / "token").write_text(cluster.admin_token)
    (folder / "ca.crt").write_bytes(cluster.ca_file.read_bytes())
    environment = {
        "KUBERNETES_SERVICE_HOST": cluster.host,
        "KUBERNETES_SERVICE_PORT": str(cluster.port),
        "CREDENTIALS": str(folder),
        "HEARTBEAT": str(folder / "alive"),
        "WATCH_SECONDS": "3",
        "POOLS": json.dumps([divided(pool_of(case))]),
    }
    process = subprocess.Popen([sys.executable, str(SCRIPT)], env=environment, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def label(cluster: ControlPlane, pair: str) -> None:
    cluster.kubectl("label", "--overwrite", "node", "new", pair)


def plugin(cluster: ControlPlane) -> str:
    return cluster.get("node", "new")["metadata"]["labels"][DEVICE_PLUGIN_LABEL]


def taints(cluster: ControlPlane) -> set[str]:
    return {taint["key"] for taint in cluster.get("node", "new")["spec"].get("taints", [])}


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
