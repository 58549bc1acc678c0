"""The leader of a group: gathers the hosts, starts the ranks, and starts them all again when any one is lost."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import Refusal
from runtime.generation import Generation
from runtime.mpi import MpiRun
from runtime.rank import HostSettings
from runtime.rendezvous import ConnectionLost, Member, Message, Rendezvous, Timing
from runtime.state import IN_FLIGHT, frontends_are_idle, write_state

LONGEST_BACK_OFF_SECONDS = 60.0
PROGRESS_SECONDS = 15.0
IDLE_POLL_SECONDS = 0.05
NOTICE_SECONDS = 0.25
"""From the state that says so to the drain itself. The frontend, which looks every 50 ms, refuses requests by then that
Triton would refuse."""


@dataclass(frozen=True)
class GroupPlan:
    """What the group is. `rendezvous` is the address and port to listen on; seconds are as the launcher's flags say."""

    engine: str
    group_size: int
    token: bytes
    timing: Timing
    rendezvous: tuple[str, int]
    run_dir: Path
    drain_seconds: float
    stable_seconds: float


class StartFailed(Exception):
    """The group ended before it was ever ready, with all its hosts there: another start would end the same way."""


async def run(plan: GroupPlan, settings: HostSettings, mpirun: MpiRun, say: Callable[[str], None]) -> int:
    """Serves until SIGTERM or SIGINT, then returns 0; a second signal ends at once. Raises StartFailed or Refusal."""
    leader = Leader(plan, settings, mpirun, say)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leader.stop)
    try:
        await leader.serve()
    finally:
        await leader.close()
    return 0


def back_off_seconds(failures: int) -> float:
    """Waiting before the next start after so many losses in a row: none, then 1, 2, 4 … 60 seconds."""
    return 0.0 if failures <= 1 else min(LONGEST_BACK_OFF_SECONDS, 2.0 ** (failures - 2))


