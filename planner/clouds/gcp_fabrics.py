"""Networks between the GPUs of A3 and A4 machines on GKE, and what their drivers want of a pod."""

import json
from collections.abc import Sequence

from planner.fleet import Fabric, HostPath, Sidecar
from planner.versions import GPUDIRECT

NETWORKS = {
    "tcpx": tuple(f"tcpx-{index}" for index in range(1, 5)),
    "tcpxo": tuple(f"tcpxo-{index}" for index in range(1, 9)),
    "roce": ("gvnic-1", *(f"rdma-{index}" for index in range(8))),
}
"""Kubernetes' names of the networks of a node's interfaces, from its eth1 on (GKE documentation, "Maximize GPU network
bandwidth"; Cluster Toolkit, gke-a3-highgpu, gke-a3-megagpu and gke-a3-ultragpu)."""

# MPI and NCCL's own start go over the pod's network: of the others each carries one GPU's traffic only.
_COMMON = {
    "NCCL_SOCKET_IFNAME": "eth0",
    "NCCL_CROSS_NIC": "0",
    "NCCL_NET_GDR_LEVEL": "PIX",
    "NCCL_DEBUG": "INFO",
    "NCCL_DEBUG_SUBSYS": "INIT,NET",
    "OMPI_MCA_pml": "^cm,ucx",
    "OMPI_MCA_btl": "tcp,self",
    "OMPI_MCA_btl_tcp_if_include": "eth0",
}
_LIBRARIES = HostPath(path="/home/kubernetes/bin/nvidia/lib64", mount="/usr/local/nvidia/lib64")
_SYSTEM = (HostPath(path="/sys", mount="/hostsysfs"), HostPath(path="/proc/sys", mount="/hostprocsysfs"))
_GPUS = tuple(f"/dev/nvidia{index}" for index in range(8))


def _interfaces(networks: Sequence[str], first: int) -> dict[str, str]:
    """Annotations that give a pod these networks as eth<first> and so on, beside its own."""
    interfaces = [{"interfaceName": "eth0", "network": "default"}]
    interfaces += [{"interfaceName": f"eth{first + n}", "network": name} for n, name in enumerate(networks)]
    return {
        "networking.gke.io/default-interface": "eth0",
        "networking.gke.io/interfaces": json.dumps(interfaces, separators=(",", ":")),
    }


def _devices(container: str, *more: str) -> dict[str, str]:
    """What GKE's device injector puts into a container that asks for no GPU."""
    paths = (*_GPUS, "/dev/nvidiactl", "/dev/nvidia-uvm", *more)
    return {f"devices.gke.io/container.{container}": "".join(f"- path: {path}\n" for path in paths)}


ROCE = Fabric(
    kind="roce",
    # GKE gives a pod the interfaces that its annotations name, and the RDMA devices with them.
    resource=None,
    # container-engine-accelerators, gpudirect-rdma: set_nccl_env.sh, but for the tuner's file, of which A3 Ultra and A4
    # have one each: that is the image's to name.
    environment=_COMMON
    | {
        "NCCL_P2P_NET_CHUNKSIZE": "131072",
        "NCCL_NVLS_CHUNKSIZE": "524288",
        "NCCL_IB_ADAPTIVE_ROUTING": "1",
        "NCCL_IB_QPS_PER_CONNECTION": "4",
        "NCCL_IB_TC": "52",
        "NCCL_IB_FIFO_TC": "84",
    },
    # The second gVNIC, eth1, is the node's.
    annotations=_interfaces(NETWORKS["roce"][1:], first=2),
    image_needs="NCCL's gIB plugin (Google's package nccl-gib) in its library path, and NVIDIA's stock image has none; "
    "without it NCCL takes what it finds. Give images.triton one that does; the ranks' logs then say NET/gIB",
    # Google's own tests run as root, which may lock what it likes; what others may is documented nowhere.
    raise_memlock=True,
    # An RDMA network has the profile of a zone, and pods name networks by kind.
    one_zone=True,
)

