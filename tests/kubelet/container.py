"""Inside a container's fresh namespaces: makes its file system, becomes its user, and then its command.

Run by pod.py as `python container.py JSON`, as root, in a mount namespace that nobody else sees; it says so on the file
descriptor `started` when the command's turn has come. Uses nothing but the standard library.
"""

import ctypes
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def main(spec: dict[str, Any]) -> None:
    root = Path(spec["scratch"], "root")
    _make_root(root, Path(spec["scratch"]))
    _make_devices(root)
    for mounted in sorted(spec["mounts"], key=lambda mounted: mounted["target"].count("/")):
        _mount_volume(root, mounted)
    # Last, for a checkout below /tmp has its Python where the pod has a volume of its own.
    _mount_image(root, spec["image"])
    for path, source in spec["files"].items():
        _bind(Path(source), root / path.lstrip("/"), read_only=False)
    if spec["read_only_root"]:
        _mount("-o", "remount,ro", str(root))
    socket.sethostname(spec["hostname"])
    os.chroot(root)
    os.chdir(spec["directory"])
    _become(spec)
    os.write(spec["started"], b"started")
    os.close(spec["started"])
    os.execvpe(spec["command"][0], spec["command"], spec["environment"])


def _make_root(root: Path, scratch: Path) -> None:
    """This machine's file system with a layer above it that takes the mount points and goes with the container."""
    _mount("-t", "tmpfs", "none", str(scratch))
    for name in ("root", "upper", "work"):
        (scratch / name).mkdir()
    layers = f"lowerdir=/,upperdir={scratch}/upper,workdir={scratch}/work"
    _mount("-t", "overlay", "-o", layers, "none", str(root))
    for name in ("proc", "sys"):
        (root / name).mkdir(exist_ok=True)
    _mount("-t", "proc", "none", str(root / "proc"))
    _mount("--rbind", "/sys", str(root / "sys"))


def _mount_image(root: Path, image: list[str]) -> None:
    for path in image:
        # What the image brings may lie on another file system here, or in a folder that only root enters.
        target = root / path.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        _mount("--bind", path, str(target))
        _mount("-o", "remount,bind,ro", str(target))
        for parent in [*target.parents][: len(Path(path).parents) - 1]:
            parent.chmod(parent.stat().st_mode | 0o011)


def _make_devices(root: Path) -> None:
    devices = root / "dev"
    devices.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", "mode=755", "none", str(devices))
    for name in DEVICES:
        (devices / name).touch()
        _mount("--bind", f"/dev/{name}", str(devices / name))
    for name, target in {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}.items():
        (devices / name).symlink_to(f"/proc/self/{target}")
    (devices / "shm").mkdir()
    _mount("-t", "tmpfs", "-o", "size=64m,mode=1777", "none", str(devices / "shm"))


def _mount_volume(root: Path, mounted: dict[str, Any]) -> None:
    target = root / mounted["target"].lstrip("/")
    if mounted["source"] is None:
        target.mkdir(parents=True, exist_ok=True)
        _mount("-t", "tmpfs", "-o", mounted["memory"], "none", str(target))
    else:
        # A subPath is resolved when the container starts, through the links of a ConfigMap's volume.
        _bind(Path(mounted["source"]).resolve(), target, read_only=mounted["read_only"])


def _bind(source: Path, target: Path, *, read_only: bool) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount("--bind", str(source), str(target))
    if read_only:
        _mount("-o", "remount,bind,ro", str(target))


def _become(spec: dict[str, Any]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if spec["drop_capabilities"]:
        last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
        for capability in range(last + 1):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups(spec["groups"])
    os.setgid(spec["group"])
    os.setuid(spec["user"])
    if spec["no_new_privileges"]:
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.umask(0o022)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
