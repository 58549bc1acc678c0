"""What the ranks of a replica speak over, and how long their collectives take."""

from dataclasses import dataclass

from planner.config import ModelConfig
from planner.instances import InstanceType
from planner.peaks import Peaks, peaks

NVLINK_EFFICIENCY = 0.7
"""Bus bandwidth of large all-reduces over one direction's peak: 0.6 to 0.9 in measurements of A100, H100 and H200."""

PCIE_EFFICIENCY = 0.55
"""The same over PCIe without NVLink, through the host: about 18 GB/s over PCIe 4.0 x16. Calibrated on the published
Llama 3.1 70B on four L40S, held against eight of them, Mixtral and A100 PCIe."""

NETWORK_EFFICIENCY = {True: 0.8, False: 0.5}
"""Estimate, with and without RDMA: what NCCL gets of a node's network."""

UNKNOWN_NETWORK_GBPS = 10.0
"""Counted where nothing says how fast nodes speak to each other."""

HOP_S = 10e-6
"""Latency of one hop of a ring, seconds."""


@dataclass(frozen=True, kw_only=True)
class Interconnect:
    """`nvlink` is that of the GPU's data sheet; without it ranks of a node speak over PCIe, through the host.

    `network_gbps` is of a whole node, Gbit/s; 0 where nothing is known.
    """

    nvlink: bool
    network_gbps: float = 0.0
    rdma: bool = False


def interconnect(instance: InstanceType) -> Interconnect:
    """The interconnect of an instance type. Azure's NC sizes have PCIe cards of GPUs that others have on boards."""
    cards = instance.cloud == "azure" and instance.name.startswith("Standard_NC")
    return Interconnect(
        nvlink=peaks()[instance.gpu].nvlink_gb_s > 0 and not cards,
        network_gbps=instance.network_gbps or 0.0,
        rdma=instance.rdma != "none",
    )


@dataclass(frozen=True, kw_only=True)
class Links:
    """Of one replica: bytes/s of one direction for a TP rank's all-reduce and for a hop between PP stages."""

    tensor_parallel: int
    all_reduce_bytes_per_s: float
    stage_bytes_per_s: float
    over_nvlink: bool

    def all_reduce_s(self, size: float) -> float:
        """A ring's all-reduce of `size` bytes, seconds: 2 (TP - 1) / TP of them pass each link."""
        tp = self.tensor_parallel
        if tp == 1:
            return 0.0
        hops = 2 if self.over_nvlink else 2 * (tp - 1)
        return 2 * (tp - 1) / tp * size / self.all_reduce_bytes_per_s + hops * HOP_S


def links(model: ModelConfig, peak: Peaks, found: Interconnect) -> Links:
    """The links of a replica: TP stays within a node where it can, PP crosses nodes where the replica does."""
    over_nvlink = found.nvlink and peak.nvlink_gb_s > 0
    # NVLink is printed for both directions together.
    inside = peak.nvlink_gb_s / 2 * NVLINK_EFFICIENCY if over_nvlink else peak.pcie_gb_s * PCIE_EFFICIENCY
    network = (found.network_gbps or UNKNOWN_NETWORK_GBPS) / 8 * NETWORK_EFFICIENCY[found.rdma]
    outside = network / min(model.gpus_per_node, model.world_size)
    tp_inside = model.tensor_parallel <= model.gpus_per_node
    pp_inside = model.world_size <= model.gpus_per_node
    return Links(
        tensor_parallel=model.tensor_parallel,
        all_reduce_bytes_per_s=(inside if tp_inside else outside) * 1e9,
        stage_bytes_per_s=(inside if pp_inside else outside) * 1e9,
        over_nvlink=over_nvlink and tp_inside,
    )
