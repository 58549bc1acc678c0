"""Multi-networking: VPCs for the interfaces of GPUs that talk to other nodes, and Kubernetes' names of them.

GKE can also make all this itself (`accelerator_network_profile`). Its interfaces are then claimed as devices (DRA), and
nothing says that the autoscaler starts a first node for such a claim; with networks that pods name it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_gcp import compute
from pulumi_gcp.container import NodePoolNetworkConfigAdditionalNodeNetworkConfigArgs as NodeNetwork
from pulumi_kubernetes.apiextensions import CustomResource
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs

from components.clouds.gcp.network import MTU, fabric_ranges
from components.labels import LABELS
from planner.clouds.gcp_fabrics import NETWORKS
from planner.fleet import CloudPlan

_API = "networking.gke.io/v1"
# GPUDirect-TCPX and TCPXO: two pages and their headers (GKE documentation, "Maximize GPU network bandwidth").
_MTU = {"roce": MTU, "tcpx": 8244, "tcpxo": 8244}


@dataclass(frozen=True, kw_only=True)
class FabricArgs:
    """`kind` is the instance catalogue's word; the machines lie in `zone`. Subnets are cut out of `cidr`, which is for
    what else the cloud puts into the network."""

    kind: str
    project: str
    cluster_name: str
    region: str
    zone: str
    cidr: str


@dataclass(frozen=True, kw_only=True)
class Interface:
    """One interface of a node: Kubernetes' name of its network, and where it lies."""

    name: str
    rdma: bool
    network: compute.Network
    subnet: compute.Subnetwork


class Fabric(pulumi.ComponentResource):
    """The VPCs and subnets of one kind of network. `interfaces` are in the order of a node's interfaces."""

    interfaces: list[Interface]

    def __init__(self, name: str, args: FabricArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:GcpFabric", name, None, opts)
        self._prefix, self._args = name, args
        self._child = pulumi.ResourceOptions(parent=self)
        ranges = [str(part) for part in fabric_ranges(args.cidr)]
        rdma = self._rdma_network() if args.kind == "roce" else None
        self.interfaces = []
        for network_name, range_ in zip(NETWORKS[args.kind], ranges, strict=False):
            # All RDMA interfaces share one network, of a profile of their own; every other one has its own.
            shared = rdma if network_name.startswith("rdma-") else None
            network = shared or self._network(network_name, range_)
            subnet = compute.Subnetwork(
                f"{name}-{network_name}",
                name=self._called(network_name),
                network=network.id,
                region=args.region,
                ip_cidr_range=range_,
                opts=self._child,
            )
            self.interfaces.append(
                Interface(name=network_name, rdma=shared is not None, network=network, subnet=subnet)
            )
        self.register_outputs({})

    @property
    def node_networks(self) -> list[NodeNetwork]:
        """What a node pool is told of them."""
        return [NodeNetwork(network=one.network.name, subnetwork=one.subnet.name) for one in self.interfaces]

    def _called(self, network_name: str) -> str:
        """Known before it exists: objects of Kubernetes say it. Compute Engine takes 63 letters."""
        return f"{self._args.cluster_name}-{network_name}"

    def _rdma_network(self) -> compute.Network:
        profile = f"projects/{self._args.project}/global/networkProfiles/{self._args.zone}-vpc-roce"
        # The profile allows RDMA and nothing else: no firewall rules, no way out.
        return compute.Network(
            f"{self._prefix}-rdma",
            name=self._called("rdma"),
            auto_create_subnetworks=False,
            mtu=_MTU["roce"],
            network_profile=profile,
            opts=self._child,
        )

    def _network(self, network_name: str, range_: str) -> compute.Network:
        name = f"{self._prefix}-{network_name}"
        network = compute.Network(
            name,
            name=self._called(network_name),
            auto_create_subnetworks=False,
            mtu=_MTU[self._args.kind],
            delete_default_routes_on_create=True,
            opts=self._child,
        )
        compute.Firewall(
            name,
            network=network.id,
            description="Between the interfaces of GPUs",
            direction="INGRESS",
            allows=[compute.FirewallAllowArgs(protocol=protocol) for protocol in ("tcp", "udp", "icmp")],
            source_ranges=[range_],
            opts=self._child,
        )
        return network


def fabrics(
    name: str, plan: CloudPlan, project: str, cluster_name: str, *, parent: pulumi.Resource
) -> dict[str, Fabric]:
    """By kind, for the pools that have one, all of a kind in one zone."""
    zones = {pool.fabric.kind: pool.node_groups[0].zones[0] for pool in plan.pools if pool.fabric}
    (subnet,) = plan.network.subnets
    return {
        kind: Fabric(
            f"{name}-{kind}",
            FabricArgs(
                kind=kind,
                project=project,
                cluster_name=cluster_name,
                region=plan.region,
                zone=zone,
                cidr=subnet.public_cidr,
            ),
            pulumi.ResourceOptions(parent=parent),
        )
        for kind, zone in sorted(zones.items())
    }


def network_objects(name: str, interfaces: Sequence[Interface], *, parent: pulumi.Resource) -> list[pulumi.Resource]:
    """What pods' annotations name: a Network for each interface, and a GKENetworkParamSet that says where it lies."""
    networks: list[pulumi.Resource] = []
    for one in interfaces:
        parameters = CustomResource(
            f"{name}-{one.name}-parameters",
            api_version=_API,
            kind="GKENetworkParamSet",
            metadata=ObjectMetaArgs(name=one.name, labels=LABELS),
            spec={
                "vpc": one.network.name,
                "vpcSubnet": one.subnet.name,
                "deviceMode": "RDMA" if one.rdma else "NetDevice",
            },
            opts=pulumi.ResourceOptions(parent=parent),
        )
        networks.append(
            CustomResource(
                f"{name}-{one.name}",
                api_version=_API,
                kind="Network",
                metadata=ObjectMetaArgs(name=one.name, labels=LABELS),
                spec={
                    "type": "Device",
                    "parametersRef": {"group": "networking.gke.io", "kind": "GKENetworkParamSet", "name": one.name},
                },
                opts=pulumi.ResourceOptions(parent=parent, depends_on=[parameters]),
            )
        )
    return networks
