"""Install Python packages into a folder that pods share: whole or not at all, and once.

    python -m runtime.environment --requirements FILE --into DIR --name NAME

    DIR/NAME/<machine>/        packages for x86_64 and aarch64, from wheels alone, each with its hash in FILE
    DIR/NAME/sitecustomize.py  puts the machine's folder on Python's path: PYTHONPATH=DIR/NAME is all that a pod needs
    DIR/staging/, DIR/locks/   what is being installed, and by whom

The interpreter that installs is the one that will import: of the same version, with the same C library. What is there
under the name is taken for what FILE asks for, so the name is to be made of FILE's content.

Exit status: 0 installed or already there, 1 refused, 2 wrong usage.
"""

import argparse
import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from runtime.errors import Refusal
from runtime.files import disk_full, file_lock, is_disk_full, make_writable, remove_tree

MACHINES = ("x86_64", "aarch64")
# The oldest C library that wheels of today are built for (manylinux2014).
_OLDEST_GLIBC = 17

# Before any other of the path's folders, but after this one, and so after a program's own files.
_SITE = """\
import os
import sys

_here = os.path.dirname(__file__)
sys.path.insert(sys.path.index(_here) + 1, os.path.join(_here, os.uname().machine))
"""

_UNREACHABLE = re.compile(r"Retrying \(|NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|SSLError")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime.environment", description="Install Python packages.")
    parser.add_argument("--requirements", type=Path, required=True, help="exact versions with hashes")
    parser.add_argument("--into", type=Path, required=True, help="folder of environments")
    parser.add_argument("--name", required=True, help="of the folder below it; made of the requirements' content")
    parser.add_argument(
        "--machine", action="append", choices=MACHINES, help="architecture to install for (default: all of them)"
    )
    args = parser.parse_args(arguments)
    # Process 1 of a container ignores what it does not handle; pip ends with this process.
    signal.signal(signal.SIGTERM, _leave)
    try:
        print(install(args.requirements, args.into, args.name, args.machine or MACHINES))
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


def install(requirements: Path, into: Path, name: str, machines: Sequence[str] = MACHINES) -> Path:
    """The environment's folder below `into`, installed unless it is there already; raises Refusal."""
    folder, staging, locks = into / name, into / "staging", into / "locks"
    if folder.is_dir():
        return folder
    try:
        make_writable(into, staging, locks)
        with file_lock(locks / name, exclusive=True, on_wait=lambda: _say("another process installs it")) as alone:
            if alone:
                for leftover in staging.glob(f"{name}.*"):
                    remove_tree(leftover, staging)
            if not folder.is_dir():
                _install(requirements, folder, staging, machines)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(into, "nothing was installed") from None
        raise Refusal(
            f"{into}: {error.strerror or error}",
            "nothing was installed",
            "give a folder that this user may write",
        ) from None
    return folder


def _install(requirements: Path, folder: Path, staging: Path, machines: Sequence[str]) -> None:
    work = staging / f"{folder.name}.{os.urandom(4).hex()}"
    try:
        for machine in machines:
            _say(f"installing for {machine}")
            _pip(requirements, work / machine, machine)
        (work / "sitecustomize.py").write_text(_SITE)
        # All at once: one by one, a network file system would take minutes for thousands of small files.
        os.sync()
        try:
            work.rename(folder)
        except OSError as error:
            # Where the file system has no locks, another process may have been faster.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(work)


def _pip(requirements: Path, target: Path, machine: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--requirement", str(requirements), "--target", str(target)]
    command += ["--require-hashes", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--quiet"]
    for platform in _platforms(machine):
        command += ["--platform", platform]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise _refusal(done.stderr, target.parents[2])


def _platforms(machine: str) -> list[str]:
    """The platforms whose wheels run with this machine's C library, the newest first."""
    library = os.confstr("CS_GNU_LIBC_VERSION") or f"glibc 2.{_OLDEST_GLIBC}"
    newest = int(library.rpartition(".")[2])
    # The last stands for those before it, too.
    return [f"manylinux_2_{minor}_{machine}" for minor in range(newest, _OLDEST_GLIBC - 1, -1)] + [
        f"manylinux2014_{machine}"
    ]


def _refusal(said: str, into: Path) -> Refusal:
    """What pip's errors mean."""
    if "DO NOT MATCH THE HASHES" in said:
        return Refusal(
            "a package is not the one that the requirements name: its hash differs",
            "somebody's else code would run in every pod; nothing was installed",
            "find out what the package index serves; compile the requirements anew only if the change is meant",
        )
    if is_disk_full(OSError(said)):
        return disk_full(into, "nothing was installed")
    if _UNREACHABLE.search(said):
        return Refusal(
            "the package index does not answer",
            "the pods that need these packages cannot start; nothing was installed",
            "let this pod reach https://pypi.org and https://files.pythonhosted.org, and run it again",
        )
    last = [line for line in said.splitlines() if line.startswith("ERROR")]
    return Refusal(
        f"pip could not install the requirements: {last[-1].removeprefix('ERROR: ') if last else 'it did not say why'}",
        "the pods that need these packages cannot start; nothing was installed",
        "correct the requirements: every package needs a wheel for this Python and every architecture",
    )


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    sys.exit(128 + number)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