TCPX = Fabric(
    kind="tcpx",
    resource=None,
    # container-engine-accelerators, gpudirect-tcpx: nccl-config.yaml.
    environment=_COMMON
    | {
        "NCCL_GPUDIRECTTCPX_SOCKET_IFNAME": "eth1,eth2,eth3,eth4",
        "NCCL_GPUDIRECTTCPX_CTRL_DEV": "eth0",
        "NCCL_GPUDIRECTTCPX_UNIX_CLIENT_PREFIX": "/run/tcpx",
        "NCCL_GPUDIRECTTCPX_TX_BINDINGS": "eth1:8-21,112-125;eth2:8-21,112-125;eth3:60-73,164-177;eth4:60-73,164-177",
        "NCCL_GPUDIRECTTCPX_RX_BINDINGS": "eth1:22-35,126-139;eth2:22-35,126-139;eth3:74-87,178-191;eth4:74-87,178-191",
        "NCCL_GPUDIRECTTCPX_PROGRAM_FLOW_STEERING_WAIT_MICROS": "500000",
        "NCCL_ALGO": "Ring,Tree",
        "NCCL_PROTO": "Simple",
        "NCCL_P2P_PXN_LEVEL": "0",
        "NCCL_DYNAMIC_CHUNK_SIZE": "524288",
        "NCCL_P2P_NET_CHUNKSIZE": "524288",
        "NCCL_P2P_PCI_CHUNKSIZE": "524288",
        "NCCL_P2P_NVL_CHUNKSIZE": "1048576",
        "NCCL_BUFFSIZE": "4194304",
        "NCCL_NSOCKS_PERTHREAD": "4",
        "NCCL_SOCKET_NTHREADS": "1",
    },
    annotations=_interfaces(NETWORKS["tcpx"], first=1) | _devices("tcpx-daemon"),
    image_needs="the NCCL that its plugin was built with, which the node's libraries bring; an image's own newer NCCL "
    "takes TCP. The ranks' logs say which",
    host_paths=(_LIBRARIES, HostPath(path="/run/tcpx", mount="/run/tcpx")),
    sidecar=Sidecar(
        name="tcpx-daemon",
        image=GPUDIRECT["tcpx"].daemon,
        command=(
            "/tcpgpudmarxd/build/app/tcpgpudmarxd",
            "--gpu_nic_preset",
            "a3vm",
            "--gpu_shmem_type",
            "fd",
            "--uds_path",
            "/run/tcpx",
            "--setup_param",
            '"--verbose 128 2 0 "',
        ),
        capabilities=("NET_ADMIN",),
        environment={"LD_LIBRARY_PATH": _LIBRARIES.mount},
        host_paths=(_LIBRARIES, HostPath(path="/run/tcpx", mount="/run/tcpx"), *_SYSTEM),
    ),
    one_zone=True,
    exception="GPUDirect-TCPX needs folders of the node and, in a container beside the ranks, root with NET_ADMIN",
)

TCPXO = Fabric(
    kind="tcpxo",
    resource=None,
    # container-engine-accelerators, gpudirect-tcpxo: nccl-env-profile.sh of plugin v1.0.15.
    environment=_COMMON
    | {
        "NCCL_FASTRAK_CTRL_DEV": "eth0",
        "NCCL_FASTRAK_IFNAME": "eth1,eth2,eth3,eth4,eth5,eth6,eth7,eth8",
        "NCCL_FASTRAK_LLCM_DEVICE_DIRECTORY": "/dev/aperture_devices",
        "NCCL_FASTRAK_USE_LLCM": "1",
        "NCCL_FASTRAK_USE_SNAP": "1",
        "NCCL_FASTRAK_NUM_FLOWS": "2",
        "NCCL_FASTRAK_ENABLE_CONTROL_CHANNEL": "0",
        "NCCL_FASTRAK_ENABLE_HOTPATH_LOGGING": "0",
        "NCCL_FASTRAK_PLUGIN_ACCEPT_TIMEOUT_MS": "600000",
        "NCCL_PROTO": "Simple,LL128",
        "NCCL_MIN_NCHANNELS": "4",
        "NCCL_TUNER_PLUGIN": "libnccl-tuner.so",
        "NCCL_TUNER_CONFIG_PATH": f"{_LIBRARIES.mount}/a3plus_tuner_config.textproto",
        "NCCL_SHIMNET_GUEST_CONFIG_CHECKER_CONFIG_FILE": f"{_LIBRARIES.mount}/a3plus_guest_config.textproto",
        "NCCL_NVLSTREE_MAX_CHUNKSIZE": "131072",
        "NCCL_P2P_NET_CHUNKSIZE": "524288",
        "NCCL_P2P_PCI_CHUNKSIZE": "524288",
        "NCCL_P2P_NVL_CHUNKSIZE": "1048576",
        "NCCL_BUFFSIZE": "8388608",
        "NCCL_NVLS_ENABLE": "1",
    },
    annotations=_interfaces(NETWORKS["tcpxo"], first=1) | _devices("tcpxo-daemon", "/dev/dmabuf_import_helper"),
    image_needs="the NCCL that its plugin was built with (2.28), which the node's libraries bring; an image's other "
    "NCCL takes TCP. The ranks' logs say which",
    host_paths=(_LIBRARIES, HostPath(path="/dev/aperture_devices", mount="/dev/aperture_devices")),
    sidecar=Sidecar(
        name="tcpxo-daemon",
        image=GPUDIRECT["tcpxo"].daemon,
        command=(
            "/bin/sh",
            "-c",
            "chmod 755 /fts/entrypoint_rxdm_container.sh && exec /fts/entrypoint_rxdm_container.sh --num_hops=2",
        ),
        capabilities=("NET_ADMIN", "NET_BIND_SERVICE"),
        environment={"LD_LIBRARY_PATH": _LIBRARIES.mount},
        host_paths=(_LIBRARIES, *_SYSTEM),
    ),
    one_zone=True,
    exception="GPUDirect-TCPXO needs folders of the node and, in a container beside the ranks, root with NET_ADMIN",
)
