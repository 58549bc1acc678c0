"""The VPC: where subnets lie, how private ones get out, and which AWS services they reach without going out."""

from dataclasses import replace

import pytest

from planner.fleet import CloudPlan, SubnetPlan
from tests.components.aws.stacks import build, built, document, site, with_pod_identity
from tests.components.world import Recorded

ZONES = ("use1-az1", "use1-az4", "use1-az6")
OF_A_NETWORK = ("vpc", "subnet:", "natGateway", "internetGateway", "route", "flowLog", "eip", "defaultSecurityGroup")


@pytest.fixture(scope="module")
def world() -> Recorded:
    return built("aws-llama-405b")


def test_the_vpc_has_the_stacks_range_and_resolves_names(world: Recorded) -> None:
    vpc = world.one("Vpc")

    assert vpc.inputs["cidrBlock"] == "10.40.0.0/16"
    assert vpc.inputs["tags"] == {"Name": "tritonfleet-stack"}
    assert vpc.inputs["enableDnsSupport"] is True
    assert vpc.inputs["enableDnsHostnames"] is True


def test_each_zone_has_a_private_and_a_public_subnet_found_by_zone_id(world: Recorded) -> None:
    for subnet in site("aws-llama-405b").network.subnets:
        private = world.one("Subnet", f"private-{subnet.zone}").inputs
        public = world.one("Subnet", f"public-{subnet.zone}").inputs

        assert private["availabilityZoneId"] == public["availabilityZoneId"] == subnet.zone
        assert (private["cidrBlock"], public["cidrBlock"]) == (subnet.private_cidr, subnet.public_cidr)
        assert private["tags"]["kubernetes.io/role/internal-elb"] == "1"
        assert public["tags"]["kubernetes.io/role/elb"] == "1"
        # Nothing gets a public address by being there.
        assert private["mapPublicIpOnLaunch"] is public["mapPublicIpOnLaunch"] is False
    assert len(world.of("Subnet")) == 2 * len(ZONES)


def test_one_nat_gateway_serves_every_zone_by_default(world: Recorded) -> None:
    gateway = world.one("NatGateway")

    assert gateway.inputs["subnetId"] == "fleet-network-public-use1-az1-id"
    assert gateway.inputs["allocationId"] == f"{world.one('Eip').name}-id"
    assert world.one("Eip").inputs["domain"] == "vpc"
    ways = {world.one("Route", "public-out").urn, world.one("RouteTableAssociation", "public-use1-az1").urn}
    assert ways <= gateway.depends_on
    for zone in ZONES:
        route = world.one("Route", f"private-out-{zone}").inputs
        assert route["routeTableId"] == f"fleet-network-private-{zone}-id"
        assert (route["destinationCidrBlock"], route["natGatewayId"]) == ("0.0.0.0/0", f"{gateway.name}-id")
        ties = world.one("RouteTableAssociation", f"private-{zone}").inputs
        assert (ties["subnetId"], ties["routeTableId"]) == (f"fleet-network-private-{zone}-id",) * 2


def test_public_subnets_go_to_the_internet(world: Recorded) -> None:
    route = world.one("Route", "public-out").inputs

    assert route["gatewayId"] == f"{world.one('InternetGateway').name}-id"
    assert route["destinationCidrBlock"] == "0.0.0.0/0"
    for zone in ZONES:
        assert world.one("RouteTableAssociation", f"public-{zone}").inputs["routeTableId"] == route["routeTableId"]


def test_a_nat_gateway_per_zone_changes_routes_and_replaces_no_subnet(world: Recorded) -> None:
    plan = site("aws-llama-405b")
    more = build(replace(plan, network=replace(plan.network, nat_per_zone=True)))

    for zone in ZONES:
        assert more.one("NatGateway", zone).inputs["subnetId"] == f"fleet-network-public-{zone}-id"
        assert more.one("Route", f"private-out-{zone}").inputs["natGatewayId"] == f"fleet-network-nat-{zone}-id"
    for kind in ("Subnet", "RouteTable", "RouteTableAssociation"):
        before, after = ({r.urn: r.inputs for r in recorded.of(kind)} for recorded in (world, more))
        assert before == after


