"""A command and everything it starts, ended whole: when the command ends, when asked, and when whoever asked is killed.

`ProcessTree` is the launcher's end of it. At the other end `python process_tree.py DIRECTORY COMMAND…` is a keeper
process, parent of the command and, as the kernel's child subreaper, of every orphan below it. It waits for the
command to end or for its standard input to close, which also happens when the launcher is killed with a signal that
cannot be caught; then it kills what is left, and removes the tree's directory and shared memory. Should the keeper
itself be killed, the command dies with it (PR_SET_PDEATHSIG) and the launcher, a subreaper too, ends the orphans.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = Path("/dev/shm")
NAME_PREFIX = "tritonfleet-"
spared = set[int]()
"""Children of this process that are part of no tree."""
_libc = ctypes.CDLL(None, use_errno=True)


class ProcessTree:
    """One running command. `directory` is private to it (mode 0700) and goes when the tree has ended.

    Its name is unique on the host, so it is also the prefix of the tree's shared memory regions.
    """

    def __init__(self) -> None:
        # Shared memory where there is some, for Open MPI's segments; and unix sockets need short paths.
        base = str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else None
        self.directory = Path(tempfile.mkdtemp(prefix=NAME_PREFIX, dir=base))
        self._lock = _lock_shared(self.directory)
        self._keeper: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None
        self._finish: asyncio.Task[int] | None = None

    @staticmethod
    def remove_stale() -> None:
        """Removes what is left of trees whose launcher and keeper were killed both at once."""
        for directory in SHARED_MEMORY.glob(f"{NAME_PREFIX}*/"):
            with contextlib.suppress(OSError):
                lock = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(directory)
                finally:
                    os.close(lock)

    @property
    def shm_prefix(self) -> str:
        return f"{self.directory.name}_"

    async def start(self, command: Sequence[str], env: Mapping[str, str], on_line: Callable[[str], None]) -> None:
        """Starts the command; `on_line` gets each line that anything in the tree writes, without its newline."""
        self._keeper = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            __file__,
            str(self.directory),
            *command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            cwd="/",
            limit=1 << 20,
            # A terminal's Ctrl-C goes to its whole session: only the launcher may see it, or nothing would be drained.
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        self._output = asyncio.create_task(self._read(self._keeper.stdout, on_line))
        self._finish = asyncio.create_task(self._clean_up(self._keeper, self._output))

    async def wait(self) -> int:
        """The command's exit status once nothing of the tree is left; 128 + n for signal n, as in a shell."""
        if self._finish is None:
            raise RuntimeError("the tree was not started")
        return await asyncio.shield(self._finish)

    async def end(self) -> None:
        """Kills all of it. Returns when nothing is left; may be called at any time, and more than once."""
        if self._keeper is None:
            _remove(self.directory)
            os.close(self._lock)
            return
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()
        await self.wait()

    async def _clean_up(self, keeper: asyncio.subprocess.Process, output: asyncio.Task[None]) -> int:
        status = await keeper.wait()
        # In a thread: a process in uninterruptible sleep takes its time, and heartbeats must go on meanwhile.
        await asyncio.to_thread(kill_descendants)
        _remove(self.directory)
        os.close(self._lock)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(output, 2.0)
        return 128 - status if status < 0 else status

    async def _read(self, output: asyncio.StreamReader, on_line: Callable[[str], None]) -> None:
        while True:
            try:
                line = await output.readline()
            except ValueError:  # a line beyond the limit: its beginning is dropped by the reader
                continue
            if not line:
                return
            on_line(line.decode(errors="replace").rstrip("\n"))


def become_subreaper() -> None:
    """Orphans below this process become its children, so that they can be found and ended."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def die_with_parent() -> None:
    """This process gets SIGKILL when its parent ends. For a child between fork and exec, or at a program's start."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def kill_descendants() -> None:
    """Kills every process below this one, but for the spared, and returns when none is left."""
    me = psutil.Process()
    while below := [process for process in me.children(recursive=True) if process.pid not in spared]:
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        # Orphans become children of a subreaper, so the next look finds those that were being born meanwhile.
        psutil.wait_procs(below, timeout=0.5)


def _keep(directory: Path, command: Sequence[str]) -> int:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    become_subreaper()
    _lock_shared(directory)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_fresh_child)
    ended = os.pidfd_open(child.pid)
    ready, _, _ = select.select([ended, sys.stdin.fileno()], [], [])
    status = 0
    if ended in ready:
        status = child.wait()
        # Rank processes may still be writing why they end.
        time.sleep(0.1)
    kill_descendants()
    _remove(directory)
    return 128 - status if status < 0 else status


def _fresh_child() -> None:
    for changed in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(changed, signal.SIG_DFL)
    die_with_parent()


def _lock_shared(directory: Path) -> int:
    """Marks the directory as one of a living process, until that process ends or closes the descriptor."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _remove(directory: Path) -> None:
    """The directory, and the shared memory that killed processes of the tree could not unlink."""
    for region in SHARED_MEMORY.glob(f"{directory.name}_*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(_keep(Path(sys.argv[1]), sys.argv[2:]))
