"""One start of a group: mpirun and, through the agent, its daemons on other hosts, until the first thing goes wrong."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from runtime import mpi
from runtime.agent import SOCKET_VARIABLE
from runtime.process_tree import ProcessTree
from runtime.rank import REPORT, HostSettings
from runtime.rendezvous import ConnectionLost, Member
from runtime.worker import END_SECONDS, rank_host_environment

READY_POLL_SECONDS = 0.1
# mpirun's own words, wrapped over lines, when a rank process cannot say itself how it ended.
RANK_KILLED = re.compile(r"noticed that process rank (\d+) .{1,200}?exited on\s+signal (\d+)")


class Generation:
    """`over` becomes the reason why the group cannot go on; `end` then ends it on every host.

    The ranks still work where the reason is that a worker is told to end (`to_drain`).
    """

    def __init__(
        self,
        settings: HostSettings,
        members: Mapping[int, Member],
        mpirun: mpi.MpiRun,
        *,
        on_ranks: Callable[[], None],
    ) -> None:
        self.ranks: dict[int, dict[str, Any]] = {}
        self.reports: list[dict[str, Any]] = []
        self.last_lines: deque[str] = deque(maxlen=40)
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.over_at: float | None = None
        self.lost_host = False
        self.to_drain = False
        self._settings, self._members, self._mpirun, self._on_ranks = settings, dict(members), mpirun, on_ranks
        self._tree = ProcessTree()
        self._agents: asyncio.Server | None = None
        self._daemons: dict[int, asyncio.Future[int]] = {}
        self._ended: dict[int, asyncio.Event] = {index: asyncio.Event() for index in members}
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        channels = [self._members[index].channel for index in sorted(self._members)]
        own = channels[0].local_address if channels else None
        env = rank_host_environment(self._settings, self._tree, own) | mpi.environment(self._mpirun)
        if channels:
            path = self._tree.directory / "agent"
            self._agents = await asyncio.start_unix_server(self._serve_agent, path)
            env[SOCKET_VARIABLE] = str(path)
        command = mpi.command(
            self._mpirun,
            hosts=[own, *(channel.remote_address for channel in channels)] if own else [],
            ranks_per_host=self._settings.ranks_per_host,
            program=[sys.executable, "-m", "runtime.rank"],
        )
        await self._tree.start(command, env, self._on_line)
        self._watch = asyncio.create_task(self._watch_mpirun())

    async def wait_ready(self) -> None:
        """Returns when rank 0's Triton is ready, which is when every rank has loaded the model."""
        # Before rank 0 has started, only another program could answer on its port.
        while 0 not in self.ranks or not await self._http_ok("/v2/health/ready"):
            await asyncio.sleep(READY_POLL_SECONDS)

    async def drain(self, seconds: float) -> None:
        """Lets rank 0 end its requests in flight; the other ranks serve them until then."""
        pid = self.ranks.get(0, {}).get("pid")
        if pid is None:
            return
        if self._settings.log_level in ("error", "warning"):
            # That the last request has ended, the rank reads in the server's log, where it is said at level info only.
            await self._http_ok("/v2/logging", b'{"log_info": true}')
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._tree.wait()

    async def end(self) -> list[Member]:
        """Ends every rank on every host; returns the members that did not confirm it and must be taken for lost."""
        for member in self._members.values():
            member.channel.send({"do": "end"})
        await self._tree.end()
        if self._agents is not None:
            self._agents.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await asyncio.gather(*(event.wait() for event in self._ended.values()))
        if self._watch is not None:
            await self._watch
        return [member for index, member in self._members.items() if not self._ended[index].is_set()]

    def heard(self, member: Member, message: dict[str, Any]) -> None:
        """A message of a member that is meant for this generation."""
        if member.index not in self._ended:
            return
        if message["did"] == "end":
            self._ended[member.index].set()
        elif message["did"] == "run":
            status = int(message["status"])
            if member.index in self._daemons and not self._daemons[member.index].done():
                self._daemons[member.index].set_result(status)
            self.fail(describe(f"Open MPI's daemon on {member.about['host']}", status))

    def leave(self, member: Member) -> None:
        """A member is told to end: its node is reclaimed or upgraded."""
        if self._members.get(member.index) is member and not self.over.done():
            self.to_drain = True
            self.fail(f"worker {member.index} ({member.about['host']}) is told to end")

    def lost(self, member: Member, why: ConnectionLost) -> None:
        if self._members.get(member.index) is member:
            self.lost_host = True
            self._ended[member.index].set()
            self.fail(f"worker {member.index} ({member.about['host']}) is lost: {why}")

    def fail(self, reason: str) -> None:
        if not self.over.done():
            self.over_at = time.monotonic()
            self.over.set_result(reason)

    async def _http_ok(self, path: str, post: bytes | None = None) -> bool:
        endpoints = self._settings.endpoints
        address = "127.0.0.1" if endpoints.address == "0.0.0.0" else endpoints.address
        return await http_ok(address, endpoints.http, path, post)

    def _on_line(self, line: str) -> None:
        begin = line.find(REPORT)
        if begin < 0:
            self.last_lines.append(line)
            return
        with contextlib.suppress(ValueError):
            report: dict[str, Any] = json.loads(line[begin + len(REPORT) :])
            if "server" in report:
                self.ranks[report["rank"]] = report
                self._on_ranks()
            else:
                self.reports.append(report)
                self.fail(f"rank {report['rank']} on {report['host']}: {report['ended']}")

    async def _watch_mpirun(self) -> None:
        status = await self._tree.wait()
        seen = RANK_KILLED.search(" ".join(self.last_lines))
        self.fail(f"rank {seen[1]}: its process was killed by signal {seen[2]}" if seen else describe("mpirun", status))

    async def _serve_agent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = json.loads(await reader.readline())
            member = next((m for m in self._members.values() if m.channel.remote_address == asked["host"]), None)
            if member is None:
                self.last_lines.append(f"mpirun asked for a host that is not in the group: {asked['host']}")
                return
            daemon = self._daemons[member.index] = asyncio.get_running_loop().create_future()
            member.channel.send({"do": "run", "command": asked["command"]})
            writer.write(json.dumps({"status": await daemon}).encode() + b"\n")
            await writer.drain()
        except (OSError, asyncio.CancelledError):
            pass  # mpirun ended its agent, or the generation is over: nobody waits for the answer
        finally:
            writer.close()


def describe(what: str, status: int) -> str:
    """How a process tree's command ended, in words."""
    signalled = 128 < status < 128 + 32  # Open MPI has exit statuses of its own above
    return f"{what} was killed by signal {status - 128}" if signalled else f"{what} ended with status {status}"


async def http_ok(address: str, port: int, path: str, post: bytes | None = None) -> bool:
    """Whether a GET, or a POST of `post`, is answered with 200 within a second."""
    start = f"GET {path} HTTP/1.1" if post is None else f"POST {path} HTTP/1.1\r\nContent-Length: {len(post)}"
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, IndexError):
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(f"{start}\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode() + (post or b""))
                return (await reader.readline()).split()[1] == b"200"
            finally:
                writer.close()
    return False
