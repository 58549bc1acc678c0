"""InfiniBand: only where a model spans nodes, only on those nodes, and devices of nothing but InfiniBand."""

import json
from typing import Any

import pytest

from components.platform.charts import gpu_node_tolerations
from planner.versions import CHARTS
from tests.components.azure.stacks import built, site
from tests.components.world import Recorded

STACK, PLAIN = "azure-llama-405b", "azure-small-mig"


@pytest.fixture(scope="module")
def world() -> Recorded:
    return built(STACK)


def policy(world: Recorded) -> dict[str, Any]:
    return world.one("kubernetes:mellanox.com/v1alpha1:NicClusterPolicy").inputs["spec"]


def test_nothing_of_it_is_there_where_no_model_spans_nodes() -> None:
    assert not built(PLAIN).of("Release")
    assert not built(PLAIN).of("Namespace")
    assert not built(PLAIN).of("NicClusterPolicy")


def test_the_pinned_operator_runs_in_a_namespace_that_lets_it(world: Recorded) -> None:
    release, space = world.one("Release").inputs, world.one("Namespace").inputs["metadata"]

    assert (release["chart"], release["version"]) == ("network-operator", CHARTS["network-operator"].version)
    assert release["namespace"] == space["name"] == "network-operator"
    assert space["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    # Node Feature Discovery is the GPU operator's: two of them overwrite each other's labels.
    assert release["values"]["nfd"] == {"enabled": False, "deployNodeFeatureRules": False}


def test_its_object_comes_after_what_knows_its_kind(world: Recorded) -> None:
    made = world.one("kubernetes:mellanox.com/v1alpha1:NicClusterPolicy")

    assert world.one("Release").urn in made.depends_on
    assert made.inputs["metadata"]["name"] == "nic-cluster-policy"  # the only one that the operator looks at


def test_each_infiniband_interface_is_a_device_and_the_ethernet_is_none(world: Recorded) -> None:
    (devices,) = json.loads(policy(world)["sriovDevicePlugin"]["config"])["resourceList"]
    fabric = site(STACK).pools[0].fabric
    assert fabric is not None

    assert f"{devices['resourcePrefix']}/{devices['resourceName']}" == fabric.resource
    assert devices["selectors"] == {"vendors": ["15b3"], "linkTypes": ["infiniband"], "isRdma": True}


def test_only_nodes_of_pools_with_a_fabric_are_touched_and_all_of_them(world: Recorded) -> None:
    spec = policy(world)
    (term,) = spec["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]

    assert term["matchExpressions"] == [{"key": "tritonfleet.io/pool", "operator": "In", "values": ["h100"]}]
    assert spec["tolerations"] == gpu_node_tolerations(site(STACK))
    assert {"kubernetes.azure.com/scalesetpriority", "nvidia.com/gpu"} <= {t["key"] for t in spec["tolerations"]}


def test_the_gpus_memory_is_opened_to_it_on_those_nodes_alone(world: Recorded) -> None:
    spec = world.one("DaemonSet", "fleet-infiniband-peer-memory").inputs["spec"]["template"]["spec"]
    (container,) = spec["containers"]

    assert spec["affinity"]["nodeAffinity"] == policy(world)["nodeAffinity"]
    assert spec["automountServiceAccountToken"] is False
    assert "modprobe nvidia-peermem" in container["command"][-1]


def test_no_operator_drains_nodes_that_serve(world: Recorded) -> None:
    assert policy(world)["ofedDriver"]["upgradePolicy"] == {"autoUpgrade": False}
