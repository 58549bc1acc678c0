"""The plan of everything around the models: network, pools, storage, cost. Frozen; the clouds build from it alone."""

from dataclasses import dataclass
from typing import Literal

from planner.cloud_config import (
    AwsConfig,
    AzureConfig,
    CapacityType,
    ClusterConfig,
    ExistingConfig,
    GcpConfig,
    ImagesConfig,
    KeyLimits,
)


@dataclass(frozen=True, kw_only=True)
class SubnetPlan:
    """One zone's ranges, or those of all zones where `zone` is "".

    Nodes live in `private_cidr`, and pods too unless the network has a range for them; `public_cidr` is for NAT
    gateways and public load balancers, or for what else the cloud puts into the network.
    """

    zone: str
    private_cidr: str
    public_cidr: str
    existing_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """`existing_id` names a network that is used as it is: then nothing of it is made. `pod_cidr` is the range of all
    pods, "" where pods take addresses of their nodes' subnets."""

    cidr: str
    service_cidr: str
    pod_cidr: str
    zones: tuple[str, ...]
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
class SpotNotice:
    """From the notice to the end of a spot node, and what of it a pod has from SIGTERM to SIGKILL; `since` is the first
    Kubernetes version whose nodes can be given it."""

    seconds: int
    pod_seconds: int
    since: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class HostPath:
    """A folder of the node, as a container sees it."""

    path: str
    mount: str


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """A container that a network's driver wants beside the ranks, for as long as they run."""

    name: str
    image: str
    command: tuple[str, ...]
    capabilities: tuple[str, ...]
    environment: dict[str, str]
    host_paths: tuple[HostPath, ...]


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """A network between the GPUs of different nodes; `kind` is the instance catalogue's word for it.

    A pod of a whole node asks for as many of `resource` as the node has interfaces (None: it gets them by its
    annotations), and for `hugepages_pod_mib` of the `hugepages_mib` that the node sets aside. With `raise_memlock` the
    cloud's nodes let containers lock too little memory, and a DaemonSet of ours raises that. With `one_zone` a cluster
    has one network of the kind, which lies in one zone. What no pod of the `restricted` standard may have stands in
    `host_paths` and `sidecar`, and `exception` says why it must be.
    """

    kind: str
    resource: str | None
    environment: dict[str, str]
    annotations: dict[str, str]
    image_needs: str
    hugepages_mib: int = 0
    hugepages_pod_mib: int = 0
    raise_memlock: bool = False
    one_zone: bool = False
    host_paths: tuple[HostPath, ...] = ()
    sidecar: Sidecar | None = None
    exception: str = ""


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

    `gpu_resource` is None for pods without a GPU. `units_per_node` counts it: GPUs, MIG slices, or GPUs times the
    time-slicing replicas. `mig_name` is the cloud's name of the division. `rdma_interfaces` is per node and 0 where the
    pool does without, and then there is no `fabric`. `node_selector` and `tolerations` are all that a pod needs to land
    here and nowhere else. Pods of one group share a node's value of each of `together`.
    """

    name: str
    gpu: str
    gpus_per_node: int
    gpu_resource: str | None
    units_per_node: int
    mig_profile: str | None
    mig_name: str | None
    time_slicing: int | None
    vcpus: int
    memory_gib: float
    local_nvme_gb: int
    disk_gib: int
    rdma_interfaces: int
    fabric: Fabric | None
    max_price_usd_h: float | None
    node_selector: dict[str, str]
    tolerations: tuple[Taint, ...]
    together: tuple[str, ...]
    node_groups: tuple[NodeGroupPlan, ...]


@dataclass(frozen=True, kw_only=True)
class StoragePlan:
    """The shared file system and the model bucket.

    `nfs` and `lustre` have `capacity_gib` (None: it grows by itself); `lustre` reads `throughput_mb_s_per_tib`. What
    lies in one zone lies in `zone`, which is "" for what is in all of them. `class` is a volume of an existing
    cluster's storage class.
    """

    kind: Literal["nfs", "lustre", "class"]
    capacity_gib: int | None
    throughput_mb_s_per_tib: int
    zone: str
    node_cache: bool
    keep_data: bool


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """How one model's groups run. `gpus_per_pod` counts the pool's `gpu_resource`; times are in seconds.

    `load_seconds` is the bytes of a group's weights over what it reads from shared storage (an estimate, from
    `load_source`); `startup_seconds` bounds the start probe. A pod gets `grace_seconds` from its deletion to SIGKILL:
    `prestop_seconds` of it for endpoints to forget the pod and `drain_seconds` for requests in flight. A leader's
    frontend has its part of `cpu_millis` and `memory_mib`.
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
    frontend_cpu_millis: int
    frontend_memory_mib: int
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
    """Everything that a stack on a cluster needs beyond its models.

    `brings` are charts that the cluster needs no release of, since it has their like. `gpu_runtime_class` is the
    runtime's handler that the GPU operator's own pods need. With the MIG strategy `single` a slice is a
    `nvidia.com/gpu`. What `allow_replacement` names may be replaced by an update: `cluster`, `storage`, or a pool as
    `pools.NAME`. Of an existing cluster there is nothing but `existing`, and pools of nodes that are there.
    """

    name: str
    region: str
    cluster: ClusterConfig
    system_instance_type: str
    network: NetworkPlan
    pools: tuple[PoolPlan, ...]
    storage: StoragePlan
    images: ImagesConfig
    spot_notice: SpotNotice
    brings: frozenset[str]
    gpu_runtime_class: str | None
    mig_strategy: Literal["mixed", "single"]
    allow_replacement: tuple[str, ...]
    aws: AwsConfig
    gcp: GcpConfig
    azure: AzureConfig
    existing: ExistingConfig | None
    hugging_face_token: bool
    key_limits: dict[str, KeyLimits]
    cost: CostEstimate
    quotas: tuple[QuotaNeed, ...]
