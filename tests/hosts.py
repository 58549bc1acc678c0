"""Two "hosts" for tests: network namespaces joined by a virtual cable, each with one address and its own loopback."""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import pytest

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


@dataclass
class Hosts:
    """Two namespaces joined by a cable. `cut` pulls it out, `mend` puts it back."""

    names: Sequence[str]
    addresses: Sequence[str] = ("10.213.77.1", "10.213.77.2")

    def prefix(self, host: int) -> list[str]:
        """Goes before a command that is to run there, under a hostname of its own."""
        name = self.names[host]
        return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh"]

    @contextmanager
    def inside(self, host: int) -> Generator[None]:
        """This thread is on that host meanwhile, with the processes, threads and sockets that it makes."""
        with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{self.names[host]}") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def cut(self) -> None:
        ip("-n", self.names[1], "link", "set", "eth0", "down")

    def mend(self) -> None:
        ip("-n", self.names[1], "link", "set", "eth0", "up")


@contextmanager
def two_hosts() -> Generator[Hosts]:
    """Skips the test, saying why, where they cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("network namespaces need root, iproute2 and util-linux")
    for left in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split("\n"):
        of = re.match(r"(tritonfleet-(\d+)-[ab])\b", left)
        if of and not psutil.pid_exists(int(of[2])):
            ip("netns", "del", of[1])  # of a test run that was killed
    names = [f"tritonfleet-{os.getpid()}-{side}" for side in "ab"]
    made = Hosts(names)
    try:
        try:
            for name in names:
                ip("netns", "add", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine allows no network namespaces: {error.stderr.decode().strip()}")
        ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, made.addresses, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", name, "link", "set", link, "up")
        yield made
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _enter(namespace: int) -> None:
    if LIBC.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
