"""The CSI driver of Azure Managed Lustre, which AKS does not bring: what of it mounts file systems, and no more.

Upstream has no Helm chart ("currently unsupported", azurelustre-csi-driver, charts/README.md), only manifests. They
come with a controller that makes file systems and may read every secret; static volumes need neither, so the node
plugin is all there is here, and it may do nothing in the cluster.
"""

from typing import Any

import pulumi
from pulumi_kubernetes.apps.v1 import DaemonSet, DaemonSetSpecArgs
from pulumi_kubernetes.core.v1 import (
    ContainerArgs,
    ContainerPortArgs,
    EnvVarArgs,
    EnvVarSourceArgs,
    ExecActionArgs,
    HostPathVolumeSourceArgs,
    HTTPGetActionArgs,
    LifecycleArgs,
    LifecycleHandlerArgs,
    ObjectFieldSelectorArgs,
    PodSpecArgs,
    PodTemplateSpecArgs,
    ProbeArgs,
    ResourceRequirementsArgs,
    SecurityContextArgs,
    TolerationArgs,
    VolumeArgs,
    VolumeMountArgs,
)
from pulumi_kubernetes.meta.v1 import LabelSelectorArgs, ObjectMetaArgs
from pulumi_kubernetes.storage.v1 import CSIDriver, CSIDriverSpecArgs

from components.labels import LABELS
from planner.versions import AZURE_LUSTRE, AzureLustreClient

_DRIVER = "azurelustre.csi.azure.com"
_NAME = "csi-azurelustre-node"
_HEALTH_PORT = 29763
_PLUGINS = "/var/lib/kubelet/plugins"
_SOCKET = "unix:///csi/csi.sock"


class LustreDriver(pulumi.ComponentResource):
    """Registers the driver, and runs it on the nodes of each Ubuntu that it knows; volumes wait for `resources`."""

    resources: list[pulumi.Resource]

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AzureLustreDriver", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        driver = CSIDriver(
            name,
            metadata=ObjectMetaArgs(name=_DRIVER, labels=LABELS),
            # The kubelet gives a volume that is mounted for writing to the pod's group.
            spec=CSIDriverSpecArgs(fs_group_policy="File", attach_required=False, pod_info_on_mount=True),
            opts=child,
        )
        daemons = [_daemons(name, client, child) for client in AZURE_LUSTRE.clients]
        self.resources = [driver, *daemons]
        self.register_outputs({})


def _daemons(name: str, client: AzureLustreClient, opts: pulumi.ResourceOptions) -> DaemonSet:
    selector = {"app.kubernetes.io/name": _NAME, "app.kubernetes.io/version": client.ubuntu}
    return DaemonSet(
        f"{name}-{client.ubuntu}",
        metadata=ObjectMetaArgs(
            name=f"{_NAME}-{client.ubuntu}",
            namespace="kube-system",
            labels=LABELS | selector,
            # The nodes may have another Ubuntu, or there may be none until somebody asks a model something.
            annotations={"pulumi.com/skipAwait": "true"},
        ),
        spec=DaemonSetSpecArgs(
            selector=LabelSelectorArgs(match_labels=selector),
            template=PodTemplateSpecArgs(metadata=ObjectMetaArgs(labels=LABELS | selector), spec=_pod(client)),
        ),
        opts=opts,
    )


