"""The VPC: private nodes over several zones, with private ways to the AWS services that nodes cannot start without."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from components.clouds.aws.identity import allow, policy, service_role
from planner.cloud_config import Identity
from planner.fleet import NetworkPlan

LOG_DAYS = 90
"""How long flow logs and the control plane's logs are kept."""


@dataclass(frozen=True, kw_only=True)
class NetworkArgs:
    """`log_key_arn` is the key that flow logs are encrypted with.

    VPC and private subnet of `kept_zone` are kept when the stack is destroyed: a file system that is kept lies there.
    """

    plan: NetworkPlan
    region: str
    cluster_name: str
    identity: Identity
    log_key_arn: pulumi.Input[str]
    kept_zone: str | None


@dataclass(frozen=True, kw_only=True)
class NetworkIds:
    """What the rest of the cluster needs of a network: its id, and its private subnets by zone id.

    Nodes wait for `ways_out`: one that starts before it can reach anything never joins.
    """

    vpc: pulumi.Input[str]
    private_subnets: dict[str, pulumi.Input[str]]
    ways_out: Sequence[pulumi.Resource] = ()

    def subnets_of(self, zones: Sequence[str]) -> list[pulumi.Input[str]]:
        """The private subnets of some zones, in their order."""
        return [self.private_subnets[zone] for zone in zones]


def existing_network(plan: NetworkPlan) -> NetworkIds | None:
    """The network that the stack brings along; None when it has to be made."""
    if plan.existing_id is None:
        return None
    ids = {subnet.zone: subnet.existing_id for subnet in plan.subnets if subnet.existing_id is not None}
    return NetworkIds(vpc=plan.existing_id, private_subnets=dict(ids))


def flow_log_group(cluster_name: str) -> str:
    """Where the VPC's flow logs are written."""
    return f"/tritonfleet/{cluster_name}/flow"


def interface_services(identity: Identity) -> tuple[str, ...]:
    """The services that a node reaches through endpoints, so that it can start while a NAT gateway is down.

    To find itself and attach addresses (ec2), to pull its system images (ecr), to exchange tokens for credentials (sts,
    eks-auth). Others are called seldom, and an interface endpoint costs as much as a small instance.
    """
    always = ("ec2", "ecr.api", "ecr.dkr", "sts")
    return always if identity == "irsa" else (*always, "eks-auth")


