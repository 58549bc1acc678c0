"""The part of a stack file that says where models run: network, cluster, pools, storage. Read by planner/config.py."""

from typing import Annotated, Literal

from pydantic import Field

from planner.strict import Strict

CapacityType = Literal["spot", "on-demand", "reserved"]
Identity = Literal["irsa", "pod-identity"]

NAME = r"^[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?$"
"""A pool's name becomes part of node group, launch template and role names, which the clouds keep short."""

Texts = Annotated[tuple[str, ...], Field(strict=False)]


class ExistingNetworkConfig(Strict):
    """A network made elsewhere: its id, its range, and one private subnet for each zone."""

    id: str = Field(min_length=1, max_length=64)
    private_subnets: dict[str, str]


class NetworkConfig(Strict):
    """The cluster's network. `zones` are zone ids (use1-az1), which mean the same place in every account."""

    cidr: str = "10.40.0.0/16"
    service_cidr: str = "172.20.0.0/16"
    peered_cidrs: Texts = ()
    zones: Annotated[tuple[str, ...], Field(strict=False, min_length=2, max_length=6)]
    nat_per_zone: bool = False
    existing: ExistingNetworkConfig | None = None


class ClusterConfig(Strict):
    """The Kubernetes control plane. Without `api_cidrs` its API is reached from inside the network only."""

    kubernetes_version: str = Field(default="1.35", pattern=r"^1\.[0-9]{2}$")
    api_cidrs: Texts = ()
    administrators: Texts = ()
    system_instance_type: str = Field(default="m7i.large", min_length=1, max_length=64)
    system_nodes: int = Field(default=2, ge=1, le=20)


class PoolConfig(Strict):
    """GPU nodes of one instance type set; `capacity` is the order in which capacity types are tried."""

    name: str = Field(pattern=NAME)
    instance_types: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=20)]
    capacity: Annotated[tuple[CapacityType, ...], Field(strict=False, min_length=1, max_length=3)] = (
        "spot",
        "on-demand",
    )
    reservation: str | None = Field(default=None, min_length=1, max_length=128)
    zones: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=6)] | None = None
    min_nodes: int = Field(default=0, ge=0, le=1000)
    max_nodes: int = Field(default=1, ge=1, le=1000)
    mig_profile: str | None = Field(default=None, min_length=1, max_length=64)
    time_slicing: int | None = Field(default=None, ge=2, le=48)
    disk_gib: int = Field(default=200, ge=100, le=16_384)


class StorageConfig(Strict):
    """Where engines and weights lie. `shared` is the file system that every pod of a model mounts."""

    shared: Literal["nfs", "lustre"] = "nfs"
    lustre_capacity_gib: int = Field(default=4800, ge=1200, le=1_000_000)
    lustre_throughput_mib_s_per_tib: Literal[125, 250, 500, 1000] = 500
    accept_load_minutes: int | None = Field(default=None, ge=1, le=1440)
    node_cache: bool = True
    keep_data: bool = True


class ImagesConfig(Strict):
    """Where images come from. A reference may carry a digest (`…@sha256:…`), which then is what runs."""

    triton: str | None = Field(default=None, min_length=1, max_length=512)
    pull_through: bool = False


class AwsConfig(Strict):
    """What only AWS has."""

    identity: Identity = "irsa"
    account: str | None = Field(default=None, pattern=r"^[0-9]{12}$")
