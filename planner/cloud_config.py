"""The part of a stack file that says where models run: network, cluster, pools, storage. Read by planner/config.py."""

from typing import Annotated, Literal

from pydantic import Field

from planner.strict import Strict

CapacityType = Literal["spot", "on-demand", "reserved"]
Identity = Literal["irsa", "pod-identity"]

NAME = r"^[a-z]([-a-z0-9]{0,18}[a-z0-9])?$"
"""A pool's name becomes part of node group, launch template and role names, which the clouds keep short."""

Texts = Annotated[tuple[str, ...], Field(strict=False)]


class ExistingNetworkConfig(Strict):
    """A network made elsewhere, used as it is; its range is `network.cidr`."""

    id: str = Field(min_length=1, max_length=64, description="The network's id (AWS: `vpc-…`).")
    private_subnets: dict[str, str] = Field(
        description="Zone id to the id of a private subnet there with a route to the internet, for each of `zones`."
    )


class NetworkConfig(Strict):
    """The cluster's network. Ranges may not overlap: pods take addresses from `cidr`, Services from `service_cidr`."""

    cidr: str = Field(
        default="10.40.0.0/16",
        description="Private IPv4 range of the network, /16 to /21; nodes and pods of each zone get an eighth of it. "
        "With `existing`, that network's range.",
    )
    service_cidr: str = Field(
        default="172.20.0.0/16",
        description="Private range of Kubernetes Services, outside `cidr`. It cannot be changed later.",
    )
    peered_cidrs: Texts = Field(
        default=(), description="Ranges of networks that are or will be peered; nothing here may overlap them."
    )
    zones: Annotated[tuple[str, ...], Field(strict=False, min_length=2, max_length=6)] = Field(
        description="Zone ids (`use1-az1`), which mean the same place in every account; names (`us-east-1a`) do not. "
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
        default=(), description="Who else than its maker may administer the cluster (AWS: ARNs of IAM roles or users)."
    )
    system_instance_type: str = Field(
        default="m7i.large",
        min_length=1,
        max_length=64,
        description="Instance type of nodes for everything but models.",
    )
    system_nodes: int = Field(default=2, ge=1, le=20, description="How many of those nodes.")


class PoolConfig(Strict):
    """GPU nodes of one instance type set. Each capacity type is a node group of its own, scaled from `min_nodes`."""

    name: str = Field(pattern=NAME, description="Lower-case letters, digits and hyphens; models name it as `pool`.")
    instance_types: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=20)] = Field(
        description="Types with the same GPU and number of GPUs; more of them make spot capacity likelier. "
        "Prices are given for the first."
    )
    capacity: Annotated[tuple[CapacityType, ...], Field(strict=False, min_length=1, max_length=3)] = Field(
        default=("spot", "on-demand"), description="Capacity types in the order in which they are tried."
    )
    reservation: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Id of the reservation (AWS: a capacity block, `cr-…`) that `reserved` uses.",
    )
    zones: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=6)] | None = Field(
        default=None,
        description="Zone ids for these nodes; none: all of `network.zones`. Models over several nodes need one zone.",
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
    disk_gib: int = Field(default=200, ge=100, le=16_384, description="Encrypted root disk: images and node cache.")


class StorageConfig(Strict):
    """Where engines and weights lie."""

    shared: Literal["nfs", "lustre"] = Field(
        default="nfs", description="The file system that every pod of a model mounts (AWS: EFS, or FSx for Lustre)."
    )
    zone: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Zone id of the Lustre file system; default: the first of the pools' zones by name. Another zone "
        "is another file system.",
    )
    lustre_capacity_gib: int = Field(
        default=7200,
        ge=1200,
        le=1_000_000,
        description="GiB; AWS: 1200, or a multiple of 2400. A node reads 0.6 GB/s from each 2400 GiB.",
    )
    lustre_throughput_mb_s_per_tib: Literal[125, 250, 500, 1000] = Field(
        default=500, description="What all nodes together read, in MB/s for each TiB of capacity."
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


class ImagesConfig(Strict):
    """Where images come from. A reference may carry a digest (`…@sha256:…`), which then is what runs."""

    triton: str | None = Field(
        pattern=IMAGE,
        default=None,
        min_length=1,
        max_length=512,
        description="Image that builds and serves; none: the pinned NVIDIA image.",
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
