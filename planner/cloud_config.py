"""The part of a stack file that says where models run: network, cluster, pools, storage. Read by planner/config.py."""

from typing import Annotated, Literal

from pydantic import Field

from planner.strict import Strict

CapacityType = Literal["spot", "on-demand", "reserved", "flex-start"]
Identity = Literal["irsa", "pod-identity"]

NAME = r"^[a-z]([-a-z0-9]{0,18}[a-z0-9])?$"
"""A pool's name becomes part of node group, launch template and role names, which the clouds keep short."""

Texts = Annotated[tuple[str, ...], Field(strict=False)]


class ExistingNetworkConfig(Strict):
    """A network made elsewhere, used as it is; its range is `network.cidr`."""

    id: str = Field(min_length=1, max_length=256, description="The network's id (AWS: `vpc-…`).")
    private_subnets: dict[str, str] = Field(
        description="Zone id to the id of a private subnet there with a route to the internet, for each of `zones`."
    )


class NetworkConfig(Strict):
    """The cluster's network. Ranges may not overlap: pods take addresses from `cidr`, Services from `service_cidr`."""

    cidr: str = Field(
        default="10.40.0.0/16",
        description="Private IPv4 range of the network, on AWS /16 to /21, of which nodes and pods of each zone get an "
        "eighth; elsewhere up to /20, of which pods get half. With `existing`, that network's range.",
    )
    service_cidr: str = Field(
        default="172.20.0.0/16",
        description="Private range of Kubernetes Services, outside `cidr`. It cannot be changed later.",
    )
    peered_cidrs: Texts = Field(
        default=(), description="Ranges of networks that are or will be peered; nothing here may overlap them."
    )
    zones: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=6)] = Field(
        description="Zones, by the ids that planner/catalog has: on AWS two or more like `use1-az1`, which means the "
        "same place in every account; on Google Cloud `us-central1-a`; on Azure `eastus-1`, as AKS labels nodes. "
        "Adding one later moves no subnet, but replaces node groups that have no zones of their own."
    )
    nat_per_zone: bool = Field(
        default=False,
        description="A NAT gateway in each zone, so that the loss of one zone does not cut the others off; costs more.",
    )
    existing: ExistingNetworkConfig | None = Field(
        default=None, description="Use this network instead of making one; nothing in it is changed."
    )


class ClusterConfig(Strict):
    """The Kubernetes control plane and its system nodes. Without `api_cidrs` its API is reached from inside only."""

    kubernetes_version: str = Field(default="1.35", pattern=r"^1\.[0-9]{2}$", description="Minor version, in quotes.")
    api_cidrs: Texts = Field(
        default=(), description="Public ranges that may reach the Kubernetes API; none: only the network itself."
    )
    administrators: Texts = Field(
        default=(),
        description="Who else than its maker may administer the cluster: ARNs of IAM roles or users (AWS), Google "
        "groups or users, ids of Entra groups (Azure).",
    )
    system_instance_type: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Instance type of nodes for everything but models; none: `m7i.large`, `e2-standard-4` or "
        "`Standard_D4ds_v5`.",
    )
    system_nodes: int = Field(default=2, ge=1, le=20, description="How many of those nodes.")
    spot_notice_seconds: int | None = Field(
        default=None,
        ge=1,
        le=3600,
        description="From the notice to the end of a spot node; none: the longest that the cloud gives nodes of this "
        "version.",
    )


class PoolConfig(Strict):
    """GPU nodes of one instance type set. Each capacity type is a node group of its own, scaled from `min_nodes`."""

    name: str = Field(pattern=NAME, description="Lower-case letters, digits and hyphens; models name it as `pool`.")
    instance_types: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=20)] = Field(
        description="Types with the same GPU and number of GPUs; more of them make spot capacity likelier. "
        "Prices are given for the first."
    )
    capacity: Annotated[tuple[CapacityType, ...], Field(strict=False, min_length=1, max_length=4)] = Field(
        default=("spot", "on-demand"), description="Capacity types in the order in which they are tried."
    )
    reservation: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description="Id of the reservation that `reserved` uses: a capacity block (AWS, `cr-…`), a reservation's name "
        "(Google Cloud), a capacity reservation group's id (Azure).",
    )
    zones: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=6)] | None = Field(
        default=None,
        description="Zones of these nodes; none: all of `network.zones`. Models over several nodes need one zone.",
    )
    min_nodes: int = Field(default=0, ge=0, le=1000, description="Nodes that always run; 0 scales to nothing.")
    max_nodes: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Most nodes of each capacity type: those that serve, and one more to build an engine beside them.",
    )
    mig_profile: str | None = Field(
        default=None, min_length=1, max_length=64, description="Divide every GPU by this MIG profile (`1g.10gb`)."
    )
    time_slicing: int | None = Field(
        default=None,
        ge=2,
        le=48,
        description="Pods that take turns on one GPU, without a share of memory of their own.",
    )
    queued: bool = Field(
        default=False, description="Nodes granted all at once, by requests that wait in the cloud's queue."
    )
    max_price_usd_h: float | None = Field(
        default=None,
        gt=0,
        le=10_000,
        description="Most USD per hour for a spot node (Azure); none: the on-demand price.",
    )
    disk_gib: int = Field(default=200, ge=100, le=16_384, description="Encrypted root disk: images and node cache.")


