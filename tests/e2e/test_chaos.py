"""What an hour brings to a very bad fleet, in a minute: each request ends properly, and nothing stays behind.

CHAOS_FAULTS=60 makes as many faults, CHAOS_SEED=n draws others; -s shows both tables.
"""

import asyncio
import os
import random
import secrets
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest

from runtime.process_tree import NAME_PREFIX, SHARED_MEMORY
from tests.e2e.chaos import Faults, Fleet, marked
from tests.e2e.chaos_clients import QUESTIONS, Clients
from tests.e2e.two_host_group import TwoHostGroup, ask, question
from tests.hosts import two_hosts
from tests.runtime.launched import until

FAULTS = int(os.environ.get("CHAOS_FAULTS", "5"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
CLIENTS, WARM_SECONDS = 8, 2
MARGIN_BYTES, MARGIN_DESCRIPTORS = 24 << 20, 8


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    pid: int
    rss: int
    descriptors: int

    @staticmethod
    def of(pid: int) -> "Footprint":
        process = psutil.Process(pid)
        return Footprint(pid, process.memory_info().rss, process.num_fds())


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Generator[Fleet]:
    with two_hosts() as hosts, hosts.inside(0):
        group = TwoHostGroup(hosts, tmp_path_factory.mktemp("chaos"))
        made = Fleet(group, secrets.token_hex(8))
        yield made
        for supervised in made.all:
            supervised.process.kill()
            supervised.process.wait()
        group.destroy()


@pytest.mark.timeout(300 + 60 * FAULTS)
def test_every_request_ends_properly_and_nothing_stays_behind(fleet: Fleet) -> None:
    ran = asyncio.run(chaos(fleet))
    print(f"\n{sum(ran.faults.values())} faults: " + ", ".join(f"{n} {name}" for name, n in ran.faults.most_common()))
    print(f"{sum(ran.clients.outcomes.values())} requests, the longest took {ran.clients.longest:.1f} s")
    for name, count in ran.clients.outcomes.most_common():
        print(f"{count:>8} {name}")
    assert not ran.clients.wrong, "\n".join(ran.clients.wrong)
    assert ran.clients.outcomes["whole answer"] > 10
    for name, first, last in zip(("frontend", "leader's launcher"), ran.first, ran.last, strict=True):
        print(
            f"{name}: {first.rss >> 20} -> {last.rss >> 20} MiB, {first.descriptors} -> {last.descriptors} descriptors"
        )
        assert last.pid == first.pid
        assert last.rss - first.rss < MARGIN_BYTES
        assert last.descriptors - first.descriptors < MARGIN_DESCRIPTORS

    assert [supervised.stop() for supervised in fleet.all] == [0, 0, 0]
    assert "Traceback" not in fleet.log.read_text()
    until(lambda: not marked(fleet.marker), "no process is left", 10)
    left = {path.name for path in SHARED_MEMORY.iterdir()}
    assert [name for name in left if any(name.startswith(tree) for tree in ran.trees)] == []


@dataclass
class Ran:
    """What came of a run. `first` and `last` are the footprints of processes that lived through its second half;
    `trees` the names of what its process trees had in shared memory."""

    clients: Clients
    faults: Counter[str]
    first: list[Footprint] = field(default_factory=list[Footprint])
    last: list[Footprint] = field(default_factory=list[Footprint])
    trees: set[str] = field(default_factory=set[str])


async def chaos(fleet: Fleet) -> Ran:
    keeping = [asyncio.create_task(supervised.keep()) for supervised in fleet.all]
    await fleet.ready()
    expected = await answers(fleet)
    dice, over = random.Random(SEED), asyncio.Event()
    faults = Faults(fleet, dice)
    ran = Ran(Clients(fleet, expected, SEED), faults.counts)
    asking = asyncio.gather(*(ran.clients.run(over) for _ in range(CLIENTS)))
    for number in range(FAULTS):
        if number == FAULTS // 2:
            await fleet.ready()
            await asyncio.sleep(WARM_SECONDS)
            ran.first = footprints(fleet)
        folders = {Path(environment.get("TMPDIR", "")).name for environment in marked(fleet.marker).values()}
        ran.trees |= {name for name in folders if name.startswith(NAME_PREFIX)}
        await faults.one(spare_leader=number >= FAULTS // 2)
        await asyncio.sleep(dice.uniform(0.3, 1.5))
        if dice.random() < 0.8:  # else the next fault meets a group that is not back yet
            await fleet.ready()
            await asyncio.sleep(dice.uniform(0.2, 1))
    await fleet.ready()
    await asyncio.sleep(WARM_SECONDS)
    ran.last = footprints(fleet)
    over.set()
    await asking
    assert await answers(fleet) == expected
    for task in keeping:
        task.cancel()
    return ran


async def answers(fleet: Fleet) -> dict[tuple[int, int], str]:
    """The answer to each question, with nobody else asking."""
    async with httpx2.AsyncClient(base_url=fleet.url, timeout=60) as client:
        found = {asked: await ask(client, question(*asked)) for asked in QUESTIONS}
    assert all(answer.finish == "length" for answer in found.values()), found
    return {asked: answer.text for asked, answer in found.items()}


def footprints(fleet: Fleet) -> list[Footprint]:
    return [Footprint.of(supervised.process.pid) for supervised in (fleet.frontend, fleet.leader)]
