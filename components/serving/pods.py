"""What pods that fetch, build and serve have in common: file system, security, environment, resources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pulumi_kubernetes.core.v1 import (
    CapabilitiesArgs,
    ConfigMapVolumeSourceArgs,
    ContainerArgs,
    EmptyDirVolumeSourceArgs,
    EnvVarArgs,
    HostPathVolumeSourceArgs,
    KeyToPathArgs,
    PersistentVolumeClaimVolumeSourceArgs,
    PodSecurityContextArgs,
    ResourceRequirementsArgs,
    SeccompProfileArgs,
    SecretVolumeSourceArgs,
    SecurityContextArgs,
    TolerationArgs,
    VolumeArgs,
    VolumeMountArgs,
)

from components.clouds.base import POD_USER
from components.serving.config_maps import Files
from planner.fleet import Fabric, PoolPlan, ServingPlan

ROOT = "/opt/tritonfleet"
MODELS = f"{ROOT}/models"
SHARED = "/shared"
STORE = f"{SHARED}/store"
CHECKPOINTS = f"{SHARED}/checkpoints"
WEIGHTS = "/weights"
RUN = "/run/tritonfleet"


# Part of a node's disk that its pods may fill; images, logs and the kubelet's reserve have the rest.
_DISK_SHARE = 0.5

ANNOTATIONS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
"""Of every pod. Moving one rank restarts its whole group, and a build or a download its work: no autoscaler may empty a
node for the sake of a better use of others."""

_ENVIRONMENT = {
    "HOME": "/cache",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": ROOT,
    "PYTHONUNBUFFERED": "1",
    "TMPDIR": "/tmp",
    # The image's user database does not know the pods' number; libraries that ask for a name take this one.
    "USER": "triton",
    "XDG_CACHE_HOME": "/cache",
}


@dataclass(frozen=True, kw_only=True)
class Mounted:
    """A volume and where a container sees it."""

    volume: VolumeArgs
    mounts: tuple[VolumeMountArgs, ...]


def runtime_code(files: Files) -> Mounted:
    """The package `runtime`, where PYTHONPATH finds it."""
    return package("runtime", files)


def package(name: str, files: Files) -> Mounted:
    """A package of ours, there too."""
    return _config_map(name, files, (_at(f"{ROOT}/{name}", name),))


def model_repository(files: Files) -> Mounted:
    """The Triton model repository, each model mounted by itself.

    Whole, the volume would show Kubernetes' own `..data` beside the models; Triton takes every folder for a model, and
    ends when one of them is none ("Poll failed for model directory '..data'", seen with tritonserver 2.51).
    """
    mounts = (_at(f"{MODELS}/{folder}", "models", sub_path=folder) for folder in files.folders)
    return _config_map("models", files, tuple(mounts))


def single_file(volume: str, files: Files) -> Mounted:
    """The one file of `files`, in the root folder."""
    (path,) = files.paths.values()
    return _config_map(volume, files, (_at(f"{ROOT}/{path}", volume, sub_path=path),))


def claim(volume: str, name: str, path: str, *, read_only: bool) -> Mounted:
    """A persistent volume claim, whole."""
    source = PersistentVolumeClaimVolumeSourceArgs(claim_name=name, read_only=read_only)
    mount = VolumeMountArgs(name=volume, mount_path=path, read_only=read_only)
    return Mounted(volume=VolumeArgs(name=volume, persistent_volume_claim=source), mounts=(mount,))


def secret(volume: str, name: str, folder: str) -> Mounted:
    """A Secret's keys as files; the pod's group may read them."""
    source = SecretVolumeSourceArgs(secret_name=name, default_mode=0o440)
    return Mounted(volume=VolumeArgs(name=volume, secret=source), mounts=(_at(folder, volume),))


def host_folders(fabric: Fabric) -> list[Mounted]:
    """Folders of the node that the network's libraries lie in, mounted where the ranks look for them; those that the
    sidecar alone looks into are only volumes."""
    ranks = {folder.path: folder.mount for folder in fabric.host_paths}
    return [
        Mounted(
            volume=VolumeArgs(name=volume, host_path=HostPathVolumeSourceArgs(path=path)),
            mounts=(VolumeMountArgs(name=volume, mount_path=ranks[path]),) if path in ranks else (),
        )
        for path, volume in _host_volumes(fabric).items()
    ]


def sidecars(fabric: Fabric) -> list[ContainerArgs]:
    """The network's own container: an init container that goes on, so that it starts before the ranks and ends after
    them."""
    sidecar, volumes = fabric.sidecar, _host_volumes(fabric)
    if sidecar is None:
        return []
    return [
        ContainerArgs(
            name=sidecar.name,
            image=sidecar.image,
            image_pull_policy="Always",
            command=list(sidecar.command),
            restart_policy="Always",
            env=[EnvVarArgs(name=name, value=value) for name, value in sorted(sidecar.environment.items())],
            # Capabilities are of use to root alone (the kernel's capabilities(7)): nobody else keeps them through exec.
            security_context=SecurityContextArgs(
                run_as_user=0,
                run_as_non_root=False,
                allow_privilege_escalation=False,
                capabilities=CapabilitiesArgs(add=list(sidecar.capabilities)),
            ),
            volume_mounts=[
                VolumeMountArgs(name=volumes[folder.path], mount_path=folder.mount) for folder in sidecar.host_paths
            ],
        )
    ]


def _host_volumes(fabric: Fabric) -> dict[str, str]:
    """Volumes by the node's folder."""
    folders = (*fabric.host_paths, *(fabric.sidecar.host_paths if fabric.sidecar else ()))
    return {path: f"host-{index}" for index, path in enumerate(dict.fromkeys(folder.path for folder in folders))}


