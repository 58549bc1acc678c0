"""A pod's volumes as folders on this machine, in the shapes and with the permissions that a kubelet gives them."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Object = dict[str, Any]

TIMESTAMP = "..2026_11_21_08_00_00.1234567890"


@dataclass(frozen=True)
class Objects:
    """What pods refer to: ConfigMaps and Secrets by name, and the folder behind each claim."""

    config_maps: Mapping[str, Object]
    secrets: Mapping[str, Object]
    claims: Mapping[str, Path]


def make_volume(volume: Object, objects: Objects, folder: Path, group: int | None) -> Path | None:
    """The folder of one volume below `folder`; None for one in memory, which the container mounts itself.

    `group` is the pod's fsGroup: who may write in what is writable, and read what is not.
    """
    made = folder / volume["name"]
    if "configMap" in volume:
        source = volume["configMap"]
        config_map = objects.config_maps[source["name"]]
        files = _chosen({key: text.encode() for key, text in config_map["data"].items()}, source)
        write_atomically(made, files, mode=source.get("defaultMode", 0o644), group=group)
    elif "secret" in volume:
        source = volume["secret"]
        data = objects.secrets[source["secretName"]]["stringData"]
        files = _chosen({key: text.encode() for key, text in data.items()}, source)
        write_atomically(made, files, mode=source.get("defaultMode", 0o644), group=group)
    elif "emptyDir" in volume:
        if volume["emptyDir"].get("medium", "") != "":
            return None
        made.mkdir(parents=True)
        _give(made, 0o777, group)
    elif "persistentVolumeClaim" in volume:
        return objects.claims[volume["persistentVolumeClaim"]["claimName"]]
    else:
        raise NotImplementedError(f"volume {volume}")
    return made


def write_atomically(folder: Path, files: Mapping[str, bytes], *, mode: int = 0o644, group: int | None = None) -> None:
    """As AtomicWriter (kubernetes pkg/volume/util/atomic_writer.go): files below a hidden folder named by the time,
    `..data` linked to that, and each file or folder at the top linked to its like below `..data`."""
    _write(folder, TIMESTAMP, files, mode, group)
    (folder / "..data").symlink_to(TIMESTAMP)
    for name in {name.split("/")[0] for name in files}:
        (folder / name).symlink_to(f"..data/{name}")


def rewrite_atomically(
    folder: Path, files: Mapping[str, bytes], *, mode: int = 0o644, group: int | None = None
) -> None:
    """The same for an object that has changed: `..data` leads to the new folder in one step, and the old one goes."""
    before = (folder / "..data").resolve()
    after = f"{before.name}1"
    _write(folder, after, files, mode, group)
    (folder / "..data_tmp").symlink_to(after)
    (folder / "..data_tmp").rename(folder / "..data")
    shutil.rmtree(before)


def _write(folder: Path, name: str, files: Mapping[str, bytes], mode: int, group: int | None) -> None:
    hidden = folder / name
    for name, content in files.items():
        path = hidden / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        _give(path, mode if group is None else mode | 0o440, group)
    for parent, _, _ in os.walk(folder):
        _give(Path(parent), 0o755, group)


def make_shared(folder: Path, user: int) -> Path:
    """A file system that pods of that user share, empty, as an EFS access point makes its root."""
    folder.mkdir(parents=True, mode=0o750)
    os.chown(folder, user, user)
    return folder


def _chosen(data: Mapping[str, bytes], source: Object) -> dict[str, bytes]:
    items = source.get("items")
    return {item["path"]: data[item["key"]] for item in items} if items else dict(data)


def _give(path: Path, mode: int, group: int | None) -> None:
    if group is not None:
        os.chown(path, 0, group)
        mode |= 0o2000 if path.is_dir() else 0  # what is made in it belongs to the group, too
    path.chmod(mode)
