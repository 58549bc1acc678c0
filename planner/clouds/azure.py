"""What decides a plan on Azure."""

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
    name="azure",
    title="AKS",
    brings=frozenset({"cluster-autoscaler", "metrics-server"}),
    system_instance_type="Standard_D4ds_v5",
    gpu_labels={},
    identity="Microsoft Entra Workload ID",
    bucket="Blob Storage, by the Blob CSI driver",
    mixed_types=False,
    pool_name=NameRule(
        pattern=re.compile(r"[a-z][a-z0-9]{0,9}"),
        words="lower-case letters and digits, at most 10",
        example="h100",
    ),
    pool_label=None,
    # AKS gives spot nodes this taint and a label of the same key by itself.
    spot_taint=Taint(key="kubernetes.azure.com/scalesetpriority", value="spot"),
    spot_notices=(SpotNotice(seconds=30, pod_seconds=20),),
    mig=MigFacts(
        names="aks_instance_profile",
        whole_resource=True,
        node_labels={},
        gate="device-plugin",
        labelled=False,
    ),
    fabrics={
        "ib": Fabric(
            kind="ib",
            resource="rdma/ib",
            environment={},
            annotations={},
            image_needs="nothing",
        )
    },
    reservation_kinds=("odcr",),
    reservation_id=NameRule(
        pattern=re.compile(
            r"/subscriptions/[0-9a-f-]{36}/resourceGroups/[-\w.()]+/providers/Microsoft\.Compute"
            r"/capacityReservationGroups/[-\w.]+"
        ),
        words="the id of a capacity reservation group",
        example="/subscriptions/…/resourceGroups/gpus/providers/Microsoft.Compute/capacityReservationGroups/h100",
    ),
    administrator=NameRule(
        pattern=re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
        words="the object id of an Entra group",
        example="01234567-89ab-cdef-0123-456789abcdef",
    ),
    quotas={},
    quota_unit="vCPU",
    network=NetworkFacts(
        name="virtual network",
        largest=9,
        smallest=20,
        smallest_subnet=29,
        reserved_per_subnet=5,
        # Azure CNI Overlay gives each node a /24 of the pods' range.
        addresses_per_node=256,
        largest_services=12,
        smallest_services=27,
        zonal_subnets=False,
        zone_hint="network: {zones: [eastus-1, eastus-2]}",
    ),
    nfs=NfsFacts(
        name="Azure Files",
        client_mib_s=1000,
        total_mib_s=10_340,
        sizes=Sizes(smallest=100, step=1, largest=102_400),
        base_mib_s=100,
        mib_s_per_gib=0.1,
        source="Azure Files documentation",
    ),
    lustre=LustreFacts(
        name="Azure Managed Lustre",
        tiers={500: Sizes(smallest=4096, step=4096, largest=128 * 1024)},
        default_tier=500,
        quick_gib=8192,
        gib_per_tib=1024,
        client_gbit_s=80,
        source="Azure Managed Lustre documentation",
    ),
    unsupported={
        "network.existing": Unsupported(
            reason="this program makes the subnets that AKS and its storage want",
            instead="let the stack make its own network, and peer it: name its ranges in network.peered_cidrs",
        ),
        "network.nat_per_zone": Unsupported(reason="", instead="remove it"),
        "images.pull_through": Unsupported(reason="", instead="remove it"),
        "pools[].queued": Unsupported(
            reason="AKS has no queue that grants several nodes at once",
            instead="give a capacity reservation group (`reserved`)",
        ),
        "pools[].capacity=flex-start": Unsupported(
            reason="Azure has no queue that starts nodes when there is capacity", instead="give spot and on-demand"
        ),
    },
)