@pytest.mark.parametrize("nat_per_zone", [False, True])
def test_another_order_of_zones_changes_nothing_of_the_ways_out(nat_per_zone: bool) -> None:
    plan = site("aws-llama-405b")
    network = replace(plan.network, nat_per_zone=nat_per_zone)
    turned = replace(network, subnets=network.subnets[::-1])
    before, after = (build(replace(plan, network=network)) for network in (network, turned))

    for kind in ("Eip", "NatGateway", "Route", "RouteTableAssociation"):
        one, other = ({r.urn: r.inputs for r in recorded.of(kind)} for recorded in (before, after))
        assert one == other


def test_a_kept_file_system_keeps_the_network_that_its_interfaces_hold() -> None:
    """Otherwise AWS refuses to delete them, and the stack is never gone."""

    def kept(recorded: Recorded) -> set[str]:
        return {r.name for r in recorded if r.retain_on_delete and r.type.startswith(("aws:ec2/", "aws:vpc/"))}

    plan = site("aws-llama-405b")
    assert plan.storage.zone == "use1-az6"
    assert kept(built("aws-llama-405b")) == {
        "fleet-network-vpc",
        "fleet-network-private-use1-az6",
        "fleet-storage-files",
        # Not the rules that name the nodes' group, which EKS has to delete.
        *(f"fleet-storage-files-peers-{port}" for port in (988, 1018)),
    }
    assert kept(build(replace(plan, storage=replace(plan.storage, keep_data=False)))) == set()
    # What EFS has in a network goes without its data.
    assert kept(built("aws-small-mig")) == set()


def test_s3_is_reached_from_every_private_subnet_without_the_nat_gateway(world: Recorded) -> None:
    endpoint = world.one("VpcEndpoint", "s3").inputs

    assert (endpoint["vpcEndpointType"], endpoint["serviceName"]) == ("Gateway", "com.amazonaws.us-east-1.s3")
    assert endpoint["routeTableIds"] == [f"fleet-network-private-{zone}-id" for zone in ZONES]


@pytest.mark.parametrize(
    ("identity", "services"),
    [
        ("irsa", {"ec2", "ecr.api", "ecr.dkr", "sts"}),
        ("pod-identity", {"ec2", "ecr.api", "ecr.dkr", "sts", "eks-auth"}),
    ],
)
def test_services_that_nodes_start_with_have_private_endpoints(identity: str, services: set[str]) -> None:
    plan = site("aws-llama-405b")
    recorded = build(with_pod_identity(plan)) if identity == "pod-identity" else built("aws-llama-405b")
    endpoints = [e.inputs for e in recorded.of("VpcEndpoint") if e.inputs["vpcEndpointType"] == "Interface"]

    assert {e["serviceName"].removeprefix("com.amazonaws.us-east-1.") for e in endpoints} == services
    for endpoint in endpoints:
        assert endpoint["privateDnsEnabled"] is True
        assert endpoint["subnetIds"] == [f"fleet-network-private-{zone}-id" for zone in ZONES]
        assert endpoint["securityGroupIds"] == ["fleet-network-endpoints-id"]


def test_endpoints_answer_only_the_vpc_and_only_https(world: Recorded) -> None:
    rule = world.one("SecurityGroupIngressRule", "endpoints-https").inputs

    assert rule["cidrIpv4"] == "10.40.0.0/16"
    assert (rule["fromPort"], rule["toPort"], rule["ipProtocol"]) == (443, 443, "tcp")
    assert rule["securityGroupId"] == "fleet-network-endpoints-id"


def test_the_default_security_group_lets_nothing_through(world: Recorded) -> None:
    group = world.one("DefaultSecurityGroup").inputs

    assert not group.get("ingress")
    assert not group.get("egress")


