"""A worker host: joins the leader, runs the MPI daemon that it asks for, and ends it all when the leader is gone.

A worker that is told to end asks the leader first. Requests in flight are computed on its ranks too, so the leader lets
them end, then ends every rank of the group, here as well.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from runtime.process_tree import ProcessTree
from runtime.rank import HOST_VARIABLE, HostSettings
from runtime.rendezvous import TOKEN_VARIABLE, Channel, ConnectionLost, Message, Timing, TryAgain, join
from runtime.state import write_state

REJOIN_SECONDS = 0.5
END_SECONDS = 10.0
"""How long every rank may take to end."""


@dataclass(frozen=True)
class Place:
    """Where the leader is, and which worker this is. The address is a name or an IP address. `drain_seconds` are what
    requests in flight get once this worker is told to end."""

    leader_address: str
    port: int
    index: int
    token: bytes
    timing: Timing
    drain_seconds: float


async def run(settings: HostSettings, engine: str, place: Place, run_dir: Path, say: Callable[[str], None]) -> int:
    """Serves leader after leader until SIGTERM or SIGINT, then returns 0; a second signal ends at once. Raises Refusal.

    `run_dir` gets a state.json whose phase is joining, joined, leaving or stopped.
    """

    def enter(phase: str, reason: str | None = None) -> None:
        about = {"worker": place.index, "leader": f"{place.leader_address}:{place.port}", "engine": engine}
        write_state(run_dir, {"phase": phase, **about, "reason": reason})

    worker = Worker(settings, engine, place, enter, say)
    serving = asyncio.create_task(worker.serve())
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if worker.host is None or worker.host.leaving:
            serving.cancel()
            return
        enter("leaving")
        say("told to end: asked the leader to let requests in flight end")
        worker.host.leave()
        loop.call_later(place.drain_seconds + END_SECONDS, serving.cancel)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    finally:
        enter("stopped")
    say("stopped")
    return 0


class Worker:
    """Joins leader after leader. `host` is there while one is joined."""

    def __init__(
        self,
        settings: HostSettings,
        engine: str,
        place: Place,
        enter: Callable[..., None],
        say: Callable[[str], None],
    ) -> None:
        self.settings, self.engine, self.place, self.enter, self.say = settings, engine, place, enter, say
        self.host: Host | None = None

    async def serve(self) -> None:
        """Returns once this worker has left its leader."""
        self.enter("joining")
        told = ""
        while True:
            try:
                channel = await self._join()
            except (ConnectionLost, TryAgain) as problem:
                # A leader that is not up yet is the normal case, so it is said once, not twice a second.
                if str(problem) != told:
                    told = str(problem)
                    self.enter("joining", told)
                    self.say(f"waiting for the leader: {problem}")
                await asyncio.sleep(REJOIN_SECONDS)
                continue
            told = ""
            self.enter("joined")
            self.say(f"worker {self.place.index} joined the leader at {channel.remote_address}")
            self.host = host = Host(self.settings, channel, self.say)
            try:
                await host.serve()
            except ConnectionLost as lost:
                if not host.leaving:
                    self.enter("joining", f"lost the leader: {lost}")
                self.say(f"lost the leader ({lost}); ending this host's ranks")
            finally:
                self.host = None
                await host.end()
                await channel.close()
            if host.leaving:
                return

    async def _join(self) -> Channel:
        settings, place = self.settings, self.place
        about: Message = {"engine": self.engine, "ranks_per_host": settings.ranks_per_host, "host": settings.host}
        return await join(place.leader_address, place.port, place.token, place.index, about, place.timing)


class Host:
    """What one leader runs here: at most one MPI daemon, with the ranks below it."""

    def __init__(self, settings: HostSettings, channel: Channel, say: Callable[[str], None]) -> None:
        self.settings, self.channel, self.say = settings, channel, say
        self.leaving = False
        self.tree: ProcessTree | None = None
        self.watch: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """Asks the leader to end the group in order; `serve` returns once it has."""
        self.leaving = True
        self.channel.send({"did": "leave"})

    async def serve(self) -> None:
        """Answers the leader until this host has left, or the connection is lost, which it raises."""
        while True:
            message = await self.channel.receive()
            if message["do"] == "run":
                await self.end()
                await self._start(str(message["command"]))
            elif message["do"] == "end":
                await self.end()
                self.channel.send({"did": "end"})
                if self.leaving:
                    return

    async def end(self) -> None:
        if self.tree is not None:
            await self.tree.end()
            self.tree = None
        if self.watch is not None:
            await self.watch
            self.watch = None

    async def _start(self, command: str) -> None:
        self.tree = ProcessTree()
        env = rank_host_environment(self.settings, self.tree, self.channel.local_address)
        await self.tree.start(["/bin/sh", "-c", command], env, self.say)
        self.watch = asyncio.create_task(self._watch(self.tree))

    async def _watch(self, tree: ProcessTree) -> None:
        status = await tree.wait()
        self.channel.send({"did": "run", "status": status})


def rank_host_environment(settings: HostSettings, tree: ProcessTree, address: str | None) -> dict[str, str]:
    """The environment of mpirun or its daemon on this host; the ranks below it inherit it.

    `address` is this host's own towards the other hosts, None in a group of one host.
    """
    here = dataclasses.replace(
        settings,
        tree_directory=str(tree.directory),
        shm_prefix=tree.shm_prefix,
        interface=interface_of(address) if address else None,
    )
    env = {**os.environ, HOST_VARIABLE: here.to_json(), "TMPDIR": str(tree.directory)}
    # The launchers' secret is none of the models' business.
    env.pop(TOKEN_VARIABLE, None)
    return env


def interface_of(address: str) -> str | None:
    """The network interface that has this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return None