class StorageConfig(Strict):
    """Where engines and weights lie."""

    shared: Literal["nfs", "lustre"] = Field(
        default="nfs",
        description="The file system that every pod of a model mounts: EFS, Filestore or Azure Files, or FSx for "
        "Lustre, Managed Lustre or Azure Managed Lustre.",
    )
    zone: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Zone id of the Lustre file system, or of Filestore; default: that of the pools, where they have "
        "one. Another zone is another file system.",
    )
    nfs_capacity_gib: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="GiB of Filestore or Azure Files, which read faster the larger they are; none: the smallest. EFS "
        "grows by itself.",
    )
    lustre_capacity_gib: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="GiB, in the steps that the cloud sells; none: what loads 405B models in minutes.",
    )
    lustre_throughput_mb_s_per_tib: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="What all nodes together read, in MB/s for each TiB of capacity; none: 500, or 1000 on GKE.",
    )
    accept_load_minutes: int | None = Field(
        default=None, ge=1, le=1440, description="Minutes that loading a model from `nfs` may take without a refusal."
    )
    node_cache: bool = Field(default=True, description="Keep caches on the node's NVMe disks, where it has some.")
    keep_data: bool = Field(
        default=True, description="Protect file system and bucket, and keep them when the stack is destroyed."
    )


IMAGE = r"^[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)+(:[A-Za-z0-9_][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?$"
"""REGISTRY/NAME, and a tag or a digest."""


class KeyLimits(Strict):
    """What one API key may ask of each replica's frontend; none: no limit."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000, description="Requests a minute.")
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=1_000_000_000, description="Tokens a minute, of prompts and answers together."
    )


class ImagesConfig(Strict):
    """Where images come from. A reference may carry a digest (`…@sha256:…`), which then is what runs."""

    triton: str | None = Field(
        pattern=IMAGE,
        default=None,
        min_length=1,
        max_length=512,
        description="Image that builds and serves; none: the pinned NVIDIA image.",
    )
    python_digest: str | None = Field(
        pattern=r"^sha256:[0-9a-f]{64}$",
        default=None,
        description="Digest (`sha256:…`) of the pinned Python image, which small controllers and frontends run in; "
        "none: its tag.",
    )
    pull_through: bool = Field(
        default=False, description="Pull public images through a cache in the account's own registry."
    )


class AwsConfig(Strict):
    """What only AWS has."""

    identity: Identity = Field(
        default="irsa", description="How service accounts become IAM roles: IRSA, or EKS Pod Identity."
    )
    account: str | None = Field(
        default=None, pattern=r"^[0-9]{12}$", description="Refuse to deploy into any other account; in quotes."
    )


class GcpConfig(Strict):
    """What only Google Cloud has."""

    project: str | None = Field(
        default=None,
        pattern=r"^[a-z][-a-z0-9]{4,28}[a-z0-9]$",
        description="Id of the project that everything is made in. Required there.",
    )


class AzureConfig(Strict):
    """What only Azure has."""

    subscription: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        description="Deploy into this subscription, whichever one is logged in to.",
    )
    storage_accounts: Texts = Field(
        default=(),
        description="Resource ids of the storage accounts that `az://CONTAINER@ACCOUNT/PREFIX` sources name.",
    )


class TaintConfig(Strict):
    """A taint that pods tolerate."""

    key: str = Field(min_length=1, max_length=316)
    value: str = Field(default="", max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class ExistingNodesConfig(Strict):
    """GPU nodes that an existing cluster has; models name them as `pool`."""

    name: str = Field(pattern=NAME, description="What models name them by.")
    gpu: str = Field(min_length=1, max_length=64, description="GPU of each node (`H100-80GB`).")
    gpus_per_node: int = Field(ge=1, le=256, description="GPUs of each node.")
    mig_profile: str | None = Field(
        default=None, min_length=1, max_length=64, description="Profile by which the GPUs are divided already."
    )
    nodes: int = Field(ge=1, le=1000, description="How many there are, or may be.")
    vcpus: int = Field(ge=1, le=10_000, description="vCPUs of a node.")
    memory_gib: float = Field(gt=0, le=1_000_000, description="Memory of a node in GiB.")
    disk_gib: int = Field(default=200, ge=10, le=1_000_000, description="Disk of a node that pods may use, in GiB.")
    resource: str = Field(
        default="nvidia.com/gpu",
        min_length=1,
        max_length=253,
        description="What pods ask for: `nvidia.com/gpu`, or a slice's name (`nvidia.com/mig-1g.10gb`).",
    )
    node_selector: dict[str, str] = Field(default={}, description="Labels of the nodes.")
    tolerations: Annotated[tuple[TaintConfig, ...], Field(strict=False)] = Field(
        default=(), description="Taints of the nodes."
    )


class ExistingConfig(Strict):
    """A cluster that is there already, and what pods find on it."""

    kubeconfig: str = Field(
        default="~/.kube/config", min_length=1, max_length=1024, description="Path of the kubeconfig file."
    )
    context: str | None = Field(
        default=None, min_length=1, max_length=256, description="Context in it; needed where it has several."
    )
    storage_class: str = Field(
        min_length=1, max_length=253, description="Storage class of the volume for weights and engines."
    )
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = Field(
        default="ReadWriteMany", description="`ReadWriteOnce` does where the cluster has one node."
    )
    volume_gib: int = Field(default=10, ge=1, le=1_000_000, description="Size of that volume in GiB.")
    read_mb_s: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="What a node reads from it, in MB/s: loading times follow from it.",
    )
    service_account_annotations: dict[str, str] = Field(
        default={},
        description="Put on the service accounts of builds and models: whatever the cluster's identity wants.",
    )
    install_leader_worker_set: bool = Field(
        default=True, description="Install LeaderWorkerSet; `false` where the cluster has it."
    )
    nodes: Annotated[tuple[ExistingNodesConfig, ...], Field(strict=False)] = Field(
        default=(), description="GPU nodes; a stack of CPU models needs none."
    )
