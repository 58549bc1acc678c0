"""The virtual network: one subnet of nodes, one of private endpoints, one of Lustre servers, and one way out."""

from dataclasses import dataclass
from ipaddress import IPv4Network

import pulumi
from pulumi_azure_native import network

from planner.fleet import NetworkPlan, StoragePlan


@dataclass(frozen=True, kw_only=True)
class NetworkArgs:
    """With `kept`, what a file system lies in is kept when the stack is destroyed: network, subnet and way out."""

    plan: NetworkPlan
    region: str
    resource_group: pulumi.Input[str]
    kept: bool


class Network(pulumi.ComponentResource):
    """Ids of the network and its subnets; `nat_address` is where everything inside comes from. Nodes wait for `ready`.

    Pods are in none of the subnets: Azure CNI Overlay gives them addresses of `NetworkPlan.pod_cidr`.
    """

    id: pulumi.Output[str]
    nodes: pulumi.Output[str]
    endpoints: pulumi.Output[str]
    lustre: pulumi.Output[str]
    nat_address: pulumi.Output[str]
    ready: list[pulumi.Resource]

    def __init__(self, name: str, args: NetworkArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AzureNetwork", name, None, opts)
        self._prefix, self._args = name, args
        self._kept = pulumi.ResourceOptions(parent=self, retain_on_delete=args.kept)
        (subnet,) = args.plan.subnets
        storage = IPv4Network(subnet.public_cidr)
        endpoints, lustre = storage.subnets(prefixlen_diff=1)
        self._network = network.VirtualNetwork(
            f"{name}-vnet",
            resource_group_name=args.resource_group,
            location=args.region,
            address_space=network.AddressSpaceArgs(address_prefixes=[subnet.private_cidr, subnet.public_cidr]),
            opts=self._kept,
        )
        gateway = self._nat()
        pods = [subnet.private_cidr, args.plan.pod_cidr]
        # An overlay does not wrap what pods say to one another: the group of the nodes sees pods' addresses.
        cluster = self._group("nodes", [_allow("cluster", 100, pods, pods)], kept=False)
        # The file system's servers talk to one another; peered networks have no business with either.
        inside = [subnet.private_cidr, subnet.public_cidr]
        rules = [_allow("cluster", 100, inside, [subnet.public_cidr]), _monitor(str(lustre)), _DENY]
        closed = self._group("storage", rules, kept=args.kept)
        nodes = self._subnet("nodes", subnet.private_cidr, cluster, gateway, after=None, kept=False)
        ends = self._subnet("endpoints", str(endpoints), closed, None, after=nodes, kept=False)
        # Its servers report to Azure, and so have the way out too.
        servers = self._subnet("lustre", str(lustre), closed, gateway, after=ends, kept=args.kept)
        self.id, self.nodes, self.endpoints, self.lustre = self._network.id, nodes.id, ends.id, servers.id
        self.ready = [nodes, ends, servers]
        self.register_outputs({"id": self.id})

    def _nat(self) -> network.NatGateway:
        """The one way out: what pulls images and weights takes it, and models that run need it no more."""
        address = network.PublicIPAddress(
            f"{self._prefix}-nat",
            resource_group_name=self._args.resource_group,
            location=self._args.region,
            sku=network.PublicIPAddressSkuArgs(name="Standard"),
            public_ip_allocation_method="Static",
            opts=self._kept,
        )
        self.nat_address = address.ip_address.apply(str)  # optional by type only: a static one is given at once
        return network.NatGateway(
            f"{self._prefix}-nat",
            resource_group_name=self._args.resource_group,
            location=self._args.region,
            sku=network.NatGatewaySkuArgs(name="Standard"),
            public_ip_addresses=[network.SubResourceArgs(id=address.id)],
            opts=self._kept,
        )

    def _group(self, name: str, rules: list[network.SecurityRuleArgs], *, kept: bool) -> network.NetworkSecurityGroup:
        return network.NetworkSecurityGroup(
            f"{self._prefix}-{name}",
            resource_group_name=self._args.resource_group,
            location=self._args.region,
            security_rules=rules,
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=kept),
        )

    def _subnet(
        self,
        name: str,
        cidr: str,
        group: network.NetworkSecurityGroup,
        gateway: network.NatGateway | None,
        *,
        after: network.Subnet | None,
        kept: bool,
    ) -> network.Subnet:
        return network.Subnet(
            f"{self._prefix}-{name}",
            resource_group_name=self._args.resource_group,
            virtual_network_name=self._network.name,
            address_prefix=cidr,
            network_security_group=network.NetworkSecurityGroupArgs(id=group.id),
            nat_gateway=network.SubResourceArgs(id=gateway.id) if gateway else None,
            # Nothing leaves but by the NAT gateway.
            default_outbound_access=False,
            # Otherwise the security group would not count for private endpoints.
            private_endpoint_network_policies="Enabled",
            # Azure changes one subnet of a network at a time (AnotherOperationInProgress).
            opts=pulumi.ResourceOptions(parent=self, depends_on=[after] if after else None, retain_on_delete=kept),
        )


def keeps_network(plan: StoragePlan) -> bool:
    """Whether the network has to outlive the stack: a Lustre file system that is kept holds its subnet.

    Of Azure Files only the private endpoint is in the network, and it holds no data.
    """
    return plan.kind == "lustre" and plan.keep_data


def _allow(name: str, priority: int, sources: list[str], targets: list[str]) -> network.SecurityRuleArgs:
    return network.SecurityRuleArgs(
        name=name,
        priority=priority,
        access="Allow",
        direction="Inbound",
        protocol="*",
        source_address_prefixes=sources,
        source_port_range="*",
        destination_address_prefixes=targets,
        destination_port_range="*",
    )


def _monitor(servers: str) -> network.SecurityRuleArgs:
    """What Lustre's servers are watched by (Azure Managed Lustre documentation, "Configure a network security
    group")."""
    return network.SecurityRuleArgs(
        name="monitor",
        priority=110,
        access="Allow",
        direction="Inbound",
        protocol="Tcp",
        source_address_prefix="AzureMonitor",
        source_port_range="443",
        destination_address_prefix=servers,
        destination_port_range="*",
    )


_DENY = network.SecurityRuleArgs(
    name="others",
    priority=4000,
    access="Deny",
    direction="Inbound",
    protocol="*",
    source_address_prefix="VirtualNetwork",
    source_port_range="*",
    destination_address_prefix="*",
    destination_port_range="*",
)
"""Comes before Azure's own rule that lets all of the network in, and networks peered with it."""
