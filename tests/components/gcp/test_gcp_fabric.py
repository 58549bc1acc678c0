"""Multi-networking: VPCs for GPUs' interfaces, their names in Kubernetes, and what GPUDirect puts on nodes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any, cast

import pytest
from pulumi_kubernetes.core.v1 import CapabilitiesArgs, SecurityContextArgs, VolumeMountArgs

from components.serving import pods
from planner.clouds.gcp_fabrics import TCPX as TCPX_FABRIC
from planner.clouds.gcp_fabrics import TCPXO as TCPXO_FABRIC
from planner.fleet import CloudPlan, Fabric
from planner.versions import DEVICE_INJECTOR, GPUDIRECT, PAUSE_IMAGE, PYTHON_IMAGE
from tests.components.gcp.stacks import MIG, RDMA, build, built, over, site
from tests.components.world import Recorded

TCPX, TCPXO = ("a3-highgpu-8g", "us-central1-a"), ("a3-megagpu-8g", "us-central1-a")


def used(plan: CloudPlan) -> Recorded:
    return build(plan, (), lambda cloud: cloud.autoscaling())


@pytest.fixture(scope="module")
def roce() -> Recorded:
    return built(RDMA)


def named(plan: CloudPlan) -> list[dict[str, str]]:
    """The interfaces that a pod's annotations ask for."""
    fabric = plan.pools[0].fabric
    assert fabric is not None
    return json.loads(fabric.annotations["networking.gke.io/interfaces"])


def networks(recorded: Recorded, kind: str) -> dict[str, Any]:
    return {r.inputs["metadata"]["name"]: r for r in recorded.of(f"kubernetes:networking.gke.io/v1:{kind}")}


def test_roce_has_one_gvnic_and_eight_rdma_interfaces_in_the_order_of_the_machine(roce: Recorded) -> None:
    for group in ("spot", "flex-start"):
        config = roce.one("NodePool", f"fleet-h200-{group}").inputs["networkConfig"]["additionalNodeNetworkConfigs"]
        assert [one["subnetwork"] for one in config] == [
            "tritonfleet-stack-gvnic-1",
            *(f"tritonfleet-stack-rdma-{index}" for index in range(8)),
        ]
        assert [one["network"] for one in config] == ["tritonfleet-stack-gvnic-1"] + ["tritonfleet-stack-rdma"] * 8


def test_the_rdma_network_is_of_its_zones_profile_with_jumbo_frames_and_no_rules(roce: Recorded) -> None:
    rdma = roce.one("gcp:compute/network:Network", "fleet-roce-rdma").inputs

    assert rdma["networkProfile"] == "projects/tritonfleet-example/global/networkProfiles/us-central1-b-vpc-roce"
    assert rdma["mtu"] == 8896
    assert rdma["autoCreateSubnetworks"] is False
    assert not [rule for rule in roce.of("Firewall") if rule.inputs["network"] == "fleet-roce-rdma-id"]
    gvnic = roce.one("gcp:compute/network:Network", "fleet-roce-gvnic-1").inputs
    assert gvnic["mtu"] == 8896
    assert "networkProfile" not in gvnic


@pytest.mark.parametrize("plan", [site(RDMA), over(*TCPX), over(*TCPXO)], ids=["roce", "tcpx", "tcpxo"])
def test_subnets_of_interfaces_overlap_with_nothing_of_a_node(plan: CloudPlan) -> None:
    recorded = build(plan)
    ranges = [IPv4Network(r.inputs["ipCidrRange"]) for r in recorded.of("Subnetwork")]
    ranges += [IPv4Network(plan.network.pod_cidr), IPv4Network(plan.network.service_cidr)]
    address = recorded.one("GlobalAddress").inputs
    ranges.append(IPv4Network(f"{address['address']}/{address['prefixLength']}"))

    assert not [(a, b) for i, a in enumerate(ranges) for b in ranges[:i] if a.overlaps(b)]
    # Google takes four addresses of each.
    most = max(sum(group.max_nodes for group in pool.node_groups) for pool in plan.pools)
    assert all(part.num_addresses - 4 >= most for part in ranges)


@pytest.mark.parametrize("plan", [site(RDMA), over(*TCPX), over(*TCPXO)], ids=["roce", "tcpx", "tcpxo"])
def test_every_network_that_pods_name_is_there_and_lies_on_their_nodes(plan: CloudPlan) -> None:
    recorded = used(plan)
    objects, parameters = networks(recorded, "Network"), networks(recorded, "GKENetworkParamSet")
    pool = recorded.of("NodePool", f"fleet-{plan.pools[0].name}-")[0]
    on_nodes = {
        (one["network"], one["subnetwork"]) for one in pool.inputs["networkConfig"]["additionalNodeNetworkConfigs"]
    }

    assert named(plan)[0] == {"interfaceName": "eth0", "network": "default"}
    assert len(named(plan)) == 1 + plan.pools[0].rdma_interfaces
    for interface in named(plan)[1:]:
        network = objects[interface["network"]].inputs["spec"]
        assert network["type"] == "Device"
        made = parameters[network["parametersRef"]["name"]]
        assert (made.inputs["spec"]["vpc"], made.inputs["spec"]["vpcSubnet"]) in on_nodes
        assert made.urn in objects[interface["network"]].depends_on
    assert set(objects) == set(parameters)
    assert len(on_nodes) == len(objects)


