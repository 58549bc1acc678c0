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
from planner.fleet import Fabric, SpotNotice, Taint

FACTS = CloudFacts(
    name="gcp",
    title="GKE",
    # Driver, device plugin, autoscaler and metrics are GKE's own.
    brings=frozenset({"gpu-operator", "cluster-autoscaler", "metrics-server"}),
    system_instance_type="e2-standard-4",
    gpu_labels={},
    identity="Workload Identity Federation for GKE",
    bucket="Cloud Storage, by the GCS FUSE CSI driver",
    mixed_types=False,
    pool_name=NameRule(
        pattern=re.compile(r"[a-z]([-a-z0-9]{0,18}[a-z0-9])?"),
        words="lower-case letters, digits and hyphens, at most 20",
        example="h100",
    ),
    pool_label="cloud.google.com/compute-class",
    # GKE labels spot nodes with this; on Standard clusters the taint is the pool's to give.
    spot_taint=Taint(key="cloud.google.com/gke-spot", value="true"),
    spot_notices=(
        SpotNotice(seconds=120, pod_seconds=105, since=(1, 35)),
        SpotNotice(seconds=30, pod_seconds=15),
    ),
    mig=MigFacts(
        names="gke_partition_size",
        whole_resource=True,
        node_labels={"cloud.google.com/gke-gpu-partition-size": "{name}"},
        gate=None,
        labelled=False,
    ),
    fabrics={
        "roce": Fabric(
            kind="roce",
            resource=None,
            environment={},
            annotations={},
            image_needs="NCCL's gIB plugin",
        )
    },
    reservation_kinds=("reservation", "dws-calendar"),
    reservation_id=NameRule(
        pattern=re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"), words="a reservation's name", example="h200-december"
    ),
    administrator=NameRule(
        pattern=re.compile(r"(group|user|serviceAccount):[^@\s]+@[^@\s]+"),
        words="a Google group, user or service account",
        example="group:platform@example.com",
    ),
    quotas={},
    quota_unit="GPU",
    network=NetworkFacts(
        name="VPC network",
        largest=9,
        smallest=20,
        smallest_subnet=29,
        reserved_per_subnet=4,
        addresses_per_node=256,
        largest_services=16,
        smallest_services=27,
        zonal_subnets=False,
        zone_hint="network: {zones: [us-central1-a, us-central1-b]}",
    ),
    nfs=NfsFacts(
        name="Filestore",
        client_mib_s=450,
        total_mib_s=25600,
        sizes=Sizes(smallest=1024, step=256, largest=102_400),
        mib_s_per_gib=0.26,
        source="Filestore documentation",
    ),
    lustre=LustreFacts(
        name="Managed Lustre",
        tiers={500: Sizes(smallest=18_000, step=9000, largest=954_000)},
        default_tier=500,
        quick_gib=18_000,
        gib_per_tib=1024,
        client_gbit_s=100,
        source="Managed Lustre documentation",
    ),
    required={"gcp.project": "give the project's id"},
    unsupported={
        "network.existing": Unsupported(
            reason="GKE wants named secondary ranges of it, and this program makes them",
            instead="let the stack make its own network, and peer it: name its ranges in network.peered_cidrs",
        ),
        "images.pull_through": Unsupported(reason="not made on this cloud", instead="remove it"),
        "pools[].max_price_usd_h": Unsupported(
            reason="Spot VMs have one price, at most half of the on-demand one", instead="remove it"
        ),
        "pools[].queued": Unsupported(
            reason="queued nodes come by ProvisioningRequests and go after seven days: they are for Jobs that end",
            instead="give capacity [flex-start, on-demand]",
        ),
    },
)