def test_flow_logs_are_complete_encrypted_and_end_some_day(world: Recorded) -> None:
    flow, logs = world.one("FlowLog").inputs, world.one("LogGroup", "flow").inputs

    assert (flow["trafficType"], flow["vpcId"]) == ("ALL", "fleet-network-vpc-id")
    assert flow["maxAggregationInterval"] == 60
    assert logs["name"] == "/tritonfleet/tritonfleet-stack/flow"
    assert logs["retentionInDays"] == 90
    assert logs["kmsKeyId"].endswith(":fleet-keys-logs")
    assert flow["logDestinationType"] == "cloud-watch-logs"
    assert flow["logDestination"].endswith(":fleet-network-flow")
    assert flow["iamRoleArn"] == "arn:aws:iam::123456789012:fleet-network-flow"
    assert world.one("RolePolicy", "network-flow").urn in world.one("FlowLog").depends_on
    assert world.one("RolePolicy", "network-flow").inputs["role"] == "fleet-network-flow-name"
    (trust,) = document(world.one("Role", "network-flow"), "assumeRolePolicy")
    assert trust["Principal"] == {"Service": "vpc-flow-logs.amazonaws.com"}
    (statement,) = document(world.one("RolePolicy", "network-flow"))
    assert all("fleet-network-flow" in arn for arn in statement["Resource"])
    assert set(statement["Action"]) == {"logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"}


def test_everything_is_in_the_one_vpc(world: Recorded) -> None:
    kinds = ("Cluster", "DefaultSecurityGroup", "FlowLog", "InternetGateway", "RouteTable", "Subnet", "VpcEndpoint")
    inside = [resource for kind in (*kinds, "SecurityGroup") for resource in world.of(kind)]

    assert {resource.inputs["vpcId"] for resource in inside} == {"fleet-network-vpc-id"}
    assert {resource.name for resource in world.of("SecurityGroup")} == {
        "fleet-network-endpoints",
        "fleet-h100-efa",
        "fleet-storage-files",
    }


def test_nodes_wait_for_every_way_out(world: Recorded) -> None:
    """One that starts before it can reach its images and the control plane never joins."""
    ways = {
        *(world.one("Route", f"private-out-{zone}").urn for zone in ZONES),
        *(world.one("RouteTableAssociation", f"private-{zone}").urn for zone in ZONES),
        *(e.urn for e in world.of("VpcEndpoint") if e.inputs["vpcEndpointType"] == "Interface"),
    }

    assert len(ways) == 10
    for group in world.of("NodeGroup"):
        assert ways <= group.depends_on


def in_existing_network(plan: CloudPlan) -> CloudPlan:
    subnets = tuple(
        SubnetPlan(zone=subnet.zone, private_cidr="", public_cidr="", existing_id=f"subnet-{subnet.zone}")
        for subnet in plan.network.subnets
    )
    return replace(plan, network=replace(plan.network, existing_id="vpc-0abc", subnets=subnets))


def test_an_existing_network_is_used_and_nothing_of_it_is_made() -> None:
    recorded = build(in_existing_network(site("aws-llama-405b")))

    types = tuple(f"aws:ec2/{kind}" for kind in OF_A_NETWORK)
    assert not [resource.urn for resource in recorded if resource.type.startswith(types)]
    cluster = recorded.one("eks:index:Cluster").inputs
    assert cluster["vpcId"] == "vpc-0abc"
    assert cluster["privateSubnetIds"] == [f"subnet-{zone}" for zone in ZONES]
    assert recorded.one("NodeGroup", "h100-spot").inputs["subnetIds"] == ["subnet-use1-az6"]
    assert recorded.one("LustreFileSystem").inputs["subnetIds"] == "subnet-use1-az6"
    assert {group.inputs["vpcId"] for group in recorded.of("SecurityGroup")} == {"vpc-0abc"}
