"""What differs between clouds and decides a plan: notice before eviction, RDMA, how fast shared storage reads."""

import re
from dataclasses import dataclass, field

from planner.cloud_config import CapacityType, StorageConfig


@dataclass(frozen=True, kw_only=True)
class ReadRate:
    """Decimal GB/s at which all nodes of a group read together: an estimate, and `source` says from what."""

    gb_s: float
    source: str


@dataclass(frozen=True, kw_only=True)
class NfsFacts:
    """The cloud's elastic NFS: most that one client reads, and most that all read together."""

    name: str
    client_mib_s: int
    total_gib_s: int
    source: str


@dataclass(frozen=True, kw_only=True)
class LustreFacts:
    """The cloud's Lustre without RDMA: one server for each `gib_per_server`; `gib_step` is how capacity grows.

    The provider counts 1000 GiB of capacity as one "TiB" when it states throughput.
    """

    name: str
    smallest_gib: int
    gib_step: int
    gib_per_server: int
    client_server_gbit_s: float
    client_gbit_s: float
    source: str


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What the cloud allows of a network; lengths are CIDR prefix lengths, `largest` the shortest of them.

    A node holds up to `addresses_per_node` addresses of its subnet, and one for each RDMA interface. The control plane
    refuses subnets in `refused_zones`.
    """

    name: str
    largest: int
    smallest: int
    smallest_subnet: int
    reserved_per_subnet: int
    addresses_per_node: int
    largest_services: int
    smallest_services: int
    refused_zones: tuple[str, ...]
    id: re.Pattern[str]
    subnet_id: re.Pattern[str]


@dataclass(frozen=True, kw_only=True)
class CloudFacts:
    """One cloud. `hugepages_mib` is what a node with RDMA sets aside, `hugepages_pod_mib` what a pod asks of it.

    `reservation_kind` is what the capacity type `reserved` uses, in the instance catalogue's word.
    `quotas` are the account's vCPU limits by capacity type: beginnings of instance types, and the limit they count to.
    `unsupported` names what a stack file can ask for and this cloud does not give, with the reason.
    """

    name: str
    gpu_label: str
    spot_notice_seconds: int
    rdma_resource: str
    rdma_environment: dict[str, str]
    hugepages_mib: int
    hugepages_pod_mib: int
    reservation_kind: str
    reservation_id: re.Pattern[str]
    reservation_example: str
    quotas: dict[CapacityType, tuple[tuple[tuple[str, ...], str], ...]]
    network: NetworkFacts
    nfs: NfsFacts
    lustre: LustreFacts
    unsupported: dict[str, str] = field(default_factory=dict[str, str])

    def shared_read_rate(self, storage: StorageConfig, *, nodes: int, network_gbps: float | None) -> ReadRate:
        """What a group of `nodes` reads from the stack's shared file system; `network_gbps` is one node's, if known."""
        if storage.shared == "nfs":
            per_node = self.nfs.client_mib_s * 2**20 / 1e9
            total = self.nfs.total_gib_s * 2**30 / 1e9
            name, source = self.nfs.name, self.nfs.source
        else:
            servers = -(-storage.lustre_capacity_gib // self.lustre.gib_per_server)
            per_node = min(servers * self.lustre.client_server_gbit_s, self.lustre.client_gbit_s) / 8
            total = storage.lustre_capacity_gib / 1000 * storage.lustre_throughput_mb_s_per_tib / 1000
            name, source = self.lustre.name, self.lustre.source
        # On small instance types the node's own network is what limits.
        if network_gbps is not None:
            per_node = min(per_node, network_gbps / 8)
        rate = min(nodes * per_node, total)
        return ReadRate(
            gb_s=rate,
            source=f"{name}: {nodes} x {per_node:.2f} GB/s per node, at most {total:.2f} GB/s in all ({source})",
        )


def cloud_facts(name: str) -> CloudFacts:
    """The facts of a managed cloud; KeyError for any other."""
    return _CLOUDS[name]


_AWS = CloudFacts(
    name="aws",
    # Cluster Autoscaler, cloudprovider/aws, GPULabel: a node that has it and no GPU yet is still starting.
    gpu_label="k8s.amazonaws.com/accelerator",
    # EC2 User Guide, "Spot Instance interruption notices": two minutes.
    spot_notice_seconds=120,
    # EKS User Guide, "Manage EFA devices on Amazon EKS": the resource of aws-efa-k8s-device-plugin.
    rdma_resource="vpc.amazonaws.com/efa",
    rdma_environment={
        # Triton's tutorial of TensorRT-LLM on EKS with EFA (triton-inference-server/tutorials, EKS multi-node guide).
        "FI_PROVIDER": "efa",
        "FI_EFA_FORK_SAFE": "1",
        "NCCL_SOCKET_IFNAME": "^docker,lo",
        "OMPI_MCA_pml": "^cm,ucx",
        "OMPI_MCA_btl": "tcp,self",
        "OMPI_MCA_btl_tcp_if_exclude": "lo,docker0",
        # Without the OFI plugin NCCL falls back to TCP in silence (aws-ofi-nccl#1063): with these its start says in the
        # log which network it took.
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT,NET",
    },
    # EKS User Guide, "Run machine learning training on Amazon EKS with EFA": instances with the EFA driver set aside
    # 5128 huge pages of 2 MiB; AWS's own NCCL test asks for 5120Mi of them in each pod.
    hugepages_mib=5128 * 2,
    hugepages_pod_mib=5120,
    reservation_kind="capacity-block",
    reservation_id=re.compile(r"cr-[0-9a-f]{17}"),
    reservation_example="cr-0123456789abcdef0",
    # AWS documentation, "Amazon EC2 instance type quotas". It names none for P6 on spot, and third parties disagree
    # whether P5's or P4's counts it; P5's is the more likely one.
    quotas={
        "on-demand": (
            (("g",), "Running On-Demand G and VT instances"),
            (("p",), "Running On-Demand P instances"),
        ),
        "spot": (
            (("g",), "All G and VT Spot Instance Requests"),
            (("p3", "p4"), "All P4, P3 and P2 Spot Instance Requests"),
            (("p5", "p6"), "All P5 Spot Instance Requests"),
        ),
    },
    network=NetworkFacts(
        name="VPC",
        # VPC User Guide, "VPC CIDR blocks" and "Subnet CIDR blocks": /16 to /28, five addresses of a subnet reserved.
        largest=16,
        smallest=28,
        smallest_subnet=28,
        reserved_per_subnet=5,
        # The VPC CNI keeps a whole interface's addresses warm beside the one in use (WARM_ENI_TARGET=1), and large
        # instance types have 50 for each (DescribeInstanceTypes, Ipv4AddressesPerInterface).
        addresses_per_node=100,
        # EKS API, KubernetesNetworkConfigRequest: between /24 and /12, inside the private ranges.
        largest_services=12,
        smallest_services=24,
        # EKS User Guide, "Subnet requirements for clusters".
        refused_zones=("use1-az3", "usw1-az2", "cac1-az3"),
        id=re.compile(r"vpc-([0-9a-f]{8}|[0-9a-f]{17})"),
        subnet_id=re.compile(r"subnet-([0-9a-f]{8}|[0-9a-f]{17})"),
    ),
    nfs=NfsFacts(
        name="EFS",
        client_mib_s=1500,
        # 60 GiB/s in seven large regions; the figure of all others is taken everywhere.
        total_gib_s=10,
        source="EFS User Guide, quotas: Elastic throughput, mounted by the EFS CSI driver",
    ),
    lustre=LustreFacts(
        name="FSx for Lustre",
        smallest_gib=1200,
        gib_step=2400,
        gib_per_server=2400,
        client_server_gbit_s=5,
        client_gbit_s=100,
        source="FSx for Lustre User Guide, performance: PERSISTENT_2 SSD without EFA, files striped over all servers",
    ),
)

_CLOUDS = {facts.name: facts for facts in (_AWS,)}
