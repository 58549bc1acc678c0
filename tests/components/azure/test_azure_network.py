"""The network: three subnets, one way out, and who gets in where."""

from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from tests.components.azure.stacks import build, built, site, without_kept_data
from tests.components.world import Recorded

STACK, NFS = "azure-llama-405b", "azure-small-mig"


@pytest.fixture(scope="module")
def world() -> Recorded:
    return built(STACK)


def ranges(recorded: Recorded) -> dict[str, IPv4Network]:
    return {
        subnet.name.rpartition("-")[2]: IPv4Network(subnet.inputs["addressPrefix"]) for subnet in recorded.of("Subnet")
    }


@pytest.mark.parametrize("cidr", ["10.40.0.0/16", "10.64.0.0/10", "192.168.8.0/21"])
def test_subnets_lie_apart_in_the_network_and_pods_outside_it(cidr: str) -> None:
    plan = site(STACK)
    whole = IPv4Network(cidr)
    nodes, rest = list(whole.subnets(3))[:2]
    pods = list(whole.subnets(1))[1]
    subnet = replace(plan.network.subnets[0], private_cidr=str(nodes), public_cidr=str(rest))
    recorded = build(replace(plan, network=replace(plan.network, cidr=cidr, pod_cidr=str(pods), subnets=(subnet,))))
    (space,) = (vnet.inputs["addressSpace"]["addressPrefixes"] for vnet in recorded.of("VirtualNetwork"))
    found = ranges(recorded)

    assert set(found) == {"nodes", "endpoints", "lustre"}
    assert found["nodes"] == nodes
    for name, subnet_range in found.items():
        assert any(subnet_range.subnet_of(IPv4Network(prefix)) for prefix in space)
        assert not subnet_range.overlaps(pods)
        assert not any(subnet_range.overlaps(other) for key, other in found.items() if key != name)
    assert not any(IPv4Network(prefix).overlaps(pods) for prefix in space)


def test_nodes_and_file_servers_leave_by_one_address_and_endpoints_not_at_all(world: Recorded) -> None:
    address, gateway = world.one("PublicIPAddress"), world.one("NatGateway")
    subnets = {subnet.name.rpartition("-")[2]: subnet.inputs for subnet in world.of("Subnet")}

    assert address.inputs["sku"] == gateway.inputs["sku"] == {"name": "Standard"}
    assert address.inputs["publicIPAllocationMethod"] == "Static"
    assert [entry["id"].rpartition("/")[2] for entry in gateway.inputs["publicIpAddresses"]] == ["fleet-network-nat"]
    for name in ("nodes", "lustre"):
        assert subnets[name]["natGateway"]["id"].endswith("/fleet-network-nat")
    assert "natGateway" not in subnets["endpoints"]
    assert all(subnet["defaultOutboundAccess"] is False for subnet in subnets.values())


def test_subnets_are_made_one_after_another(world: Recorded) -> None:
    nodes, endpoints, lustre = (
        world.one("Subnet", f"fleet-network-{name}") for name in ("nodes", "endpoints", "lustre")
    )

    assert nodes.urn in endpoints.depends_on
    assert endpoints.urn in lustre.depends_on


def test_nodes_and_pods_reach_one_another(world: Recorded) -> None:
    (rule,) = world.one("NetworkSecurityGroup", "fleet-network-nodes").inputs["securityRules"]
    everyone = ["10.40.0.0/19", "10.40.128.0/17"]

    assert (rule["access"], rule["direction"], rule["protocol"]) == ("Allow", "Inbound", "*")
    assert rule["sourceAddressPrefixes"] == rule["destinationAddressPrefixes"] == everyone
    assert (
        world.one("Subnet", "fleet-network-nodes").inputs["networkSecurityGroup"]["id"].endswith("/fleet-network-nodes")
    )


def test_storage_admits_the_nodes_and_itself_and_no_peered_network(world: Recorded) -> None:
    allow, monitor, deny = world.one("NetworkSecurityGroup", "fleet-network-storage").inputs["securityRules"]

    assert (allow["access"], allow["sourceAddressPrefixes"]) == ("Allow", ["10.40.0.0/19", "10.40.32.0/19"])
    # Azure Managed Lustre wants to be watched, and nothing else is.
    assert (monitor["access"], monitor["sourceAddressPrefix"], monitor["protocol"]) == ("Allow", "AzureMonitor", "Tcp")
    assert monitor["sourcePortRange"] == "443"
    assert monitor["destinationAddressPrefix"] == str(ranges(world)["lustre"])
    assert (deny["access"], deny["sourceAddressPrefix"]) == ("Deny", "VirtualNetwork")
    # 65000 is Azure's own rule that lets the whole network in.
    assert allow["priority"] < monitor["priority"] < deny["priority"] < 65000
    for name in ("endpoints", "lustre"):
        subnet = world.one("Subnet", f"fleet-network-{name}").inputs
        assert subnet["networkSecurityGroup"]["id"].endswith("/fleet-network-storage")
        # Without this the group would not count for private endpoints.
        assert subnet["privateEndpointNetworkPolicies"] == "Enabled"


def test_a_lustre_that_is_kept_keeps_what_it_lies_in_and_nothing_else(world: Recorded) -> None:
    kept = {
        resource.name
        for resource in world
        if resource.type.startswith("azure-native:network") and resource.retain_on_delete
    }
    lost = build(without_kept_data(site(STACK)))

    assert kept >= {"fleet-network-vnet", "fleet-network-lustre", "fleet-network-storage", "fleet-network-nat"}
    assert not kept & {"fleet-network-nodes", "fleet-network-endpoints"}
    assert not [r for r in lost.of("VirtualNetwork") if r.retain_on_delete]
    # Azure Files are not in the network: only a private endpoint is, and that may go.
    assert not built(NFS).one("VirtualNetwork").retain_on_delete
