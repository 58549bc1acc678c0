"""What may differ between clouds, as data. Nothing outside a cloud's own folders asks which cloud it is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from planner.cloud_config import CapacityType, StorageConfig
from planner.fleet import Fabric, SpotNotice, Taint
from planner.gpus import Gpu


@dataclass(frozen=True, kw_only=True)
class ReadRate:
    """Decimal GB/s at which all nodes of a group read together: an estimate, and `source` says from what."""

    gb_s: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Capacities in GiB that a cloud sells: `smallest`, then multiples of `step` up to `largest`."""

    smallest: int
    step: int
    largest: int

    def offers(self, gib: int) -> bool:
        return gib == self.smallest or (self.smallest < gib <= self.largest and gib % self.step == 0)

    def at_least(self, gib: int) -> int:
        """The smallest one that holds `gib`; the largest where none does."""
        return self.smallest if gib <= self.smallest else min(-(-gib // self.step) * self.step, self.largest)


@dataclass(frozen=True, kw_only=True)
class NfsFacts:
    """The cloud's NFS: most that one client reads, and most that all read together, in MiB/s.

    Where capacity is bought, `sizes` are on offer, and all together read `base_mib_s` and `mib_s_per_gib` more for each
    GiB of it; an elastic file system has no sizes. A `zonal` one lies in one zone, and in another it is another one.
    """

    name: str
    client_mib_s: float
    total_mib_s: float
    source: str
    sizes: Sizes | None = None
    base_mib_s: float = 0
    mib_s_per_gib: float = 0
    zonal: bool = False

    def rate(self, gib: int | None) -> tuple[float, float]:
        """GB/s of one client, and of all together."""
        total = self.total_mib_s
        if gib is not None:
            total = min(total, self.base_mib_s + self.mib_s_per_gib * gib)
        return self.client_mib_s * 2**20 / 1e9, total * 2**20 / 1e9


@dataclass(frozen=True, kw_only=True)
class LustreFacts:
    """The cloud's Lustre, mounted without RDMA. `tiers` are its throughputs in MB/s for each TiB, and their sizes.

    `gib_per_tib` is what the provider counts as a TiB there. Where servers limit a client, there is one for each
    `gib_per_server`. `quick_gib` of the `default_tier` is enough for a 405B model to load in minutes.
    """

    name: str
    tiers: Mapping[int, Sizes]
    default_tier: int
    quick_gib: int
    gib_per_tib: int
    client_gbit_s: float
    source: str
    gib_per_server: int | None = None
    client_server_gbit_s: float | None = None

    def rate(self, gib: int, tier: int) -> tuple[float, float]:
        """GB/s of one client, and of all together."""
        client = self.client_gbit_s
        if self.gib_per_server and self.client_server_gbit_s:
            client = min(client, -(-gib // self.gib_per_server) * self.client_server_gbit_s)
        return client / 8, gib / self.gib_per_tib * tier / 1000


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What the cloud allows of a network; lengths are CIDR prefix lengths, `largest` the shortest of them.

    `smallest` is of a network made elsewhere, and of any where subnets do not lie in zones; `*_subnet` are of subnets
    in zones. The control plane wants `fewest_zones`, and refuses `refused_zones`.

    A node holds up to `addresses_per_node` addresses: of its zone's subnet where subnets lie in zones
    (`zonal_subnets`), else of one range for the pods of all nodes.
    """

    name: str
    largest: int
    smallest: int
    addresses_per_node: int
    largest_services: int
    smallest_services: int
    zonal_subnets: bool
    zone_hint: str
    smallest_subnet: int = 0
    reserved_per_subnet: int = 0
    fewest_zones: int = 1
    refused_zones: tuple[str, ...] = ()
    id: re.Pattern[str] = re.compile("(?!)")
    subnet_id: re.Pattern[str] = re.compile("(?!)")


@dataclass(frozen=True, kw_only=True)
class MigFacts:
    """How GPUs come to be divided.

    `names` gives the cloud's own name of each profile that it can make of a GPU. A slice is asked for by the profile's
    resource, or like a whole GPU with `whole_resource`. `node_labels` are on a node whose GPUs are divided, with {name}
    for the cloud's name of the profile, and pods select them. `gate` is how our MIG gate keeps pods off until then:
    `taint`, which it takes off the node; `device-plugin`, which it lets start; None where the cloud itself sees to it.
    `labelled` says that nodes tell the GPU operator by label how to divide.
    """

    names: str | None
    whole_resource: bool
    node_labels: Mapping[str, str]
    gate: Literal["taint", "device-plugin"] | None
    labelled: bool

    def profiles(self, gpu: Gpu) -> dict[str, str]:
        """Profile -> the cloud's name of it."""
        if self.names is None:
            return {profile: f"all-{profile.replace('+', '.')}" for profile in gpu.mig_slices}
        return {profile: name for profile, name in gpu.mig_names[self.names].items() if name}


@dataclass(frozen=True, kw_only=True)
class NameRule:
    """What a name or an id must look like: the pattern, in words, and an example."""

    pattern: re.Pattern[str]
    words: str
    example: str


@dataclass(frozen=True, kw_only=True)
class Unsupported:
    """Why a cloud does not give what a stack file can ask for, and the nearest thing that works."""

    reason: str
    instead: str


@dataclass(frozen=True, kw_only=True)
class CloudFacts:
    """One cloud.

    Names of instance types, with GPUs or without, look like `instance_type`. `identity` says in words how pods become
    somebody in the cloud, and `bucket` how they read the model bucket; `object_store` is the scheme of sources that the
    cloud's own pods can be given the right to read.
    `mixed_types` says that one node group can have several instance types. `brings` are platform parts that the cloud
    runs itself ("gpu-operator", "cluster-autoscaler", "metrics-server"). `gpu_labels` are on nodes with whole GPUs;
    {gpu} is the GPU's name. `pool_label` is a label of the cloud's whose value is the pool's name and by which the
    cloud orders node groups; nodes have a taint of the same key.
    `spot_notices` begin with the longest. `fabrics` are by the instance catalogue's word for the network.
    `reservation_kinds` are what `reserved` can use, in the catalogue's words. `gpu_runtime_class` is the container
    runtime's handler for pods with GPUs, where it is not the GPU operator's own. `largest_disk_gib` is the most that a
    node's root disk may have. `quotas` are the account's limits by capacity type: beginnings of instance types, and the
    limit that they count to, in `quota_unit`. Instance types that begin like one of `no_on_demand` are not sold so.
    `required` are keys of a stack file that this cloud cannot do without, and how to give them. `unsupported` is by
    the key of a stack file, or by key=value where only one value is.
    """

    name: str
    title: str
    brings: frozenset[str]
    system_instance_type: str
    instance_type: re.Pattern[str]
    gpu_labels: Mapping[str, str]
    identity: str
    bucket: str
    object_store: str
    gpu_runtime_class: str | None
    largest_disk_gib: int
    mixed_types: bool
    pool_name: NameRule
    pool_label: str | None
    spot_taint: Taint
    spot_notices: tuple[SpotNotice, ...]
    mig: MigFacts
    fabrics: Mapping[str, Fabric]
    reservation_kinds: tuple[str, ...]
    reservation_id: NameRule
    administrator: NameRule
    quotas: Mapping[CapacityType, tuple[tuple[tuple[str, ...], str], ...]]
    quota_unit: str
    network: NetworkFacts
    nfs: NfsFacts
    lustre: LustreFacts
    no_on_demand: tuple[str, ...] = ()
    required: Mapping[str, str] = field(default_factory=dict[str, str])
    unsupported: Mapping[str, Unsupported] = field(default_factory=dict[str, Unsupported])

    def spot_notice(self, kubernetes_version: str) -> SpotNotice:
        """The longest notice that nodes of the version can be given."""
        version = version_of(kubernetes_version)
        return next(notice for notice in self.spot_notices if notice.since <= version)

    def shared_read_rate(self, storage: StorageConfig, *, nodes: int, network_gbps: float | None) -> ReadRate:
        """What a group of `nodes` reads from the stack's shared file system; `network_gbps` is one node's, if known."""
        if storage.shared == "nfs":
            per_node, total = self.nfs.rate(self.nfs_gib(storage))
            name, source = self.nfs.name, self.nfs.source
        else:
            per_node, total = self.lustre.rate(self.lustre_gib(storage), self.lustre_tier(storage))
            name, source = self.lustre.name, self.lustre.source
        # On small instance types the node's own network is what limits.
        if network_gbps is not None:
            per_node = min(per_node, network_gbps / 8)
        rate = min(nodes * per_node, total)
        return ReadRate(
            gb_s=rate,
            source=f"{name}: {nodes} x {per_node:.2f} GB/s per node, at most {total:.2f} GB/s in all ({source})",
        )

    def nfs_gib(self, storage: StorageConfig) -> int | None:
        """The NFS file system's capacity; None where it grows by itself."""
        return (storage.nfs_capacity_gib or self.nfs.sizes.smallest) if self.nfs.sizes else None

    def lustre_tier(self, storage: StorageConfig) -> int:
        return storage.lustre_throughput_mb_s_per_tib or self.lustre.default_tier

    def lustre_gib(self, storage: StorageConfig) -> int:
        if storage.lustre_capacity_gib:
            return storage.lustre_capacity_gib
        sizes = self.lustre.tiers.get(self.lustre_tier(storage))
        return max(self.lustre.quick_gib, sizes.smallest) if sizes else self.lustre.quick_gib


def version_of(text: str) -> tuple[int, int]:
    """A Kubernetes minor version as numbers that compare: (1, 35)."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
