"""The VPC: private nodes, one way out for all of them, and private ways to Google's APIs and file systems."""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

import pulumi
from pulumi_gcp import compute, dns, servicenetworking

from planner.fleet import NetworkPlan

PODS, SERVICES = "pods", "services"
"""Names of the subnet's secondary ranges."""

MTU = 8896
"""The largest that Google has (VPC documentation, "Maximum transmission unit"): weights are read over the network."""

GOOGLE_APIS = "199.36.153.8/30"
"""Of private.googleapis.com (VPC documentation, "Configure Private Google Access")."""

# The names that nodes and pods call, and what in each has the addresses.
_PRIVATE_ZONES = {"googleapis.com": "private.googleapis.com", "gcr.io": "gcr.io", "pkg.dev": "pkg.dev"}
_LUSTRE_PORT = "988"


@dataclass(frozen=True, kw_only=True)
class NetworkArgs:
    """Nodes run as `node_account`. With `lustre` its servers may call them back. With `keep` network and peering are
    kept when the stack is destroyed: a file system that is kept is reached through them."""

    plan: NetworkPlan
    region: str
    node_account: pulumi.Input[str]
    lustre: bool
    keep: bool


class Network(pulumi.ComponentResource):
    """Nodes wait for `ways_out`: one that starts before it can reach anything never joins. File systems wait for
    `private_services`, which lead to them."""

    network: compute.Network
    subnet: compute.Subnetwork
    private_services: servicenetworking.Connection
    ways_out: Sequence[pulumi.Resource]

    def __init__(self, name: str, args: NetworkArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:GcpNetwork", name, None, opts)
        self._prefix, self._child = name, pulumi.ResourceOptions(parent=self)
        self._kept = pulumi.ResourceOptions(parent=self, retain_on_delete=args.keep)
        self.network = compute.Network(
            f"{name}-vpc", auto_create_subnetworks=False, routing_mode="REGIONAL", mtu=MTU, opts=self._kept
        )
        (planned,) = args.plan.subnets
        self.subnet = compute.Subnetwork(
            f"{name}-nodes",
            network=self.network.id,
            region=args.region,
            ip_cidr_range=planned.private_cidr,
            secondary_ip_ranges=[
                compute.SubnetworkSecondaryIpRangeArgs(range_name=PODS, ip_cidr_range=args.plan.pod_cidr),
                compute.SubnetworkSecondaryIpRangeArgs(range_name=SERVICES, ip_cidr_range=args.plan.service_cidr),
            ],
            private_ip_google_access=True,
            log_config=compute.SubnetworkLogConfigArgs(
                aggregation_interval="INTERVAL_1_MIN", flow_sampling=0.5, metadata="INCLUDE_ALL_METADATA"
            ),
            opts=self._child,
        )
        self.ways_out = [self._nat(args.region), *self._google_apis()]
        self._private_services(services_range(planned.public_cidr), args)
        self.register_outputs({"network": self.network.id})

    def _nat(self, region: str) -> pulumi.Resource:
        router = compute.Router(f"{self._prefix}-router", network=self.network.id, region=region, opts=self._child)
        return compute.RouterNat(
            f"{self._prefix}-nat",
            router=router.name,
            region=region,
            nat_ip_allocate_option="AUTO_ONLY",
            source_subnetwork_ip_ranges_to_nat="LIST_OF_SUBNETWORKS",
            subnetworks=[
                compute.RouterNatSubnetworkArgs(name=self.subnet.id, source_ip_ranges_to_nats=["ALL_IP_RANGES"])
            ],
            # Downloads of weights open more connections than the 64 ports that a node has otherwise.
            enable_dynamic_port_allocation=True,
            enable_endpoint_independent_mapping=False,
            min_ports_per_vm=64,
            max_ports_per_vm=4096,
            log_config=compute.RouterNatLogConfigArgs(enable=True, filter="ERRORS_ONLY"),
            opts=self._child,
        )

    def _google_apis(self) -> list[pulumi.Resource]:
        """Google's APIs and registries at addresses that are few and never on the internet, so that network policies
        can name them. The VPC's own default route leads there."""
        addresses = [str(address) for address in IPv4Network(GOOGLE_APIS)]
        records: list[pulumi.Resource] = []
        for domain, target in _PRIVATE_ZONES.items():
            slug = domain.replace(".", "-")
            visible = dns.ManagedZonePrivateVisibilityConfigNetworkArgs(network_url=self.network.id)
            zone = dns.ManagedZone(
                f"{self._prefix}-{slug}",
                dns_name=f"{domain}.",
                visibility="private",
                private_visibility_config=dns.ManagedZonePrivateVisibilityConfigArgs(networks=[visible]),
                opts=self._child,
            )
            for kind, record, values in (("A", target, addresses), ("CNAME", f"*.{domain}", [f"{target}."])):
                records.append(
                    dns.RecordSet(
                        f"{self._prefix}-{slug}-{kind.lower()}",
                        managed_zone=zone.name,
                        name=f"{record}.",
                        type=kind,
                        ttl=300,
                        rrdatas=values,
                        opts=self._child,
                    )
                )
        return records

    def _private_services(self, range_: IPv4Network, args: NetworkArgs) -> None:
        name = self._prefix
        given = compute.GlobalAddress(
            f"{name}-services",
            purpose="VPC_PEERING",
            address_type="INTERNAL",
            address=str(range_.network_address),
            prefix_length=range_.prefixlen,
            network=self.network.id,
            opts=self._kept,
        )
        self.private_services = servicenetworking.Connection(
            f"{name}-services",
            network=self.network.id,
            service="servicenetworking.googleapis.com",
            reserved_peering_ranges=[given.name],
            # Google refuses to end it for days after the last file system is gone; it goes with the network.
            deletion_policy="ABANDON",
            opts=self._kept,
        )
        if args.lustre:
            compute.Firewall(
                f"{name}-lustre",
                network=self.network.id,
                description="Lustre servers to their clients",
                direction="INGRESS",
                allows=[compute.FirewallAllowArgs(protocol="tcp", ports=[_LUSTRE_PORT])],
                source_ranges=[str(range_)],
                target_service_accounts=[args.node_account],
                opts=self._child,
            )


def services_range(cidr: str) -> IPv4Network:
    """The half of it for what Google's own services put beside the VPC."""
    return next(IPv4Network(cidr).subnets(1))


def fabric_ranges(cidr: str) -> list[IPv4Network]:
    """The other half of it in sixteen parts, for the subnets of GPUs' interfaces."""
    return list(list(IPv4Network(cidr).subnets(1))[1].subnets(4))