class Network(pulumi.ComponentResource):
    """A VPC with one private and one public subnet for each zone. `ids` is what others need of it."""

    ids: NetworkIds

    def __init__(self, name: str, args: NetworkArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AwsNetwork", name, None, opts)
        self._prefix = name
        self._child = pulumi.ResourceOptions(parent=self)
        self._ways_out: list[pulumi.Resource] = []
        plan = args.plan
        vpc = aws.ec2.Vpc(
            f"{name}-vpc",
            cidr_block=plan.cidr,
            # Private endpoints and EFS are found by names that only resolve with both.
            enable_dns_hostnames=True,
            enable_dns_support=True,
            tags={"Name": args.cluster_name},
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=args.kept_zone is not None),
        )
        # Whatever names no security group gets this one: it lets nothing through.
        aws.ec2.DefaultSecurityGroup(f"{name}-default-closed", vpc_id=vpc.id, opts=self._child)
        private = self._subnets(args, vpc, public=False)
        public = self._subnets(args, vpc, public=True)
        tables = self._routes(plan, vpc, private, public)
        self._endpoints(args, vpc, list(private.values()), tables)
        self._flow_logs(args, vpc)
        self.ids = NetworkIds(
            vpc=vpc.id,
            private_subnets={zone: subnet.id for zone, subnet in private.items()},
            ways_out=self._ways_out,
        )
        self.register_outputs({"vpc": vpc.id})

    def _subnets(self, args: NetworkArgs, vpc: aws.ec2.Vpc, *, public: bool) -> dict[str, aws.ec2.Subnet]:
        side, role = ("public", "elb") if public else ("private", "internal-elb")
        return {
            subnet.zone: aws.ec2.Subnet(
                f"{self._prefix}-{side}-{subnet.zone}",
                vpc_id=vpc.id,
                cidr_block=subnet.public_cidr if public else subnet.private_cidr,
                # By id, because the name us-east-1a is another place in every account.
                availability_zone_id=subnet.zone,
                map_public_ip_on_launch=False,
                tags={"Name": f"{args.cluster_name}-{side}-{subnet.zone}", f"kubernetes.io/role/{role}": "1"},
                opts=pulumi.ResourceOptions(parent=self, retain_on_delete=not public and subnet.zone == args.kept_zone),
            )
            for subnet in args.plan.subnets
        }

    def _routes(
        self,
        plan: NetworkPlan,
        vpc: aws.ec2.Vpc,
        private: dict[str, aws.ec2.Subnet],
        public: dict[str, aws.ec2.Subnet],
    ) -> list[aws.ec2.RouteTable]:
        """Public subnets to the internet, private ones to a NAT gateway; returns the private tables.

        Each zone has its own private table whatever the number of NAT gateways, so that one more changes routes only.
        """
        name, child = self._prefix, self._child
        internet = aws.ec2.InternetGateway(f"{name}-internet", vpc_id=vpc.id, opts=child)
        outside = aws.ec2.RouteTable(f"{name}-public", vpc_id=vpc.id, opts=child)
        outbound = aws.ec2.Route(
            f"{name}-public-out",
            route_table_id=outside.id,
            destination_cidr_block="0.0.0.0/0",
            gateway_id=internet.id,
            opts=child,
        )
        ties = {
            zone: aws.ec2.RouteTableAssociation(
                f"{name}-public-{zone}", subnet_id=subnet.id, route_table_id=outside.id, opts=child
            )
            for zone, subnet in public.items()
        }
        gateways: dict[str, aws.ec2.NatGateway] = {}
        # By name, so that another order of the zones moves no gateway: its address is on other people's allow lists.
        first = min(public)
        for zone in public if plan.nat_per_zone else [first]:
            address = aws.ec2.Eip(f"{name}-nat-{zone}", domain="vpc", opts=child)
            gateways[zone] = aws.ec2.NatGateway(
                f"{name}-nat-{zone}",
                allocation_id=address.id,
                subnet_id=public[zone].id,
                opts=pulumi.ResourceOptions(parent=self, depends_on=[outbound, ties[zone]]),
            )
        tables: list[aws.ec2.RouteTable] = []
        for zone, subnet in private.items():
            table = aws.ec2.RouteTable(f"{name}-private-{zone}", vpc_id=vpc.id, opts=child)
            route = aws.ec2.Route(
                f"{name}-private-out-{zone}",
                route_table_id=table.id,
                destination_cidr_block="0.0.0.0/0",
                nat_gateway_id=gateways.get(zone, gateways[first]).id,
                opts=child,
            )
            tie = aws.ec2.RouteTableAssociation(
                f"{name}-private-{zone}", subnet_id=subnet.id, route_table_id=table.id, opts=child
            )
            tables.append(table)
            self._ways_out += [route, tie]
        return tables

    def _endpoints(
        self, args: NetworkArgs, vpc: aws.ec2.Vpc, private: list[aws.ec2.Subnet], tables: list[aws.ec2.RouteTable]
    ) -> None:
        name, child = self._prefix, self._child
        # Weights and every image layer come from S3: past the NAT gateway, which charges by the byte.
        aws.ec2.VpcEndpoint(
            f"{name}-s3",
            vpc_id=vpc.id,
            vpc_endpoint_type="Gateway",
            service_name=f"com.amazonaws.{args.region}.s3",
            route_table_ids=[table.id for table in tables],
            opts=child,
        )
        group = aws.ec2.SecurityGroup(
            f"{name}-endpoints", vpc_id=vpc.id, description="Private endpoints of AWS services", opts=child
        )
        aws.vpc.SecurityGroupIngressRule(
            f"{name}-endpoints-https",
            security_group_id=group.id,
            description="HTTPS from inside the VPC",
            cidr_ipv4=args.plan.cidr,
            ip_protocol="tcp",
            from_port=443,
            to_port=443,
            opts=child,
        )
        for service in interface_services(args.identity):
            endpoint = aws.ec2.VpcEndpoint(
                f"{name}-{re.sub(r'[^a-z0-9]', '-', service)}",
                vpc_id=vpc.id,
                vpc_endpoint_type="Interface",
                service_name=f"com.amazonaws.{args.region}.{service}",
                private_dns_enabled=True,
                subnet_ids=[subnet.id for subnet in private],
                security_group_ids=[group.id],
                opts=child,
            )
            self._ways_out.append(endpoint)

    def _flow_logs(self, args: NetworkArgs, vpc: aws.ec2.Vpc) -> None:
        name, child = self._prefix, self._child
        logs = aws.cloudwatch.LogGroup(
            f"{name}-flow",
            name=flow_log_group(args.cluster_name),
            kms_key_id=args.log_key_arn,
            retention_in_days=LOG_DAYS,
            opts=child,
        )
        role, _ = service_role(f"{name}-flow", "vpc-flow-logs.amazonaws.com", [], self, "Writes the VPC's flow logs")
        rights = aws.iam.RolePolicy(
            f"{name}-flow",
            role=role.name,
            policy=policy(
                allow(
                    ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
                    [logs.arn, pulumi.Output.concat(logs.arn, ":*")],
                )
            ),
            opts=child,
        )
        aws.ec2.FlowLog(
            f"{name}-flow",
            vpc_id=vpc.id,
            traffic_type="ALL",
            log_destination_type="cloud-watch-logs",
            log_destination=logs.arn,
            iam_role_arn=role.arn,
            max_aggregation_interval=60,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[rights]),
        )
