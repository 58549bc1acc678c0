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

_TIB = 1024
_T4 = "Standard NCASv3_T4 Family"

FACTS = CloudFacts(
    name="azure",
    title="AKS",
    # Both run in AKS's own control plane or on its system nodes, and cannot be left out.
    brings=frozenset({"cluster-autoscaler", "metrics-server"}),
    system_instance_type="Standard_D4ds_v5",
    instance_type=re.compile(r"Standard_\w+"),
    # AKS labels GPU nodes itself (kubernetes.azure.com/accelerator), and refuses labels of that prefix from others.
    gpu_labels={},
    identity="Microsoft Entra Workload ID",
    bucket="Blob Storage, by the Blob CSI driver",
    object_store="az",
    # Azure/AgentBaker, containerd.toml.gtpl: the one handler that nodes with GPUs have.
    gpu_runtime_class="nvidia-container-runtime",
    # AKS API, osDiskSizeGB.
    largest_disk_gib=2_048,
    mixed_types=False,
    pool_name=NameRule(
        # AKS documentation, "Create node pools": at most 12 of these. Two of them are the capacity type's.
        pattern=re.compile(r"[a-z][a-z0-9]{0,9}"),
        words="lower-case letters and digits, at most 10",
        example="h100",
    ),
    pool_label=None,
    # AKS documentation, "Add a Spot node pool": AKS gives spot nodes this taint by itself.
    spot_taint=Taint(key="kubernetes.azure.com/scalesetpriority", value="spot"),
    # Azure documentation, "Scheduled Events": Preempt comes 30 seconds before. AKS's node agent polls for it and only
    # then deletes pods (AKS documentation, "Node auto-drain").
    spot_notices=(SpotNotice(seconds=30, pod_seconds=20),),
    mig=MigFacts(
        names="aks_instance_profile",
        # Azure/AKS#5161: its autoscaler knows GPUs by no other name.
        whole_resource=True,
        node_labels={},
        gate="device-plugin",
        labelled=False,
    ),
    fabrics={
        "ib": Fabric(
            kind="ib",
            # Azure/aks-rdma-infiniband, SR-IOV device plugin: one for each InfiniBand interface of the node.
            resource="rdma/ib",
            environment={
                # Azure/aks-rdma-infiniband, tests/scenarios/k8s/values.yaml.
                "NCCL_IB_DISABLE": "0",
                "NCCL_NET_GDR_LEVEL": "SYS",
                # Azure's own NCCL settings for ND H100 v5.
                "NCCL_IB_PCI_RELAXED_ORDERING": "1",
                "NCCL_SOCKET_IFNAME": "eth0",
                # What MPI itself says is little, and goes over the pod's network.
                "OMPI_MCA_pml": "^cm,ucx",
                "OMPI_MCA_btl": "tcp,self",
                "OMPI_MCA_btl_tcp_if_include": "eth0",
                # Without InfiniBand NCCL falls back to TCP in silence: with these its start says which network it took.
                "NCCL_DEBUG": "INFO",
                "NCCL_DEBUG_SUBSYS": "INIT,NET",
            },
            annotations={},
            # Azure's HPC images have it as /opt/microsoft/ndv5-topo.xml, and AKS's nodes do not.
            image_needs="Azure's NCCL topology file (ndv5-topo.xml) for all its bandwidth, and no stock image has it. "
            "Give images.triton one whose NCCL_TOPO_FILE names it",
            # Azure/AgentBaker: containerd's unit has no LimitMEMLOCK, and no field of an agent pool sets one.
            raise_memlock=True,
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
    # Compute's names of the families' quotas. Whatever is spot counts to one limit of the region.
    quotas={
        "on-demand": (
            (("Standard_NC4as_T4", "Standard_NC8as_T4", "Standard_NC16as_T4", "Standard_NC64as_T4"), _T4),
            (("Standard_NC24ads_A100", "Standard_NC48ads_A100", "Standard_NC96ads_A100"), "StandardNCADSA100v4Family"),
            (("Standard_NC40ads_H100", "Standard_NC80adis_H100"), "StandardNCadsH100v5Family"),
            (("Standard_NV36ads_A10",), "StandardNVADSA10v5Family"),
            (("Standard_ND96asr_v4",), "Standard NDASv4_A100 Family"),
            (("Standard_ND96amsr_A100",), "Standard NDAMSv4_A100Family"),
            (("Standard_ND96isr_H100",), "standardNDSH100v5Family"),
            (("Standard_ND96isr_H200",), "standardNDISRH200V5Family"),
            (("Standard_ND128isr_NDR_GB200",), "standardNDISRGB200V6NDRFamily"),
        ),
        "spot": ((("Standard_",), "Total Regional Spot vCPUs"),),
    },
    quota_unit="vCPU",
    network=NetworkFacts(
        name="virtual network",
        # The private range 10.0.0.0/8 is the largest, and Services are beside the network in it; with a /20 the pods'
        # half has room for eight nodes.
        largest=9,
        smallest=20,
        # AKS documentation, "Azure CNI Overlay networking": each node has a /24 of the pods' range.
        addresses_per_node=256,
        # AKS documentation, same page: smaller than /12.
        largest_services=13,
        smallest_services=27,
        zonal_subnets=False,
        zone_hint="network: {zones: [eastus-1, eastus-2]}",
    ),
    nfs=NfsFacts(
        name="Azure Files",
        # No figure is published for one client: this is what four connections (nconnect) at 250 MiB/s each make.
        client_mib_s=1000,
        # Azure documentation, "Understand Azure Files billing", provisioned v1 on SSD: 100 MiB/s, and for each GiB
        # 0.04 outwards and 0.06 inwards, which NFS may use in either direction.
        total_mib_s=10_340,
        sizes=Sizes(smallest=100, step=1, largest=102_400),
        base_mib_s=100,
        mib_s_per_gib=0.1,
        source="Azure Files documentation: SSD file shares, provisioned v1; one client is an assumption",
    ),
    lustre=LustreFacts(
        name="Azure Managed Lustre",
        # Azure Managed Lustre documentation, "Create a file system": throughput and sizes of each.
        tiers={
            40: Sizes(smallest=48 * _TIB, step=48 * _TIB, largest=768 * _TIB),
            125: Sizes(smallest=16 * _TIB, step=16 * _TIB, largest=128 * _TIB),
            250: Sizes(smallest=8 * _TIB, step=8 * _TIB, largest=128 * _TIB),
            500: Sizes(smallest=4 * _TIB, step=4 * _TIB, largest=128 * _TIB),
        },
        default_tier=500,
        quick_gib=8 * _TIB,
        gib_per_tib=1024,
        # No figure is published for one client: the Ethernet of the smallest node with InfiniBand, an ND96asr_v4.
        client_gbit_s=24,
        source="Azure Managed Lustre documentation; a client's network is an assumption",
    ),
    unsupported={
        "network.existing": Unsupported(
            reason="this program makes the subnets that AKS and its storage want",
            instead="let the stack make its own network, and peer it: name its ranges in network.peered_cidrs",
        ),
        "network.nat_per_zone": Unsupported(
            reason="subnets are not in zones, and a subnet has one NAT gateway",
            instead="remove it: one gateway serves all zones",
        ),
        "images.pull_through": Unsupported(
            reason="this program makes no registry there",
            instead="remove it, or give images.triton a copy in a registry of your own",
        ),
        "pools[].queued": Unsupported(
            reason="AKS has no queue that grants several nodes at once",
            instead="give spot and on-demand, or a reservation group (`reserved`) where Azure reserves the type",
        ),
        "pools[].capacity=flex-start": Unsupported(
            reason="Azure has no queue that starts nodes when there is capacity",
            instead="give spot and on-demand, or a reservation group (`reserved`) where Azure reserves the type",
        ),
    },
)