def test_rdma_interfaces_are_handed_over_as_such_and_others_as_devices(roce: Recorded) -> None:
    modes = {name: r.inputs["spec"]["deviceMode"] for name, r in networks(roce, "GKENetworkParamSet").items()}
    assert modes == {"gvnic-1": "NetDevice"} | {f"rdma-{index}": "RDMA" for index in range(8)}
    assert {r.inputs["spec"]["deviceMode"] for r in networks(used(over(*TCPXO)), "GKENetworkParamSet").values()} == {
        "NetDevice"
    }


@pytest.mark.parametrize(("machine", "count"), [(TCPX, 4), (TCPXO, 8)])
def test_gpudirect_over_tcp_has_a_network_for_each_interface_open_to_the_others(
    machine: tuple[str, str], count: int
) -> None:
    recorded = build(over(*machine))
    kind = "tcpx" if count == 4 else "tcpxo"
    vpcs = recorded.of("gcp:compute/network:Network", f"fleet-{kind}-")

    assert len(vpcs) == count
    for vpc in vpcs:
        assert vpc.inputs["mtu"] == 8244
        assert vpc.inputs["deleteDefaultRoutesOnCreate"] is True
        rule = recorded.one("Firewall", vpc.name).inputs
        subnet = recorded.one("Subnetwork", vpc.name).inputs
        assert rule["sourceRanges"] == [subnet["ipCidrRange"]]
        assert {allow["protocol"] for allow in rule["allows"]} == {"tcp", "udp", "icmp"}


@pytest.mark.parametrize(("machine", "kind"), [(TCPX, "tcpx"), (TCPXO, "tcpxo")])
def test_libraries_and_devices_come_to_the_pools_nodes_and_to_no_others(machine: tuple[str, str], kind: str) -> None:
    plan = over(*machine)
    recorded = used(plan)
    sets = recorded.of("DaemonSet")

    assert {r.inputs["metadata"]["name"] for r in sets} == {f"gpudirect-{kind}", f"device-injector-{kind}"}
    for daemons in sets:
        assert daemons.inputs["metadata"]["namespace"] == "kube-system"
        # There may be no GPU node until somebody asks a model something.
        assert daemons.inputs["metadata"]["annotations"] == {"pulumi.com/skipAwait": "true"}
        pod = daemons.inputs["spec"]["template"]["spec"]
        (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert term["matchExpressions"] == [{"key": "tritonfleet.io/pool", "operator": "In", "values": ["h200"]}]
        assert pod["tolerations"] == [{"operator": "Exists"}]
        containers = [*pod.get("initContainers", []), *pod["containers"]]
        # Google's own, as this program pins them, and no registry's newest.
        known = {GPUDIRECT[kind].installer, DEVICE_INJECTOR, PAUSE_IMAGE, PYTHON_IMAGE}
        assert {container["image"] for container in containers} <= known
        mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    fabric = plan.pools[0].fabric
    assert fabric is not None
    assert fabric.sidecar is not None
    assert f"devices.gke.io/container.{fabric.sidecar.name}" in fabric.annotations
    assert fabric.sidecar.image == GPUDIRECT[kind].daemon
    assert fabric.exception


def test_roce_needs_nothing_on_nodes_and_its_pods_stay_restricted(roce: Recorded) -> None:
    fabric = site(RDMA).pools[0].fabric
    assert fabric is not None
    assert not roce.of("DaemonSet")
    assert (fabric.host_paths, fabric.sidecar, fabric.exception) == ((), None, "")
    assert fabric.raise_memlock


def test_pools_whose_models_stay_on_a_node_have_no_networks_but_one() -> None:
    recorded = built(MIG)
    assert len(recorded.of("gcp:compute/network:Network")) == 1
    assert not networks(recorded, "Network")
    assert all("networkConfig" not in pool.inputs for pool in recorded.of("NodePool"))


def test_names_are_known_before_anything_is_made() -> None:
    before, after = (
        {r.urn: r.inputs["spec"] for r in networks(built(RDMA, preview=preview), "GKENetworkParamSet").values()}
        for preview in (True, False)
    )
    assert before == after


def test_the_zone_of_the_pool_says_the_profile() -> None:
    plan = site(RDMA)
    moved = replace(
        plan,
        pools=tuple(
            replace(pool, node_groups=tuple(replace(group, zones=("us-central1-c",)) for group in pool.node_groups))
            for pool in plan.pools
        ),
    )
    rdma = build(moved).one("gcp:compute/network:Network", "fleet-roce-rdma").inputs
    assert rdma["networkProfile"].endswith("/us-central1-c-vpc-roce")


@pytest.mark.parametrize("fabric", [TCPX_FABRIC, TCPXO_FABRIC], ids=["tcpx", "tcpxo"])
def test_the_daemon_beside_the_ranks_is_root_since_nobody_else_keeps_capabilities(fabric: Fabric) -> None:
    (container,) = pods.sidecars(fabric)
    assert fabric.sidecar is not None
    security = cast(SecurityContextArgs, container.security_context)

    assert (security.run_as_user, security.run_as_non_root) == (0, False)
    assert cast(CapabilitiesArgs, security.capabilities).add == list(fabric.sidecar.capabilities)
    # Whatever it mounts is a volume of the pod.
    volumes = {mounted.volume.name for mounted in pods.host_folders(fabric)}
    assert {cast(VolumeMountArgs, mount).name for mount in cast(Sequence[object], container.volume_mounts)} <= volumes
    assert container.restart_policy == "Always"
