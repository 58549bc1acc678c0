"""Lets containers of this node lock as much memory as they like, which RDMA takes.

Containers inherit their limits from containerd, whose service file leaves this one at the kernel's 8 MiB on nodes that
take no service file of ours. The capability IPC_LOCK would not help: a process that is not root never has it. Raised on
the running containerd and on its shims, of which each pod has one, the limit holds for every container that starts from
then on. Standard library only; shipped as a ConfigMap.
"""

import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# The kernel keeps the first 15 letters of a name: the second is containerd-shim-runc-v2.
NAMES = ("containerd", "containerd-shim")
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
# containerd seldom starts again, and then containers keep running.
PERIOD_SECONDS = 5


def main() -> None:
    # The first process of a container ignores SIGTERM unless it says otherwise.
    signal.signal(signal.SIGTERM, stop)
    while True:
        for pid in processes():
            raise_limit(pid, UNLIMITED)
        time.sleep(PERIOD_SECONDS)


def processes() -> Iterator[int]:
    """Every containerd of the node, and every shim."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "comm").read_text().strip() in NAMES:
                yield int(entry.name)
        except OSError:
            continue  # it has ended


def raise_limit(pid: int, limit: tuple[int, int]) -> None:
    """Soft and hard limit of a process, in bytes, unless they are these already."""
    try:
        before = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)
        if before != limit:
            resource.prlimit(pid, resource.RLIMIT_MEMLOCK, limit)
            print(f"memlock: process {pid}: {before} -> {limit}", flush=True)
    except ProcessLookupError:
        pass  # it has ended


def stop(*_: object) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
