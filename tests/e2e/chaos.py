"""A supervised fleet of one two-host group and its frontend, and the faults that befall it in test_chaos.py."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

from runtime.process_tree import die_with_parent
from tests.e2e.two_host_group import GRPC_PORT, MAX_SEQ_LEN, STREAMS, TwoHostGroup
from tests.frontend.serving import ROOT
from tests.ports import free_ports
from tests.runtime.launched import Launched

SILENCE_SECONDS = 3
DRAIN_SECONDS = "5"
LAUNCHER = ("--drain-seconds", DRAIN_SECONDS, "--stable-seconds", "0")
MARKER = "TRITONFLEET_CHAOS"
"""In the environment of every process of the run, with a value that no other run has."""


@dataclass
class Life:
    """One start of a supervised process, in seconds of the monotonic clock. `killed`, `told`: when a fault did it."""

    ended: float = float("inf")
    killed: float = float("inf")
    told: float = float("inf")


class Supervised:
    """A process that is started again as often as it ends, as a kubelet does."""

    def __init__(self, start: Callable[[], "subprocess.Popen[Any]"]) -> None:
        self._start = start
        self.process = start()
        self.lives = [Life()]

    async def keep(self) -> None:
        while True:
            if self.process.poll() is not None:
                self.lives[-1].ended = time.monotonic()
                await asyncio.sleep(0.2)
                self.process = self._start()
                self.lives.append(Life())
            await asyncio.sleep(0.02)

    def signal(self, number: int) -> None:
        if number == signal.SIGKILL:
            self.lives[-1].killed = time.monotonic()
        elif number == signal.SIGTERM:
            self.lives[-1].told = time.monotonic()
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM and its exit status."""
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


class Fleet:
    """The group's two launchers and the frontend, each supervised. Used from inside the leader's host."""

    def __init__(self, group: TwoHostGroup, marker: str) -> None:
        self.group, self.marker = group, marker
        self.launched: dict[int, Launched] = {}
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = group.folder / "frontend.log"
        self.leader = Supervised(lambda: self._launch(0))
        self.worker = Supervised(lambda: self._launch(1))
        self.frontend = Supervised(self._start_frontend)

    @property
    def all(self) -> list[Supervised]:
        return [self.frontend, self.worker, self.leader]

    def state(self) -> dict[str, Any]:
        return self.launched[0].state()

    def ranks(self) -> list[int]:
        """Of every rank: its process, its tritonserver and the model's own process."""
        pids: list[int] = []
        for rank in self.state()["ranks"]:
            with suppress(psutil.NoSuchProcess):
                stubs = [child.pid for child in psutil.Process(rank["server"]).children()]
                pids += [rank["pid"], rank["server"], *stubs]
        return pids

    async def ready(self, seconds: float = 120) -> None:
        """Returns once the frontend says that requests are served."""
        async with asyncio.timeout(seconds), httpx2.AsyncClient() as client:
            while True:
                with suppress(httpx2.HTTPError):
                    if (await client.get(f"{self.url}/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.1)

    def _launch(self, host: int) -> "subprocess.Popen[bytes]":
        self.launched[host] = self.group.launch(host, *LAUNCHER, env={MARKER: self.marker})
        return self.launched[host].process

    def _start_frontend(self) -> "subprocess.Popen[bytes]":
        flags = {
            "grpc": f"127.0.0.1:{GRPC_PORT}",
            "model": "tiny",
            "max-seq-len": MAX_SEQ_LEN,
            "max-sequences": STREAMS,
            "tokenizer": self.group.prepared.engine.resolve() / "tokenizer",
            "state": self.launched[0].run_dir / "state.json",
            "port": self.port,
            "silence-seconds": SILENCE_SECONDS,
            "drain-seconds": DRAIN_SECONDS,
        }
        command = [sys.executable, "-m", "frontend", *(f"--{name}={value}" for name, value in flags.items())]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, MARKER: self.marker},
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )


@dataclass
class Faults:
    """Draws faults at random; `counts` has how often each came. All take their time: the next comes after it."""

    fleet: Fleet
    dice: random.Random
    counts: Counter[str] = field(default_factory=Counter[str])

    async def one(self, *, spare_leader: bool) -> None:
        """One fault; with `spare_leader` none that ends the leader's launcher or the frontend."""
        fleet = self.fleet
        faults: dict[str, Callable[[], Awaitable[None]]] = {
            "rank killed": self._kill_a_rank,
            "MPI daemon killed": self._kill_the_daemon,
            "worker's launcher killed": lambda: self._signal(fleet.worker, signal.SIGKILL),
            "worker told to end": lambda: self._signal(fleet.worker, signal.SIGTERM),
            "rank stalled, short": lambda: self._stall_a_rank(0.2, 1),
            "rank stalled, long": lambda: self._stall_a_rank(SILENCE_SECONDS + 1, SILENCE_SECONDS + 3),
            "worker's launcher stalled": lambda: self._stall([fleet.worker.process.pid], 3),
            "network cut": self._cut,
        }
        if not spare_leader:
            faults |= {
                "leader's launcher killed": lambda: self._signal(fleet.leader, signal.SIGKILL),
                "leader told to end": lambda: self._signal(fleet.leader, signal.SIGTERM),
                "leader's launcher stalled": lambda: self._stall([fleet.leader.process.pid], 3),
                "frontend killed": lambda: self._signal(fleet.frontend, signal.SIGKILL),
                "frontend told to end": lambda: self._signal(fleet.frontend, signal.SIGTERM),
            }
        # All kinds come before any comes again.
        least = min(self.counts[name] for name in faults)
        name = self.dice.choice([name for name in faults if self.counts[name] == least])
        self.counts[name] += 1
        print(f"{time.strftime('%H:%M:%S')} {name} (the group is {fleet.state()['phase']})", flush=True)
        await faults[name]()

    async def _signal(self, process: Supervised, number: int) -> None:
        process.signal(number)

    async def _kill_a_rank(self) -> None:
        if pids := self.fleet.ranks():
            _send(self.dice.choice(pids), signal.SIGKILL)

    async def _kill_the_daemon(self) -> None:
        launcher = self.dice.choice([self.fleet.leader, self.fleet.worker])
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(launcher.process.pid).children(recursive=True):
                if process.name() in ("prted", "prterun", "mpirun"):
                    process.kill()

    async def _stall_a_rank(self, least: float, most: float) -> None:
        if pids := self.fleet.ranks():
            await self._stall([self.dice.choice(pids)], self.dice.uniform(least, most))

    async def _stall(self, pids: list[int], seconds: float) -> None:
        for pid in pids:
            _send(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            for pid in pids:
                _send(pid, signal.SIGCONT)

    async def _cut(self) -> None:
        self.fleet.group.hosts.cut()
        try:
            await asyncio.sleep(self.dice.choice([0.5, 3]))
        finally:
            self.fleet.group.hosts.mend()


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def marked(marker: str) -> dict[int, dict[str, str]]:
    """The run's own processes, wherever they hang, with their environments."""
    found: dict[int, dict[str, str]] = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            environment = dict(word.split("=", 1) for word in words if "=" in word)
            if environment.get(MARKER) == marker:
                found[int(path.parent.name)] = environment
    return found
