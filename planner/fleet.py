"""The plan of everything around the models: network, pools, storage, cost. Frozen; the clouds build from it alone."""

from dataclasses import dataclass
from typing import Literal

from planner.cloud_config import AwsConfig, CapacityType, ClusterConfig, ImagesConfig


@dataclass(frozen=True, kw_only=True)
class SubnetPlan:
    """One zone's ranges: nodes and pods live in `private_cidr`, NAT gateways and public load balancers in the other."""

    zone: str
    private_cidr: str
    public_cidr: str
    existing_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """`existing_id` names a network that is used as it is: then nothing of it is made."""

    cidr: str
    service_cidr: str
    peered_cidrs: tuple[str, ...]
    subnets: tuple[SubnetPlan, ...]
    nat_per_zone: bool
    existing_id: str | None


@dataclass(frozen=True, kw_only=True)
class Taint:
    """A node taint in Kubernetes' own words; `effect` is NoSchedule."""

    key: str
    value: str
    effect: str = "NoSchedule"


@dataclass(frozen=True, kw_only=True)
class NodeGroupPlan:
    """The nodes of a pool of one capacity type. `name` is `<pool>-<capacity>`; a higher `priority` is tried first.

    `allocatable` are the extended resources of a ready node by Kubernetes name (GPUs or MIG slices, RDMA interfaces,
    huge pages), for an autoscaler that has never seen one.
    """

    name: str
    capacity: CapacityType
    priority: int
    instance_types: tuple[str, ...]
    zones: tuple[str, ...]
    min_nodes: int
    max_nodes: int
    reservation: str | None
    labels: dict[str, str]
    taints: tuple[Taint, ...]
    startup_taints: tuple[Taint, ...]
    allocatable: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """GPU nodes, decided. Memory in GiB, `hugepages_mib` of 2 MiB pages; `gpu_resource` is what a pod asks for.

    `units_per_node` counts `gpu_resource`: GPUs, MIG slices, or GPUs times the time-slicing replicas.
    `rdma_interfaces` is per node and 0 where the pool does without. `node_selector` and
    `tolerations` are all that a pod needs to land here and nowhere else.
    """

    name: str
    gpu: str
    gpus_per_node: int
    gpu_resource: str
    units_per_node: int
    mig_profile: str | None
    mig_config: str | None
    time_slicing: int | None
    vcpus: int
    memory_gib: float
    local_nvme_gb: int
    disk_gib: int
    rdma_interfaces: int
    rdma_resource: str | None
    hugepages_mib: int
    node_selector: dict[str, str]
    tolerations: tuple[Taint, ...]
    spread_label: str
    node_groups: tuple[NodeGroupPlan, ...]


@dataclass(frozen=True, kw_only=True)
class StoragePlan:
    """The shared file system (`nfs` or `lustre`, the latter of `capacity_gib`, in one zone) and the model bucket."""

    kind: Literal["nfs", "lustre"]
    capacity_gib: int
    throughput_mb_s_per_tib: int
    zone: str
    node_cache: bool
    keep_data: bool


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """How one model's groups run. `gpus_per_pod` counts the pool's `gpu_resource`; times are in seconds.

    `load_seconds` is the bytes of a group's weights over what it reads from shared storage (an estimate, from
    `load_source`); `startup_seconds` bounds the start probe. A pod gets `grace_seconds` from its deletion to SIGKILL:
    `prestop_seconds` of it for endpoints to forget the pod and `drain_seconds` for requests in flight.
    """

    pool: PoolPlan
    replicas: int
    group_size: int
    gpus_per_pod: int
    rdma_per_pod: int
    hugepages_mib: int
    shm_mib: int
    cpu_millis: int
    memory_mib: int
    load_seconds: int
    load_source: str
    startup_seconds: int
    prestop_seconds: int
    drain_seconds: int
    grace_seconds: int
    log_level: str


@dataclass(frozen=True, kw_only=True)
class CostLine:
    """USD per hour for `nodes` nodes of a node group's first instance type; None where no price is known."""

    node_group: str
    instance_type: str
    nodes: int
    usd_per_hour: float | None
    price_as_of: str


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """GPU nodes only, at the catalogue's prices; `usd_per_month` is 730 hours of the preferred capacity."""

    lines: tuple[CostLine, ...]
    usd_per_month: float | None
    note: str


@dataclass(frozen=True, kw_only=True)
class QuotaNeed:
    """A limit of the account that the stack reaches when every node group is at its largest."""

    name: str
    needed: int
    unit: str


@dataclass(frozen=True, kw_only=True)
class CloudPlan:
    """Everything a managed cloud's stack needs beyond its models."""

    name: str
    region: str
    cluster: ClusterConfig
    network: NetworkPlan
    pools: tuple[PoolPlan, ...]
    storage: StoragePlan
    images: ImagesConfig
    aws: AwsConfig
    hugging_face_token: bool
    cost: CostEstimate
    quotas: tuple[QuotaNeed, ...]
