"""What decides a plan on Google Cloud."""

import re

from planner.clouds.facts import (
    CloudFacts,
    LustreFacts,
    MigFacts,
    NameRule,
    NetworkFacts,
    NfsFacts,
    Sizes,
    Unsupported,
)
from planner.clouds.gcp_fabrics import ROCE, TCPX, TCPXO
from planner.fleet import SpotNotice, Taint

# Compute Engine documentation, "GPU quota": one for each GPU model. The longer beginning comes first.
_QUOTAS = (
    (("a2-ultragpu-",), "NVIDIA_A100_80GB_GPUS"),
    (("a2-",), "NVIDIA_A100_GPUS"),
    (("a3-ultragpu-",), "NVIDIA_H200_GPUS"),
    (("a3-megagpu-",), "NVIDIA_H100_MEGA_GPUS"),
    (("a3-",), "NVIDIA_H100_GPUS"),
    (("a4-",), "NVIDIA_B200_GPUS"),
    (("g2-",), "NVIDIA_L4_GPUS"),
)
_PREEMPTIBLE_QUOTAS = tuple((beginnings, f"PREEMPTIBLE_{name}") for beginnings, name in _QUOTAS)

FACTS = CloudFacts(
    name="gcp",
    title="GKE",
    # Driver, device plugin, autoscaler and metrics are GKE's own.
    brings=frozenset({"gpu-operator", "cluster-autoscaler", "metrics-server"}),
    identity="Workload Identity Federation for GKE",
    bucket="Cloud Storage, by the Cloud Storage FUSE CSI driver",
    object_store="gs",
    # It is in every zone, and takes disks of every kind but Hyperdisk.
    system_instance_type="e2-standard-4",
    instance_type=re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+"),
    # GKE labels nodes with cloud.google.com/gke-accelerator itself, and its autoscaler knows nodes of its own.
    gpu_labels={},
    gpu_runtime_class=None,
    # Compute Engine documentation, "Persistent Disk": 64 TiB.
    largest_disk_gib=65_536,
    mixed_types=False,
    # GKE API, NodePool.name: at most 40 characters, of which `-flex-start` takes eleven. A pool's compute class has its
    # name, and GKE brings `autopilot` and `autopilot-spot` (GKE documentation, "About built-in ComputeClasses").
    pool_name=NameRule(
        pattern=re.compile(r"(?!autopilot)[a-z]([-a-z0-9]{0,18}[a-z0-9])?"),
        words="lower-case letters, digits and hyphens, at most 20, not beginning with autopilot, as GKE's own",
        example="h100",
    ),
    # GKE documentation, "About custom compute classes": the label and the taint of node pools that a class orders.
    pool_label="cloud.google.com/compute-class",
    # GKE labels spot nodes with this; on Standard clusters the taint is the pool's to give (GKE documentation, "Spot
    # VMs").
    spot_taint=Taint(key="cloud.google.com/gke-spot", value="true"),
    # GKE documentation, "Spot VMs": 30 s, of which critical pods have the last 15; Spot node pools of 1.35 and later
    # may have 120 s, of which critical pods are left 30 here.
    spot_notices=(
        SpotNotice(seconds=120, pod_seconds=90, since=(1, 35)),
        SpotNotice(seconds=30, pod_seconds=15),
    ),
    mig=MigFacts(
        names="gke_partition_size",
        whole_resource=True,
        node_labels={"cloud.google.com/gke-gpu-partition-size": "{name}"},
        # container-engine-accelerators, cmd/nvidia_gpu: the device plugin of a divided node offers nothing before every
        # GPU has all of its partitions, and then partitions alone.
        gate=None,
        labelled=False,
    ),
    fabrics={"roce": ROCE, "tcpx": TCPX, "tcpxo": TCPXO},
    reservation_kinds=("reservation", "dws-calendar"),
    reservation_id=NameRule(
        pattern=re.compile(
            r"(projects/[a-z][-a-z0-9:.]{4,61}/reservations/)?[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
            r"(/reservationBlocks/[a-z]([-a-z0-9]{0,61}[a-z0-9])?)?"
        ),
        words="a reservation's name, or projects/PROJECT/reservations/NAME of one that another project shares",
        example="h200-december",
    ),
    administrator=NameRule(
        pattern=re.compile(r"(group|user|serviceAccount):[^@\s]+@[^@\s]+"),
        words="a Google group, user or service account",
        example="group:platform@example.com",
    ),
    # Reserved capacity was counted when it was reserved. Flex-start counts as preemptible (GKE documentation, "Run a
    # small batch workload with GPUs and Flex-start VMs").
    quotas={"on-demand": _QUOTAS, "spot": _PREEMPTIBLE_QUOTAS, "flex-start": _PREEMPTIBLE_QUOTAS},
    quota_unit="GPU",
    network=NetworkFacts(
        name="VPC network",
        # GKE documentation, "Configure maximum Pods per node": ranges of pods are /9 to /21; they have half of this.
        largest=8,
        # Of the network's second eighth one half is for Filestore and Lustre, and private services access takes no less
        # than a /24.
        smallest=20,
        # The same page: a node of up to 110 pods has a /24 of the pods' range.
        addresses_per_node=256,
        # GKE documentation, "VPC-native clusters": Services' range is /16 to /27.
        largest_services=16,
        smallest_services=27,
        zonal_subnets=False,
        zone_hint="network: {zones: [us-central1-a, us-central1-b]}",
    ),
    nfs=NfsFacts(
        name="Filestore",
        # Filestore documentation, "Instance performance": zonal tier, lower capacity range. One of the higher range
        # (from 10 TiB, and an instance cannot change over) costs more than Lustre that reads faster.
        client_mib_s=450,
        total_mib_s=2535,
        sizes=Sizes(smallest=1024, step=256, largest=9984),
        mib_s_per_gib=260 / 1024,
        zonal=True,
        source="Filestore documentation, performance of zonal instances up to 9.75 TiB",
    ),
    lustre=LustreFacts(
        name="Managed Lustre",
        # Managed Lustre documentation, "Performance tiers".
        tiers={
            1000: Sizes(smallest=9000, step=9000, largest=1_530_000),
            500: Sizes(smallest=18_000, step=18_000, largest=3_060_000),
            250: Sizes(smallest=36_000, step=36_000, largest=6_120_000),
            125: Sizes(smallest=72_000, step=72_000, largest=12_240_000),
        },
        # The fastest one begins with the smallest size, and all smallest sizes read alike.
        default_tier=1000,
        quick_gib=9000,
        gib_per_tib=1024,
        # Google names none. A gVNIC of an A3 has 200 Gbit/s; half of it is counted on.
        client_gbit_s=100,
        source="Managed Lustre documentation, performance tiers; one client: half of a gVNIC",
    ),
    # Compute Engine documentation, "Accelerator-optimized machine family", consumption options by machine type: Spot,
    # Flex-start and, of the machines with eight GPUs, reservations are the only ways to these.
    no_on_demand=("a3-highgpu-1g", "a3-highgpu-2g", "a3-highgpu-4g", "a3-ultragpu-", "a4-"),
    required={"gcp.project": "give the project's id: `gcp: {project: my-project}`"},
    unsupported={
        "network.existing": Unsupported(
            reason="the cluster's subnet must have secondary ranges for pods and Services, and this program makes them",
            instead="let the stack make its own network, and peer it: name the others' ranges in network.peered_cidrs",
        ),
        "network.nat_per_zone": Unsupported(
            reason="Cloud NAT is one of the region, and no zone's loss ends it",
            instead="remove it",
        ),
        "images.pull_through": Unsupported(
            reason="Artifact Registry's remote repositories keep other names, which charts would have to be told",
            instead="remove it",
        ),
        "pools[].max_price_usd_h": Unsupported(
            reason="Spot VMs have a fixed price below the on-demand one, and take no limit",
            instead="remove it",
        ),
        "pools[].queued": Unsupported(
            reason="queued nodes come by ProvisioningRequests, which nothing makes for pods that serve, and they "
            "cannot be spot",
            instead="give capacity [spot, flex-start] without it: flex-start waits for nodes too",
        ),
    },
)