def _pod(client: AzureLustreClient) -> PodSpecArgs:
    socket_folder = _mount("socket", "/csi")
    return PodSpecArgs(
        automount_service_account_token=False,
        # Lustre's servers call the node back.
        host_network=True,
        dns_policy="Default",
        node_selector={"kubernetes.io/os": "linux", "kubernetes.azure.com/os-sku-effective": client.os_sku},
        priority_class_name="system-node-critical",
        tolerations=[TolerationArgs(operator="Exists")],
        containers=[
            ContainerArgs(
                name="liveness-probe",
                image=AZURE_LUSTRE.liveness_probe,
                args=["--csi-address=/csi/csi.sock", "--probe-timeout=120s", f"--health-port={_HEALTH_PORT}"],
                volume_mounts=[socket_folder],
                resources=_resources("100m", "100Mi"),
            ),
            ContainerArgs(
                name="node-driver-registrar",
                image=AZURE_LUSTRE.registrar,
                args=[
                    "--csi-address=/csi/csi.sock",
                    f"--kubelet-registration-path={_PLUGINS}/{_DRIVER}/csi.sock",
                ],
                volume_mounts=[socket_folder, _mount("registration", "/registration")],
                resources=_resources("100m", "100Mi"),
            ),
            _plugin(client),
        ],
        volumes=[
            _folder("socket", f"{_PLUGINS}/{_DRIVER}", "DirectoryOrCreate"),
            _folder("registration", f"{_PLUGINS}_registry", "Directory"),
            _folder("kubelet", "/var/lib/kubelet", "Directory"),
            _folder("cloud-config", "/etc/kubernetes", "Directory"),
            _folder("devices", "/dev", "Directory"),
            _folder("os-release", "/etc/os-release", "File"),
        ],
    )


def _plugin(client: AzureLustreClient) -> ContainerArgs:
    """Installs the Lustre client that fits the node's kernel, loads its modules, and mounts."""
    ready = ExecActionArgs(command=["/app/readinessProbe.sh"])
    node = EnvVarSourceArgs(field_ref=ObjectFieldSelectorArgs(field_path="spec.nodeName"))
    return ContainerArgs(
        name="azurelustre",
        image=f"{AZURE_LUSTRE.image}-{client.ubuntu}",
        args=["-v=2", f"--endpoint={_SOCKET}", "--nodeid=$(KUBE_NODE_NAME)", "--remove-not-ready-taint=false"],
        env=[
            EnvVarArgs(name="KUBE_NODE_NAME", value_from=node),
            # For the probe.
            EnvVarArgs(name="CSI_ENDPOINT", value=_SOCKET),
            EnvVarArgs(name="AZURELUSTRE_CSI_INSTALL_LUSTRE_CLIENT", value="yes"),
            EnvVarArgs(name="LUSTRE_VERSION", value=client.lustre),
            EnvVarArgs(name="CLIENT_SHA_SUFFIX", value=client.build),
        ],
        ports=[ContainerPortArgs(name="healthz", container_port=_HEALTH_PORT)],
        # Ten minutes for the client to be downloaded and loaded.
        startup_probe=ProbeArgs(exec_=ready, timeout_seconds=5, period_seconds=5, failure_threshold=120),
        readiness_probe=ProbeArgs(exec_=ready, timeout_seconds=10, period_seconds=30, failure_threshold=5),
        liveness_probe=ProbeArgs(
            http_get=HTTPGetActionArgs(path="/healthz", port="healthz"),
            timeout_seconds=10,
            period_seconds=30,
            failure_threshold=5,
        ),
        # So that another version can load its own.
        lifecycle=LifecycleArgs(pre_stop=LifecycleHandlerArgs(exec_=ExecActionArgs(command=["lustre_rmmod"]))),
        # It loads modules into the node's kernel, and mounts for other pods.
        security_context=SecurityContextArgs(privileged=True),
        volume_mounts=[
            _mount("socket", "/csi"),
            _mount("kubelet", "/var/lib/kubelet", mount_propagation="Bidirectional"),
            # It does not start without knowing of Azure, though it asks it nothing.
            _mount("cloud-config", "/etc/kubernetes", read_only=True),
            _mount("devices", "/dev"),
            _mount("os-release", "/etc/host-os-release", read_only=True),
        ],
        resources=_resources("1", "200Mi"),
    )


def _resources(cpu: str, memory: str) -> ResourceRequirementsArgs:
    return ResourceRequirementsArgs(requests={"cpu": "10m", "memory": "20Mi"}, limits={"cpu": cpu, "memory": memory})


def _mount(name: str, path: str, **options: Any) -> VolumeMountArgs:
    return VolumeMountArgs(name=name, mount_path=path, **options)


def _folder(name: str, path: str, kind: str) -> VolumeArgs:
    return VolumeArgs(name=name, host_path=HostPathVolumeSourceArgs(path=path, type=kind))
