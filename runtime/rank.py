"""One rank: started by mpirun, starts one tritonserver, and ends when that, or the model process inside it, ends.

What the launcher must know goes to standard output, which mpirun brings to the leader from every host: one line of
JSON after `REPORT` when the server was started, and one when it ended by itself. The server's log goes to
`rank<r>.log`.

Signals: SIGINT drains (the server lets requests in flight end), SIGTERM, with which mpirun ends a job, ends the
server at once.
"""

import contextlib
import dataclasses
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from runtime.process_tree import die_with_parent
from runtime.triton import Endpoints, Triton, rank_command

REPORT = "tritonfleet-rank "
HOST_VARIABLE = "TRITONFLEET_HOST"
LIFELINE_VARIABLE = "TRITONFLEET_LIFELINE"
# Written by tritonserver, at log level info, on shutdown when the last inference has ended. What follows may wait for
# ranks that never call MPI_Finalize, so it is given only FINALIZE_SECONDS.
DRAINED = b"All models are stopped"
# After this tritonserver would wait for its model process for ever.
STUB_FAILED = b"Failed to run python backend stub"
FINALIZE_SECONDS = 1.0
# A server that sees its model fail says why just after; the launcher shows it.
LAST_WORDS_SECONDS = 0.2
TELLING = re.compile(
    r"^E\d{4} |\berror:|Internal:|Invalid argument:|Unavailable:|Not found:|Error:|Refusal|consequence:|fix:"
)
HARMLESS = re.compile(
    r"NVML|CudaDriverHelper|unable to create stream|DCGM|CUDA driver|pinned memory|Non-graceful termination"
)


@dataclass(frozen=True)
class HostSettings:
    """What every rank on one host is told by that host's launcher, as JSON in TRITONFLEET_HOST."""

    host: str
    backend: str
    model_repository: str
    triton: Triton
    endpoints: Endpoints
    log_directory: str
    tree_directory: str
    shm_prefix: str
    ranks_per_host: int
    busy_ranks: int  # how many of this host's ranks compute at once: one pipeline stage's
    interface: str | None  # the network interface between the group's hosts; None on a single host
    temporary_directory: str | None
    log_level: str = "info"  # a key of runtime.triton.LOG_FLAGS

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "HostSettings":
        fields: dict[str, Any] = json.loads(text)
        fields["triton"] = Triton(**fields["triton"])
        fields["endpoints"] = Endpoints(**fields["endpoints"])
        return HostSettings(**fields)


def main() -> int:
    # With mpirun's daemon dead, nothing could end this rank in an orderly way any more.
    die_with_parent()
    settings = HostSettings.from_json(os.environ[HOST_VARIABLE])
    return Rank(settings, mpi_rank(os.environ)).run()


def mpi_rank(env: Mapping[str, str]) -> int:
    """The rank Open MPI (or any PMIx launcher) gave to this process."""
    return int(env.get("OMPI_COMM_WORLD_RANK") or env["PMIX_RANK"])


def server_environment(
    settings: HostSettings, inherited: Mapping[str, str], cores: int, lifeline: str
) -> dict[str, str]:
    """The environment of this rank's server. On GPU hosts transports and threads are the pod specification's to set."""
    env = {key: value for key, value in inherited.items() if key not in (HOST_VARIABLE, "TMPDIR")}
    if settings.temporary_directory is not None:
        env["TMPDIR"] = settings.temporary_directory
    for key, value in settings.triton.environment.items():
        env[key] = os.pathsep.join([value, env["PATH"]]) if key == "PATH" and "PATH" in env else value
    env[LIFELINE_VARIABLE] = lifeline
    if settings.backend == "cpu":
        for name, value in blas_environment(cores, settings.busy_ranks, cpu_flags()).items():
            env.setdefault(name, value)
        env.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
        if settings.interface is None:
            env.setdefault("OMPI_MCA_btl", "^tcp,openib")
        elif "OMPI_MCA_btl_tcp_if_exclude" not in env:  # Open MPI finds no way between hosts when both are given
            env.setdefault("OMPI_MCA_btl_tcp_if_include", settings.interface)
        # Killed ranks leave their shared segments behind; in the tree's directory they go with it.
        env.setdefault("OMPI_MCA_btl_sm_backing_directory", settings.tree_directory)
        env.setdefault("OMPI_MCA_btl_vader_backing_directory", settings.tree_directory)
    return env


