"""The VPC: its ranges, the ways out of it, and the ways to Google's APIs and file systems."""

from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from components.clouds.gcp.network import GOOGLE_APIS
from tests.components.gcp.stacks import EXAMPLES, MIG, RDMA, build, built, site
from tests.components.world import Recorded


@pytest.fixture(scope="module")
def world() -> Recorded:
    return built(RDMA)


def test_nodes_pods_and_services_have_the_planned_ranges(world: Recorded) -> None:
    subnet = world.one("Subnetwork", "fleet-network-nodes").inputs
    plan = site(RDMA).network

    assert subnet["ipCidrRange"] == plan.subnets[0].private_cidr
    assert subnet["secondaryIpRanges"] == [
        {"rangeName": "pods", "ipCidrRange": plan.pod_cidr},
        {"rangeName": "services", "ipCidrRange": plan.service_cidr},
    ]
    assert subnet["privateIpGoogleAccess"] is True
    assert subnet["region"] == "us-central1"
    vpc = world.one("gcp:compute/network:Network", "fleet-network-vpc").inputs
    assert vpc["autoCreateSubnetworks"] is False
    assert vpc["mtu"] == 8896  # jumbo frames: weights come over it


def test_traffic_is_logged(world: Recorded) -> None:
    log = world.one("Subnetwork", "fleet-network-nodes").inputs["logConfig"]
    assert log["flowSampling"] > 0
    assert log["metadata"] == "INCLUDE_ALL_METADATA"


def test_nodes_reach_the_internet_by_cloud_nat_and_nobody_reaches_them(world: Recorded) -> None:
    nat = world.one("RouterNat").inputs

    assert nat["sourceSubnetworkIpRangesToNat"] == "LIST_OF_SUBNETWORKS"
    assert nat["subnetworks"] == [{"name": "fleet-network-nodes-id", "sourceIpRangesToNats": ["ALL_IP_RANGES"]}]
    assert nat["enableDynamicPortAllocation"] is True
    assert nat["maxPortsPerVm"] > 64
    opened = [rule for rule in world.of("Firewall") if "0.0.0.0/0" in rule.inputs["sourceRanges"]]
    assert not opened


@pytest.mark.parametrize("stack", EXAMPLES)
def test_no_firewall_rule_admits_more_than_ranges_of_this_network(stack: str) -> None:
    inside = IPv4Network(site(stack).network.cidr)
    for rule in built(stack).of("Firewall"):
        assert rule.inputs["direction"] == "INGRESS"
        assert all(IPv4Network(source).subnet_of(inside) for source in rule.inputs["sourceRanges"])


def test_googles_apis_and_registries_have_private_addresses(world: Recorded) -> None:
    zones = {zone.inputs["dnsName"]: zone for zone in world.of("ManagedZone")}
    records = {record.inputs["name"]: record.inputs for record in world.of("RecordSet")}

    assert set(zones) == {"googleapis.com.", "gcr.io.", "pkg.dev."}
    for zone in zones.values():
        assert zone.inputs["visibility"] == "private"
        (network,) = zone.inputs["privateVisibilityConfig"]["networks"]
        assert network == {"networkUrl": "fleet-network-vpc-id"}
    # Whatever is asked for ends at an address record of the same zone.
    for domain, target in (
        ("googleapis.com", "private.googleapis.com."),
        ("gcr.io", "gcr.io."),
        ("pkg.dev", "pkg.dev."),
    ):
        assert records[f"*.{domain}."]["type"] == "CNAME"
        assert records[f"*.{domain}."]["rrdatas"] == [target]
        assert records[target]["type"] == "A"
        assert records[target]["rrdatas"] == [str(address) for address in IPv4Network(GOOGLE_APIS)]


def test_nodes_wait_for_their_ways_out(world: Recorded) -> None:
    ways = {record.urn for record in world.of("RecordSet")} | {world.one("RouterNat").urn}
    for pool in world.of("NodePool"):
        assert ways <= pool.depends_on


@pytest.mark.parametrize("stack", EXAMPLES)
def test_file_systems_have_a_range_of_their_own_beside_the_subnets(stack: str) -> None:
    recorded, plan = built(stack), site(stack).network
    address = recorded.one("GlobalAddress").inputs
    given = IPv4Network(f"{address['address']}/{address['prefixLength']}")

    assert (address["purpose"], address["addressType"]) == ("VPC_PEERING", "INTERNAL")
    assert given.subnet_of(IPv4Network(plan.cidr))
    assert given.prefixlen <= 24  # private services access takes no less
    for subnet in recorded.of("Subnetwork"):
        assert not given.overlaps(IPv4Network(subnet.inputs["ipCidrRange"]))
    assert not given.overlaps(IPv4Network(plan.pod_cidr))
    connection = recorded.one("gcp:servicenetworking/connection:Connection").inputs
    assert connection["service"] == "servicenetworking.googleapis.com"
    assert connection["reservedPeeringRanges"] == ["fleet-network-services-name"]
    assert connection["deletionPolicy"] == "ABANDON"


def test_lustres_servers_call_nodes_back_and_filestores_do_not() -> None:
    rule = built(RDMA).one("Firewall", "fleet-network-lustre").inputs

    assert rule["allows"] == [{"protocol": "tcp", "ports": ["988"]}]
    assert rule["targetServiceAccounts"] == ["fleet-node-email"]
    address = built(RDMA).one("GlobalAddress").inputs
    assert rule["sourceRanges"] == [f"{address['address']}/{address['prefixLength']}"]
    assert not built(MIG).of("Firewall")


def test_kept_data_keeps_the_network_that_leads_to_it() -> None:
    plan = site(RDMA)
    dropped = build(replace(plan, storage=replace(plan.storage, keep_data=False)))
    for recorded, kept in ((built(RDMA), True), (dropped, False)):
        for type_, name in (
            ("gcp:compute/network:Network", "fleet-network-vpc"),
            ("GlobalAddress", "fleet-network-services"),
            ("Connection", "fleet-network-services"),
        ):
            assert recorded.one(type_, name).retain_on_delete is kept
