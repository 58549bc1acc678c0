"""What decides a plan on AWS."""

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
from planner.pool_labels import CAPACITY_LABEL, MIG_STATE_LABEL

_LUSTRE_SIZES = Sizes(smallest=1200, step=2400, largest=1_000_000)

FACTS = CloudFacts(
    name="aws",
    title="EKS",
    brings=frozenset(),
    system_instance_type="m7i.large",
    instance_type=re.compile(r"[a-z][-a-z0-9]*\.[-a-z0-9]+"),
    # Cluster Autoscaler, cloudprovider/aws, GPULabel: a node that has it and no GPU yet is still starting.
    gpu_labels={"k8s.amazonaws.com/accelerator": "{gpu}"},
    identity="IRSA, or EKS Pod Identity",
    bucket="S3, by the Mountpoint CSI driver",
    object_store="s3",
    gpu_runtime_class=None,
    # EBS User Guide, "Amazon EBS volume types": gp3.
    largest_disk_gib=16_384,
    mixed_types=True,
    pool_name=NameRule(
        pattern=re.compile(r"[a-z]([-a-z0-9]{0,18}[a-z0-9])?"),
        words="lower-case letters, digits and hyphens, at most 20",
        example="h100",
    ),
    pool_label=None,
    # EKS labels spot nodes (eks.amazonaws.com/capacityType) and taints none.
    spot_taint=Taint(key=CAPACITY_LABEL, value="spot"),
    # EC2 User Guide, "Spot Instance interruption notices": two minutes. It reaches pods a little later.
    spot_notices=(SpotNotice(seconds=120, pod_seconds=110),),
    mig=MigFacts(
        # The GPU operator's MIG manager divides whole nodes, by the names of its own configurations.
        names=None,
        whole_resource=False,
        node_labels={MIG_STATE_LABEL: "success"},
        gate="taint",
        labelled=True,
    ),
    fabrics={
        "efa": Fabric(
            kind="efa",
            # EKS User Guide, "Manage EFA devices on Amazon EKS": the resource of aws-efa-k8s-device-plugin.
            resource="vpc.amazonaws.com/efa",
            # EKS User Guide, "Run machine learning training on Amazon EKS with EFA": instances with the EFA driver set
            # aside 5128 huge pages of 2 MiB; AWS's own NCCL test asks for 5120Mi of them in each pod.
            hugepages_mib=5128 * 2,
            hugepages_pod_mib=5120,
            environment={
                # Triton's tutorial of TensorRT-LLM on EKS with EFA (triton-inference-server/tutorials, EKS multi-node
                # guide).
                "FI_PROVIDER": "efa",
                "FI_EFA_FORK_SAFE": "1",
                "NCCL_SOCKET_IFNAME": "^docker,lo",
                "OMPI_MCA_pml": "^cm,ucx",
                "OMPI_MCA_btl": "tcp,self",
                "OMPI_MCA_btl_tcp_if_exclude": "lo,docker0",
                # Without the OFI plugin NCCL falls back to TCP in silence (aws-ofi-nccl#1063): with these its start
                # says in the log which network it took.
                "NCCL_DEBUG": "INFO",
                "NCCL_DEBUG_SUBSYS": "INIT,NET",
            },
            annotations={},
            image_needs="a libfabric plugin for NCCL, and NVIDIA's stock image is not known to have it; without it "
            "NCCL takes TCP. Give images.triton one that does; the ranks' logs then say NET/OFI",
        )
    },
    reservation_kinds=("capacity-block",),
    reservation_id=NameRule(
        pattern=re.compile(r"cr-[0-9a-f]{17}"), words="the id of a capacity block", example="cr-0123456789abcdef0"
    ),
    administrator=NameRule(
        pattern=re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/.+"),
        words="the ARN of an IAM role or user",
        example="arn:aws:iam::123456789012:role/platform",
    ),
    # AWS documentation, "Amazon EC2 instance type quotas". It names none for P6 on spot, and third parties disagree
    # whether P5's or P4's counts it; P5's is the more likely one.
    quotas={
        "on-demand": (
            (("g",), "Running On-Demand G and VT instances"),
            (("p",), "Running On-Demand P instances"),
        ),
        "spot": (
            (("g",), "All G and VT Spot Instance Requests"),
            (("p3", "p4"), "All P4, P3 and P2 Spot Instance Requests"),
            (("p5", "p6"), "All P5 Spot Instance Requests"),
        ),
    },
    quota_unit="vCPU",
    network=NetworkFacts(
        name="VPC",
        # VPC User Guide, "VPC CIDR blocks" and "Subnet CIDR blocks": /16 to /28, five addresses of a subnet reserved.
        largest=16,
        smallest=28,
        smallest_subnet=28,
        reserved_per_subnet=5,
        # The VPC CNI keeps a whole interface's addresses warm beside the one in use (WARM_ENI_TARGET=1), and large
        # instance types have 50 for each (DescribeInstanceTypes, Ipv4AddressesPerInterface).
        addresses_per_node=100,
        # EKS API, KubernetesNetworkConfigRequest: between /24 and /12, inside the private ranges.
        largest_services=12,
        smallest_services=24,
        zonal_subnets=True,
        zone_hint="network: {zones: [use1-az1, use1-az2, use1-az4]}",
        # EKS User Guide, "Subnet requirements for clusters".
        fewest_zones=2,
        refused_zones=("use1-az3", "usw1-az2", "cac1-az3"),
        id=re.compile(r"vpc-([0-9a-f]{8}|[0-9a-f]{17})"),
        subnet_id=re.compile(r"subnet-([0-9a-f]{8}|[0-9a-f]{17})"),
    ),
    nfs=NfsFacts(
        name="EFS",
        client_mib_s=1500,
        # 60 GiB/s in seven large regions; the figure of all others is taken everywhere.
        total_mib_s=10 * 1024,
        source="EFS User Guide, quotas: Elastic throughput, mounted by the EFS CSI driver",
    ),
    lustre=LustreFacts(
        name="FSx for Lustre",
        tiers=dict.fromkeys((125, 250, 500, 1000), _LUSTRE_SIZES),
        default_tier=500,
        quick_gib=7200,
        # The provider counts 1000 GiB of capacity as one "TiB" when it states throughput.
        gib_per_tib=1000,
        gib_per_server=2400,
        client_server_gbit_s=5,
        client_gbit_s=100,
        source="FSx for Lustre User Guide, performance: PERSISTENT_2 SSD without EFA, files striped over all servers",
    ),
    unsupported={
        "pools[].capacity=flex-start": Unsupported(
            reason="EC2 has no queue that starts nodes when there is capacity",
            instead="give a capacity block (`reserved`), or spot and on-demand",
        ),
        "pools[].queued": Unsupported(
            reason="EC2 has no queue that grants several nodes at once",
            instead="give a capacity block (`reserved`): its nodes are there together",
        ),
        "pools[].max_price_usd_h": Unsupported(
            reason="a managed node group takes no price limit: spot never costs more than on-demand",
            instead="remove it",
        ),
        "storage.nfs_capacity_gib": Unsupported(
            reason="EFS grows and shrinks with what lies in it", instead="remove it"
        ),
    },
)