def blas_environment(cores: int, busy_ranks: int, flags: Set[str]) -> dict[str, str]:
    """OpenBLAS's threads and kernels for numpy, where `busy_ranks` processes compute at once on `cores` cores.

    The OpenBLAS 0.3.23 in numpy 1.26 takes processors newer than itself for the oldest it knows, which halves the speed
    of a matrix-vector product; its Haswell kernels run wherever AVX2 and FMA do, and are bound by memory alike.
    """
    kernels = {"OPENBLAS_CORETYPE": "Haswell"} if flags >= {"avx2", "fma"} else {}
    return {"OPENBLAS_NUM_THREADS": str(max(1, cores // busy_ranks)), **kernels}


def cpu_flags() -> Set[str]:
    """Instruction sets of this machine's processor, by Linux's names."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


class Rank:
    def __init__(self, settings: HostSettings, rank: int) -> None:
        self.settings = settings
        self.rank = rank
        self.draining = False
        self.ending = False
        self.ready_to_go: float | None = None  # monotonic time after which a drained server need not be waited for
        self.stub_failed = False
        self.last_lines: deque[str] = deque(maxlen=400)
        self.unfinished = b""
        self.selector = selectors.DefaultSelector()

    def run(self) -> int:
        lifeline = Path(self.settings.tree_directory) / f"lifeline.{self.rank}"
        with socket.socket(socket.AF_UNIX) as listener, self._open_log() as log:
            listener.bind(str(lifeline))
            listener.listen()
            server = self._start(str(lifeline))
            self._report(pid=os.getpid(), server=server.pid)
            try:
                return self._watch(server, listener, log)
            finally:
                server.kill()
                server.wait()
                lifeline.unlink(missing_ok=True)

    def _start(self, lifeline: str) -> "subprocess.Popen[bytes]":
        s = self.settings
        command = rank_command(
            s.triton,
            rank=self.rank,
            backend=s.backend,
            model_repository=s.model_repository,
            endpoints=s.endpoints,
            shm_prefix=s.shm_prefix,
            log_level=s.log_level,
        )
        env = server_environment(s, os.environ, len(os.sched_getaffinity(0)), lifeline)
        return subprocess.Popen(
            command,
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )

    def _watch(self, server: "subprocess.Popen[bytes]", listener: socket.socket, log: BinaryIO) -> int:
        assert server.stdout is not None
        os.set_blocking(server.stdout.fileno(), False)
        signal.signal(signal.SIGINT, partial(self._drain, server))
        signal.signal(signal.SIGTERM, partial(self._end, server))
        ended = os.pidfd_open(server.pid)
        self.selector.register(server.stdout, selectors.EVENT_READ, "output")
        self.selector.register(listener, selectors.EVENT_READ, "listener")
        self.selector.register(ended, selectors.EVENT_READ, "ended")
        while True:
            for key, _ in self.selector.select(0.2):
                if key.data == "output":
                    self._copy(server.stdout, log)
                    if self.stub_failed:
                        return self._lost("the model process (python backend stub) cannot be started: is bash in PATH?")
                elif key.data == "listener":
                    self.selector.register(listener.accept()[0], selectors.EVENT_READ, "lifeline")
                elif key.data == "lifeline" and self._cut(key.fileobj):
                    time.sleep(LAST_WORDS_SECONDS)
                    self._copy(server.stdout, log)
                    return self._lost("the model process (python backend stub) ended")
                elif key.data == "ended":
                    self._copy(server.stdout, log)
                    if self.draining or self.ending:
                        return 0 if self.draining else 1
                    return self._lost(f"tritonserver {describe_status(server.wait())}")
            if self.ready_to_go is not None and time.monotonic() > self.ready_to_go:
                return 0

    def _cut(self, connection: Any) -> bool:
        """True when a lifeline ended that was not expected to."""
        with contextlib.suppress(ConnectionError):
            if connection.recv(1024):
                return False
        self.selector.unregister(connection)
        connection.close()
        return not self.draining and not self.ending

    def _lost(self, why: str) -> int:
        self._report(ended=why, lines=self._telling_lines())
        return 1

    def _drain(self, server: "subprocess.Popen[bytes]", *_: object) -> None:
        self.draining = True
        server.send_signal(signal.SIGINT)

    def _end(self, server: "subprocess.Popen[bytes]", *_: object) -> None:
        self.ending = True
        server.kill()

    def _copy(self, output: Any, log: BinaryIO) -> None:
        """What the server wrote since, into the log with the rank before each line."""
        data: bytes | None = output.read()
        if data is None:
            return  # nothing for now
        *lines, self.unfinished = (self.unfinished + data).split(b"\n")
        if not data:
            # End of file; the pidfd says when the server has ended.
            lines, self.unfinished = [self.unfinished] if self.unfinished else [], b""
            with contextlib.suppress(KeyError):
                self.selector.unregister(output)
        for line in lines:
            log.write(b"[rank %d] %s\n" % (self.rank, line))
            self.last_lines.append(line.decode(errors="replace"))
            self.stub_failed = self.stub_failed or STUB_FAILED in line
            if self.draining and self.ready_to_go is None and DRAINED in line:
                self.ready_to_go = time.monotonic() + FINALIZE_SECONDS
        log.flush()

    def _telling_lines(self) -> list[str]:
        telling = [line for line in self.last_lines if TELLING.search(line) and not HARMLESS.search(line)]
        return [line[:400] for line in telling[-8:]]

    def _report(self, **what: Any) -> None:
        # One write per line: mpirun passes on what it read, and two ranks' lines must not mix.
        line = REPORT + json.dumps({"rank": self.rank, "host": self.settings.host, **what}) + "\n"
        os.write(sys.stdout.fileno(), line.encode())

    def _open_log(self) -> BinaryIO:
        """The log of this start; the one before is kept, since it says why this start was needed."""
        path = Path(self.settings.log_directory) / f"rank{self.rank}.log"
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_suffix(".previous.log"))
        return path.open("wb")


def describe_status(status: int) -> str:
    """`subprocess` exit status in words."""
    if status < 0:
        return f"was killed by signal {-status} ({signal.Signals(-status).name})"
    return f"ended with status {status}"


if __name__ == "__main__":
    sys.exit(main())
