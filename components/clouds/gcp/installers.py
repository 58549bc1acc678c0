"""What GPUDirect over TCP needs on a node besides interfaces: libraries, and devices for the daemon beside the ranks.

RoCE needs neither: its plugin is part of the image. The programs are Google's own, and so are the rights they take:
they change the host (container-engine-accelerators, gpudirect-tcpx, gpudirect-tcpxo, nri_device_injector).
"""

from collections.abc import Sequence

import pulumi
from pulumi_kubernetes.apps.v1 import DaemonSet, DaemonSetSpecArgs
from pulumi_kubernetes.core.v1 import (
    AffinityArgs,
    ContainerArgs,
    HostPathVolumeSourceArgs,
    NodeAffinityArgs,
    NodeSelectorArgs,
    NodeSelectorRequirementArgs,
    NodeSelectorTermArgs,
    PodSpecArgs,
    PodTemplateSpecArgs,
    ResourceRequirementsArgs,
    SecurityContextArgs,
    TolerationArgs,
    VolumeArgs,
    VolumeMountArgs,
)
from pulumi_kubernetes.meta.v1 import LabelSelectorArgs, ObjectMetaArgs

from components.labels import LABELS
from planner.pool_labels import POOL_LABEL
from planner.versions import DEVICE_INJECTOR, GPUDIRECT, PAUSE_IMAGE, PYTHON_IMAGE

_NAME_LABEL = "app.kubernetes.io/name"

# The daemon's connections pass the host's firewall, a kernel module lets it map GPU memory, and the ranks, which are
# not root, must be able to open the NICs' apertures.
_PREPARE_TCPXO = """\
set -e
/sbin/iptables -I INPUT -p tcp -m tcp -j ACCEPT
modprobe import-helper
mkdir -p /dev/aperture_devices
lspci -nn -D | grep '1ae0:0084' | while IFS= read -r line; do
  address=$(echo "$line" | awk '{print $1}')
  target="/dev/aperture_devices/$address"
  mkdir -p "$target"
  umount -R "$target" 2>/dev/null || true
  mount --bind "$(readlink -f "/sys/bus/pci/devices/$address")" "$target"
done
chmod -R a+r /dev/aperture_devices/
chmod a+rw /dev/aperture_devices/*/resource*
"""
_INSTALL = """\
set -e
chmod 755 /scripts/container_entry.sh
/scripts/container_entry.sh install --install-nccl
mkdir -p /usr/local/nvidia/lib64
cp -r /var/lib/{kind}/lib64/. /usr/local/nvidia/lib64
"""


def install_gpudirect(
    name: str,
    kind: str,
    pools: Sequence[str],
    *,
    python: str = PYTHON_IMAGE,
    parent: pulumi.Resource,
    depends_on: Sequence[pulumi.Resource],
) -> list[pulumi.Resource]:
    """Two DaemonSets on the nodes of the pools of this kind (`tcpx`, `tcpxo`): the libraries, and the injector that
    gives the daemon its devices."""
    image = GPUDIRECT[kind].installer
    libraries = {"var-lib": ("/var/lib", "/var/lib"), "libraries": ("/home/kubernetes/bin", "/usr/local")}
    install = _container("install", image, ["/bin/sh", "-c", _INSTALL.format(kind=kind)], libraries)
    prepare = _container("prepare", python, ["nsenter", "-at", "1", "--", "sh", "-c", _PREPARE_TCPXO], {})
    injector = {"dev": ("/dev", "/dev"), "nri": ("/var/run/nri", "/var/run/nri")}
    opts = pulumi.ResourceOptions(parent=parent, depends_on=depends_on)
    return [
        DaemonSet(
            f"{name}-libraries",
            metadata=ObjectMetaArgs(
                name=f"gpudirect-{kind}", namespace="kube-system", labels=LABELS, annotations=_NO_WAIT
            ),
            spec=_spec(
                f"gpudirect-{kind}",
                pools,
                libraries,
                init=[prepare, install] if kind == "tcpxo" else [install],
                main=ContainerArgs(name="pause", image=PAUSE_IMAGE),
            ),
            opts=opts,
        ),
        DaemonSet(
            f"{name}-injector",
            metadata=ObjectMetaArgs(
                name=f"device-injector-{kind}", namespace="kube-system", labels=LABELS, annotations=_NO_WAIT
            ),
            spec=_spec(
                f"device-injector-{kind}",
                pools,
                injector,
                init=[],
                main=_container("device-injector", DEVICE_INJECTOR, None, injector),
            ),
            opts=opts,
        ),
    ]


# There may be no GPU node until somebody asks a model something.
_NO_WAIT = {"pulumi.com/skipAwait": "true"}


def _container(name: str, image: str, command: list[str] | None, folders: dict[str, tuple[str, str]]) -> ContainerArgs:
    return ContainerArgs(
        name=name,
        image=image,
        command=command,
        security_context=SecurityContextArgs(privileged=True),
        resources=ResourceRequirementsArgs(requests={"cpu": "150m"}),
        volume_mounts=[VolumeMountArgs(name=volume, mount_path=mount) for volume, (_, mount) in folders.items()],
    )


def _spec(
    name: str,
    pools: Sequence[str],
    folders: dict[str, tuple[str, str]],
    *,
    init: list[ContainerArgs],
    main: ContainerArgs,
) -> DaemonSetSpecArgs:
    return DaemonSetSpecArgs(
        selector=LabelSelectorArgs(match_labels={_NAME_LABEL: name}),
        template=PodTemplateSpecArgs(
            metadata=ObjectMetaArgs(labels=LABELS | {_NAME_LABEL: name}),
            spec=PodSpecArgs(
                priority_class_name="system-node-critical",
                automount_service_account_token=False,
                host_network=True,
                host_pid=True,
                affinity=_on_pools(pools),
                # From a node's first minute, whatever keeps others off it.
                tolerations=[TolerationArgs(operator="Exists")],
                init_containers=init or None,
                containers=[main],
                volumes=[
                    VolumeArgs(name=volume, host_path=HostPathVolumeSourceArgs(path=path))
                    for volume, (path, _) in folders.items()
                ],
            ),
        ),
    )


def _on_pools(pools: Sequence[str]) -> AffinityArgs:
    term = NodeSelectorTermArgs(
        match_expressions=[NodeSelectorRequirementArgs(key=POOL_LABEL, operator="In", values=sorted(pools))]
    )
    wanted = NodeSelectorArgs(node_selector_terms=[term])
    return AffinityArgs(node_affinity=NodeAffinityArgs(required_during_scheduling_ignored_during_execution=wanted))