def scratch(serving: ServingPlan) -> list[Mounted]:
    """Where a pod may write besides the store; gone with the pod.

    On nodes whose NVMe disks hold the kubelet's folder, /cache lies there.
    """
    memory = EmptyDirVolumeSourceArgs(medium="Memory", size_limit=mebibytes(serving.shm_mib))
    return [*scratch_folders(disk_mib(serving)), _empty("shm", "/dev/shm", memory)]


def scratch_folders(limit_mib: int) -> list[Mounted]:
    """That part of it which lies on disk: up to `limit_mib` in each folder, and the pod's limit counts them all."""
    folders = {"run": RUN, "tmp": "/tmp", "cache": "/cache"}
    limit = EmptyDirVolumeSourceArgs(size_limit=mebibytes(limit_mib))
    return [_empty(name, path, limit) for name, path in folders.items()]


def environment(*more: Mapping[str, str]) -> list[EnvVarArgs]:
    """The variables of every container, sorted, and `more` of them."""
    merged: dict[str, str] = dict(_ENVIRONMENT)
    for variables in more:
        merged |= variables
    return [EnvVarArgs(name=name, value=value) for name, value in sorted(merged.items())]


def resources(serving: ServingPlan, *, devices: Mapping[str, str] | None = None) -> ResourceRequirementsArgs:
    """What one pod asks for; `devices` are more than its GPUs.

    No limit on CPU: one throttled thread of NCCL stalls every rank of its group, and requests divide a shared node
    already. Memory has one equal to its request: shared memory counts into it, and a pod that takes more than its share
    should end, not its neighbour.
    """
    gpus = {serving.pool.gpu_resource: str(serving.gpus_per_pod)} if serving.pool.gpu_resource else {}
    exact = {
        **gpus,
        "memory": mebibytes(serving.memory_mib),
        "ephemeral-storage": mebibytes(disk_mib(serving)),
        **(devices or {}),
    }
    return ResourceRequirementsArgs(requests={"cpu": cores(serving.cpu_millis)} | exact, limits=exact)


def mebibytes(count: int) -> str:
    """A quantity as Kubernetes writes it back: said in another unit, it would differ at every preview."""
    return f"{count}Mi" if count % 1024 else f"{count // 1024}Gi"


def cores(millis: int) -> str:
    """The same of thousandths of a core."""
    whole, rest = divmod(millis, 1000)
    return f"{millis}m" if rest else str(whole)


def disk_mib(serving: ServingPlan) -> int:
    """A pod's part of its node's disk, as large as its part of the node's GPUs."""
    pool = serving.pool
    return int(pool.disk_gib * 1024 * _DISK_SHARE * serving.gpus_per_pod / pool.units_per_node)


def container_security() -> SecurityContextArgs:
    """The `restricted` Pod Security Standard, and a root file system that nobody writes."""
    return SecurityContextArgs(
        allow_privilege_escalation=False,
        capabilities=CapabilitiesArgs(drop=["ALL"]),
        privileged=False,
        read_only_root_filesystem=True,
        run_as_non_root=True,
    )


def pod_security() -> PodSecurityContextArgs:
    """The same for the pod. Volumes are handed to the group once, not at every start: they hold terabytes."""
    return PodSecurityContextArgs(
        run_as_non_root=True,
        run_as_user=POD_USER,
        run_as_group=POD_USER,
        fs_group=POD_USER,
        fs_group_change_policy="OnRootMismatch",
        seccomp_profile=SeccompProfileArgs(type="RuntimeDefault"),
    )


def tolerations(pool: PoolPlan) -> list[TolerationArgs]:
    """Of the taints that the pool's nodes have."""
    return [
        TolerationArgs(key=taint.key, operator="Equal", value=taint.value, effect=taint.effect)
        for taint in pool.tolerations
    ]


def volumes(parts: Sequence[Mounted]) -> list[VolumeArgs]:
    return [part.volume for part in parts]


def mounts(parts: Sequence[Mounted]) -> list[VolumeMountArgs]:
    return [mount for part in parts for mount in part.mounts]


def _config_map(volume: str, files: Files, mounts: tuple[VolumeMountArgs, ...]) -> Mounted:
    items = [KeyToPathArgs(key=key, path=path) for key, path in files.paths.items()]
    source = ConfigMapVolumeSourceArgs(name=files.name, items=items)
    return Mounted(volume=VolumeArgs(name=volume, config_map=source), mounts=mounts)


def _at(path: str, volume: str, *, sub_path: str | None = None) -> VolumeMountArgs:
    return VolumeMountArgs(name=volume, mount_path=path, sub_path=sub_path, read_only=True)


def _empty(volume: str, path: str, source: EmptyDirVolumeSourceArgs) -> Mounted:
    mount = VolumeMountArgs(name=volume, mount_path=path)
    return Mounted(volume=VolumeArgs(name=volume, empty_dir=source), mounts=(mount,))
