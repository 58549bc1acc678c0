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
}
"""Charts by the name of their release."""

CLUSTER_AUTOSCALER: Final = {"1.33": "v1.33.6", "1.34": "v1.34.5", "1.35": "v1.35.2", "1.36": "v1.36.1"}
"""Kubernetes version -> image tag: the autoscaler simulates the scheduler of one Kubernetes version."""

PYTHON_IMAGE: Final = "public.ecr.aws/docker/library/python:3.13.15-slim-trixie"
"""What small controllers of our own run in; they use the standard library only."""

PYTHON_PACKAGES: Final = {
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
