"""The one place where versions are pinned. requirements*.txt repeat some of them; a test holds them together."""

from dataclasses import dataclass
from typing import Final

TENSORRT_LLM: Final = "1.2.1"
TENSORRT: Final = "10.14.1.48"
CPU_ENGINE: Final = "1"
"""Format of the CPU engine's files; it changes whenever an older engine could no longer be read."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """A container image and what it carries."""

    reference: str
    tensorrt_llm: str
    tensorrt: str
    cuda: str
    driver: str
    python: str


TRITON_IMAGE: Final = Image(
    # The last tag that NVIDIA's compatibility table gives for TensorRT-LLM 1.2.1; engines are built in this same image.
    reference="nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3",
    tensorrt_llm=TENSORRT_LLM,
    tensorrt=TENSORRT,
    cuda="13.1",
    driver="590.44.01",
    python="3.12.3",
)

OLDEST_KUBERNETES: Final = (1, 31)
"""Pods rely on matchLabelKeys of pod affinity and on unhealthyPodEvictionPolicy: on by default since this version."""

LEADER_WORKER_SET: Final = "0.10.0"
"""Chart and CRD of LeaderWorkerSet."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A Helm chart: `name` in a repository, or a whole `oci://` reference and no repository."""

    name: str
    repository: str | None
    version: str


CHARTS: Final = {
    "gpu-operator": Chart(name="gpu-operator", repository="https://helm.ngc.nvidia.com/nvidia", version="v26.7.0"),
    "lws": Chart(name="oci://registry.k8s.io/lws/charts/lws", repository=None, version=LEADER_WORKER_SET),
    "cluster-autoscaler": Chart(
        name="cluster-autoscaler", repository="https://kubernetes.github.io/autoscaler", version="9.59.0"
    ),
    "metrics-server": Chart(
        name="metrics-server", repository="https://kubernetes-sigs.github.io/metrics-server", version="3.13.1"
    ),
    "aws-efa-k8s-device-plugin": Chart(
        name="aws-efa-k8s-device-plugin", repository="https://aws.github.io/eks-charts", version="v0.5.30"
    ),
    # The newest that Azure/aks-rdma-infiniband is tried with.
    "network-operator": Chart(
        name="network-operator", repository="https://helm.ngc.nvidia.com/nvidia", version="v26.4.0"
    ),
}
"""Charts by the name of their release."""


@dataclass(frozen=True, kw_only=True)
class AzureLustreClient:
    """The Lustre client of an Ubuntu release: what AKS labels its nodes, and version and build of the packages."""

    ubuntu: str
    os_sku: str
    lustre: str
    build: str


@dataclass(frozen=True, kw_only=True)
class AzureLustreDriver:
    """The CSI driver of Azure Managed Lustre; `image` ends in the name of the Ubuntu release."""

    image: str
    registrar: str
    liveness_probe: str
    clients: tuple[AzureLustreClient, ...]


AZURE_LUSTRE: Final = AzureLustreDriver(
    image="mcr.microsoft.com/oss/v2/kubernetes-csi/azurelustre-csi:v0.4.0",
    registrar="mcr.microsoft.com/oss/kubernetes-csi/csi-node-driver-registrar:v2.13.0",
    liveness_probe="mcr.microsoft.com/oss/kubernetes-csi/livenessprobe:v2.15.0",
    clients=(
        AzureLustreClient(ubuntu="jammy", os_sku="Ubuntu2204", lustre="2.15.7", build="33-g79ddf99"),
        AzureLustreClient(ubuntu="noble", os_sku="Ubuntu2404", lustre="2.16.1", build="14-gbc76088"),
    ),
)
"""As its manifests have it (azurelustre-csi-driver v0.4.0, deploy/): there is no chart."""

DOCA_DRIVER: Final = "doca3.2.0-25.10-1.2.8.0-2"
"""InfiniBand's driver on Azure; the network operator appends the node's system (Azure/aks-rdma-infiniband)."""

SRIOV_DEVICE_PLUGIN: Final = "network-operator-v25.10.0"
"""What makes devices of InfiniBand interfaces there, of the same source."""


@dataclass(frozen=True, kw_only=True)
class GpuDirect:
    """Google's GPUDirect over TCP: the image that puts its libraries on a node, and that of the daemon beside the
    ranks."""

    installer: str
    daemon: str


_GPUDIRECT = "us-docker.pkg.dev/gce-ai-infra/gpudirect"
GPUDIRECT: Final = {
    "tcpx": GpuDirect(
        installer=f"{_GPUDIRECT}-tcpx/nccl-plugin-gpudirecttcpx-dev:v3.1.9",
        daemon=f"{_GPUDIRECT}-tcpx/tcpgpudmarxd-dev:v2.0.12",
    ),
    "tcpxo": GpuDirect(
        installer=f"{_GPUDIRECT}-tcpxo/nccl-plugin-gpudirecttcpx-dev:v1.0.15",
        daemon=f"{_GPUDIRECT}-tcpxo/tcpgpudmarxd-dev:v1.0.21",
    ),
}
"""By kind of network, as container-engine-accelerators@992db81 pairs them."""

DEVICE_INJECTOR: Final = (
    "gcr.io/gke-release/nri-device-injector@sha256:6e79483d52abdc28454bf186320b10a56b0f117a10e8d65d5c74dbb821a76970"
)
"""Gives containers the devices that a pod's annotations name; of the same source, and so is the next."""

PAUSE_IMAGE: Final = "gke.gcr.io/pause:3.8@sha256:880e63f94b145e46f1b1082bb71b85e21f16b99b180b9996407d61240ceb9830"

CLUSTER_AUTOSCALER: Final = {"1.33": "v1.33.6", "1.34": "v1.34.5", "1.35": "v1.35.2", "1.36": "v1.36.1"}
"""Kubernetes version -> image tag: the autoscaler simulates the scheduler of one Kubernetes version."""

PYTHON_IMAGE: Final = "public.ecr.aws/docker/library/python:3.13.15-slim-trixie"
"""What small controllers of our own run in; they use the standard library only."""


def python_image(digest: str | None) -> str:
    """That image, by the digest that a stack gives it."""
    return f"{PYTHON_IMAGE}@{digest}" if digest else PYTHON_IMAGE


PYTHON_PACKAGES: Final = {
    "kubernetes": "37.0.2",
    "pulumi": "3.272.0",
    "pulumi-aws": "7.51.1",
    "pulumi-azure-native": "3.29.0",
    "pulumi-eks": "4.4.0",
    "pulumi-gcp": "10.2.0",
    "pulumi-kubernetes": "4.34.2",
    "pulumi-random": "4.21.4",
    "pydantic": "2.14.3",
    "pyyaml": "6.0.3",
    "rich": "15.0.0",
    "ruamel.yaml": "0.19.1",
    "tritonclient": "2.73.0",
}
"""What the Pulumi program, `fleet plan` and `fleet synth` import: the pins of requirements.txt."""