class Leader:
    def __init__(self, plan: GroupPlan, settings: HostSettings, mpirun: MpiRun, say: Callable[[str], None]) -> None:
        self.plan, self.settings, self.mpirun, self.say = plan, settings, mpirun, say
        self.stopping = asyncio.Event()
        self.number = 0
        self.phase = "starting"
        self.reason: str | None = None
        self.generation: Generation | None = None
        self.leaving: list[Member] = []
        self.rendezvous: Rendezvous | None = None
        self.gathered = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        if self.stopping.is_set():
            # The keepers see this process end and kill every rank, here and on the workers.
            os._exit(128 + signal.SIGTERM)
        self.stopping.set()

    async def serve(self) -> None:
        (self.plan.run_dir / IN_FLIGHT).touch()
        self._write_state()
        if self.plan.group_size > 1:
            await self._open_rendezvous()
        failures = 0
        ever_ready = False
        lost_at: float | None = None
        while not self.stopping.is_set():
            if not await self._gather():
                break
            self.number += 1
            generation, started = await self._start()
            ready_at = await self._until_ready_or_over(generation)
            if ready_at is not None:
                ever_ready = True
                self._announce_ready(started, ready_at, lost_at)
                await self._first(generation.over, self.stopping.wait())
            if self.stopping.is_set():
                await self._end_in_order(generation, "stopping", drain=ready_at is not None)
                break
            reason = generation.over.result()
            lost_at = generation.over_at
            if generation.to_drain:
                self.reason = reason
                await self._end_in_order(generation, "draining", drain=ready_at is not None)
                self.phase = "restarting"
                self._write_state()
                self.say(f"nothing is left of generation {self.number}: {reason}")
                failures = 0
                continue
            stable = ready_at is not None and time.monotonic() - ready_at > self.plan.stable_seconds
            failures = 1 if stable else failures + 1
            self.phase, self.reason = "restarting", reason
            self._write_state()
            self.say(f"generation {self.number} is over: {reason}; ending every rank")
            await self._end(generation)
            if not ever_ready and not generation.lost_host:
                raise StartFailed(_start_failure(generation, reason, self.plan.run_dir))
            pause = back_off_seconds(failures)
            took = time.monotonic() - (lost_at or time.monotonic())
            self.say(f"nothing is left of generation {self.number}, {took:.1f} s after the loss; next in {pause:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), pause)

    async def close(self) -> None:
        if self.generation is not None:
            await self._end(self.generation)
        for task in self.tasks:
            task.cancel()
        if self.rendezvous is not None:
            await self.rendezvous.close()
        self.phase = "stopped"
        self._write_state()
        self.say("stopped")

    async def _open_rendezvous(self) -> None:
        plan = self.plan
        self.rendezvous = Rendezvous(plan.token, plan.group_size, judge=self._judge, log=self.say, timing=plan.timing)
        address, port = plan.rendezvous
        try:
            await self.rendezvous.listen(address, port)
        except OSError as error:
            raise Refusal(
                f"the rendezvous cannot listen on {address}:{port}: {error.strerror}",
                "the workers of this group could not join",
                "end the process that holds the port, or give every host of the group another --rendezvous-port",
            ) from None
        self._spawn(self._welcome(self.rendezvous))

    def _judge(self, about: Message) -> str | None:
        for key, mine in (("engine", self.plan.engine), ("ranks_per_host", self.settings.ranks_per_host)):
            if about.get(key) != mine:
                return f"its {key} is {about.get(key)}, the leader's is {mine}"
        return None

    async def _welcome(self, rendezvous: Rendezvous) -> None:
        while True:
            member = await rendezvous.joined.get()
            self.say(f"worker {member.index} ({member.about['host']}) joined from {member.channel.remote_address}")
            self._spawn(self._follow(rendezvous, member))
            if len(rendezvous.members) == self.plan.group_size - 1:
                self.gathered.set()

    async def _follow(self, rendezvous: Rendezvous, member: Member) -> None:
        try:
            while True:
                message = await member.channel.receive()
                if message["did"] == "leave":
                    await self._let_go(member)
                elif self.generation is not None:
                    self.generation.heard(member, message)
        except ConnectionLost as lost:
            self.gathered.clear()
            await rendezvous.drop(member)
            self.say(f"worker {member.index} ({member.about['host']}) is lost: {lost}")
            if self.generation is not None:
                self.generation.lost(member, lost)

    async def _gather(self) -> bool:
        """Waits until every host is here; False when told to stop first."""
        while self.rendezvous is not None and not self.gathered.is_set():
            missing = set(range(1, self.plan.group_size)) - set(self.rendezvous.members)
            self.say(f"waiting for worker {', '.join(map(str, sorted(missing)))}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROGRESS_SECONDS):
                    await self._first(self.gathered.wait(), self.stopping.wait())
            if self.stopping.is_set():
                return False
        return not self.stopping.is_set()

    async def _start(self) -> tuple[Generation, float]:
        started = time.monotonic()
        members = self.rendezvous.members if self.rendezvous is not None else {}
        self.generation = Generation(self.settings, members, self.mpirun, on_ranks=self._write_state)
        world = self.settings.ranks_per_host * self.plan.group_size
        self.say(f"generation {self.number}: starting {world} ranks on {self.plan.group_size} host(s)")
        self._write_state()
        await self.generation.start()
        return self.generation, started

    async def _until_ready_or_over(self, generation: Generation) -> float | None:
        """The monotonic time of readiness; None when the generation ended, or the launcher is to stop, before."""
        ready = asyncio.create_task(generation.wait_ready())
        try:
            while not (ready.done() or generation.over.done() or self.stopping.is_set()):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROGRESS_SECONDS):
                        await self._first(asyncio.shield(ready), generation.over, self.stopping.wait())
                        continue
                self.say(f"loading: {len(generation.ranks)} servers started, not ready yet")
        finally:
            ready.cancel()
        return time.monotonic() if not generation.over.done() and not self.stopping.is_set() else None

    def _announce_ready(self, started: float, ready_at: float, lost_at: float | None) -> None:
        self.phase = "ready"
        self._write_state()
        since_loss = f", {ready_at - lost_at:.1f} s after the loss" if lost_at is not None else ""
        self.say(f"generation {self.number}: ready in {ready_at - started:.1f} s{since_loss}")

    async def _end_in_order(self, generation: Generation, phase: str, *, drain: bool) -> None:
        self.phase = phase
        self._write_state()
        if drain:
            self.say(f"{phase}: no new requests; waiting for those in flight")
            end = time.monotonic() + self.plan.drain_seconds
            await asyncio.sleep(NOTICE_SECONDS)
            # Triton does not wait for the streams of decoupled models.
            while not frontends_are_idle(self.plan.run_dir) and time.monotonic() < end:
                await asyncio.sleep(IDLE_POLL_SECONDS)
            await generation.drain(end - time.monotonic())
        await self._end(generation)

    async def _let_go(self, member: Member) -> None:
        """A worker that asks to leave may, once it has no ranks; its successor is welcome then."""
        self.gathered.clear()
        if self.generation is not None:
            self.generation.leave(member)
            self.leaving.append(member)
        elif self.rendezvous is not None:
            await self.rendezvous.drop(member)

    async def _end(self, generation: Generation) -> None:
        silent = await generation.end()
        for member in silent:
            self.say(f"worker {member.index} did not confirm the end of its ranks; taking its host for lost")
        for member in (*silent, *self.leaving):
            if self.rendezvous is not None:
                self.gathered.clear()
                await self.rendezvous.drop(member)
        self.leaving.clear()
        self.generation = None

    async def _first(self, *waits: Any) -> None:
        """Returns when the first of these is done; what is not a future is cancelled then."""
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task, wait in zip(tasks, waits, strict=True):
                if task is not wait:
                    task.cancel()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _write_state(self) -> None:
        endpoints = self.settings.endpoints
        ranks = sorted(self.generation.ranks.values(), key=lambda r: r["rank"]) if self.generation is not None else []
        state = {
            "phase": self.phase,
            "generation": self.number,
            "engine": self.plan.engine,
            "http": f"{endpoints.address}:{endpoints.http}",
            "grpc": f"{endpoints.address}:{endpoints.grpc}",
            "metrics": f"{endpoints.address}:{endpoints.metrics}",
            "ranks": ranks,
            "reason": self.reason,
        }
        write_state(self.plan.run_dir, state)


def _start_failure(generation: Generation, reason: str, run_dir: Path) -> str:
    lines = [line for report in generation.reports for line in report["lines"]]
    shown = lines[-12:] or list(generation.last_lines)[-12:]
    return "\n  ".join([f"the group did not start: {reason}", *shown, f"the whole logs are {run_dir}/rank*.log"])
