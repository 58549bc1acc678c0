"""A group on two hosts, which are network namespaces with addresses and host names of their own, and no ssh."""

import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.hosts import Hosts, two_hosts
from tests.runtime.launched import Launched, publish_engine, until, write_model_repository

RANKS_PER_HOST = 2
TOKEN = "a token that only this group's hosts have 0123456789"
HEARTBEAT = ["--heartbeat-seconds", "0.3", "--dead-after-seconds", "2"]
DEBIAN_MPIRUN = Path("/usr/bin/mpirun")
DEBIAN_LIBMPI = Path("/usr/lib/x86_64-linux-gnu/libmpi.so.40")


@pytest.fixture
def hosts() -> Generator[Hosts]:
    with two_hosts() as made:
        yield made


@pytest.fixture
def launch(hosts: Hosts, tmp_path: Path) -> Generator[Callable[..., Launched]]:
    repository = write_model_repository(tmp_path / "repository")
    engine = publish_engine(tmp_path / "store", 2 * RANKS_PER_HOST)
    # Whatever calls ssh or rsh leaves a trace and gets nowhere.
    trap = tmp_path / "bin"
    trap.mkdir()
    for name in ("ssh", "rsh", "kubectl"):
        (trap / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/{name}-was-called\nexit 1\n")
        (trap / name).chmod(0o755)
    started: list[Launched] = []

    def start(host: int, *more: str, token: str = TOKEN, env: dict[str, str] | None = None) -> Launched:
        directory = tmp_path / f"host{host}-{len(started)}"
        directory.mkdir()
        (directory / "token").write_text(token)
        place = {
            "LWS_LEADER_ADDRESS": hosts.addresses[0],
            "LWS_GROUP_SIZE": "2",
            "LWS_WORKER_INDEX": str(host),
            "PATH": f"{trap}:{os.environ['PATH']}",
        }
        files = ["--model-repository", str(repository), "--engine", str(engine), "--token-file", f"{directory}/token"]
        arguments = [*files, *HEARTBEAT, *more]
        started.append(Launched(directory, arguments, place | (env or {}), hosts.prefix(host)))
        return started[-1]

    yield start
    for launched in reversed(started):
        launched.destroy()
    assert not list(tmp_path.glob("*-was-called"))


def all_processes(*launched: Launched) -> list[psutil.Process]:
    return [process for each in launched for process in each.processes()]


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_two_hosts_serve_as_one(launch: Callable[..., Launched], hosts: Hosts) -> None:
    begun = time.monotonic()
    leader, worker = launch(0), launch(1)
    state = leader.ready()
    print(f"\nstart to ready: {time.monotonic() - begun:.1f} s")
    assert [rank["host"] for rank in state["ranks"]] == [hosts.names[0]] * 2 + [hosts.names[1]] * 2
    assert leader.ask(5) == 5 * (1 + 2 + 3 + 4)
    assert worker.state()["phase"] == "joined"
    left = all_processes(leader, worker)
    assert leader.stop() == 0
    until(lambda: not alive(left), "every rank on both hosts ended", 5)
    assert worker.process.poll() is None
    assert worker.state()["phase"] == "joining"
    assert worker.stop() == 0


@pytest.fixture
def measured() -> Generator[Callable[[str, float, float], None]]:
    """Collects (what was lost, seconds to notice, seconds to serve again) and prints them as a table (-s shows it)."""
    rows: list[tuple[str, float, float]] = []

    def add(what: str, noticed: float, again: float) -> None:
        rows.append((what, noticed, again))

    yield add
    print(f"\n{'lost':<28}{'noticed':>10}{'serving again':>15}")
    for what, noticed, again in rows:
        print(f"{what:<28}{noticed:>8.2f} s{again:>13.2f} s")


def rank_of(state: dict[str, Any], rank: int, key: str) -> int:
    return state["ranks"][rank][key]


def test_a_loss_on_either_host_ends_the_group_on_both_and_it_comes_back(
    launch: Callable[..., Launched], measured: Callable[[str, float, float], None]
) -> None:
    # With --stable-seconds 0 each loss is the first in a row, so no back-off blurs the measured times.
    leader, worker = launch(0, "--stable-seconds", "0"), launch(1)

    def stub(state: dict[str, Any], rank: int) -> int:
        (found,) = psutil.Process(rank_of(state, rank, "server")).children()
        return found.pid

    def daemon(_: dict[str, Any]) -> int:
        return next(p.pid for p in worker.processes() if p.name() == "prted")

    victims: list[tuple[str, Callable[[dict[str, Any]], int]]] = [
        ("server of rank 0, leader", lambda state: rank_of(state, 0, "server")),
        ("server of rank 3, worker", lambda state: rank_of(state, 3, "server")),
        ("stub of rank 2, worker", lambda state: stub(state, 2)),
        ("rank process 2, worker", lambda state: rank_of(state, 2, "pid")),
        ("MPI daemon, worker", daemon),
    ]
    for generation, (what, victim) in enumerate(victims, start=1):
        state = leader.ready(generation)
        before = all_processes(leader, worker)
        assert len(before) > 3 * 2 * RANKS_PER_HOST
        killed = time.monotonic()
        os.kill(victim(state), signal.SIGKILL)
        until(lambda seen=generation: left_ready(leader, seen), f"{what}: the loss is noticed", 10)
        noticed = time.monotonic() - killed
        state = leader.ready(generation + 1)
        measured(what, noticed, time.monotonic() - killed)
        assert not alive(before), what
        assert state["generation"] == generation + 1, leader.log()
        assert leader.ask(1) == 10


def left_ready(leader: Launched, generation: int) -> bool:
    state = leader.state()
    return state["phase"] != "ready" or state["generation"] > generation


def test_a_host_that_vanishes_is_noticed_by_both_and_welcomed_back(
    launch: Callable[..., Launched], hosts: Hosts, measured: Callable[[str, float, float], None]
) -> None:
    leader, worker = launch(0), launch(1)
    leader.ready()
    before = all_processes(leader, worker)
    cut = time.monotonic()
    hosts.cut()
    until(lambda: left_ready(leader, 1), "the leader notices", 10)
    noticed = time.monotonic() - cut
    until(lambda: not alive(before), "the ranks on both sides of the cut ended", 10)
    assert "nothing was heard for 2 s" in leader.state()["reason"]
    mended = time.monotonic()
    hosts.mend()
    leader.ready(2)
    measured("network of the worker", noticed, time.monotonic() - mended)
    assert leader.ask(1) == 10


def test_launchers_killed_with_their_hosts_are_replaced(
    launch: Callable[..., Launched], measured: Callable[[str, float, float], None]
) -> None:
    leader, worker = launch(0), launch(1)
    leader.ready()
    before = all_processes(leader, worker)
    killed = time.monotonic()
    worker.process.kill()
    until(lambda: left_ready(leader, 1), "the leader notices", 10)
    noticed = time.monotonic() - killed
    until(lambda: not alive(before), "every rank on both hosts ended", 10)
    worker = launch(1)
    leader.ready(2)
    measured("launcher of the worker", noticed, time.monotonic() - killed)
    assert leader.ask(1) == 10

    before = all_processes(leader, worker)
    killed = time.monotonic()
    leader.process.kill()
    until(lambda: not alive(before), "every rank on both hosts ended", 10)
    noticed = time.monotonic() - killed
    leader = launch(0)
    leader.ready()
    measured("launcher of the leader", noticed, time.monotonic() - killed)
    assert leader.ask(1) == 10


def answers_ready(leader: Launched) -> bool:
    try:
        urllib.request.urlopen(f"http://{leader.state()['http']}/v2/health/ready", timeout=2)
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


@pytest.mark.parametrize("busy", [True, False])
def test_a_worker_that_is_told_to_end_lets_requests_end_first(launch: Callable[..., Launched], busy: bool) -> None:
    """As on the notice of a spot node. The leader is unready at once, and the group comes back with another worker."""
    leader, worker = launch(0, "--drain-seconds", "20"), launch(1, "--drain-seconds", "20")
    leader.ready()
    before = all_processes(leader, worker)
    answers: list[int] = []
    asked = 4000 if busy else 1
    slow = threading.Thread(target=lambda: answers.append(leader.ask(asked)))
    slow.start()
    leader.until_asked(asked)
    if not busy:
        slow.join()
    worker.process.send_signal(signal.SIGTERM)
    until(lambda: leader.state()["phase"] == "draining", "the leader is told")
    assert "worker 1" in leader.state()["reason"]
    until(lambda: not answers_ready(leader), "Triton takes no new requests")
    if busy:
        assert worker.process.poll() is None
        assert worker.state()["phase"] == "leaving"
        assert not answers
    slow.join()
    assert answers == [40000 if busy else 10]
    assert worker.process.wait(10) == 0
    assert worker.state()["phase"] == "stopped"
    until(lambda: not alive(before), "every rank on both hosts ended", 5)

    launch(1)
    leader.ready(2)
    assert leader.ask(1) == 10


def test_a_second_signal_ends_a_worker_at_once(launch: Callable[..., Launched]) -> None:
    leader, worker = launch(0, "--drain-seconds", "60"), launch(1, "--drain-seconds", "60")
    leader.ready()
    left = all_processes(worker)
    threading.Thread(target=lambda: leader.ask_ignoring_failure(8000), daemon=True).start()
    leader.until_asked(8000)
    worker.process.send_signal(signal.SIGTERM)
    until(lambda: worker.state()["phase"] == "leaving", "the worker asks to leave")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(10) == 0
    assert not alive(left)


def test_who_has_no_token_is_refused_and_the_right_worker_still_joins(launch: Callable[..., Launched]) -> None:
    leader = launch(0)
    until(lambda: "waiting for worker 1" in leader.log(), "the leader listens")
    stranger = launch(1, token="another token, also longer than needed 0123456789")
    assert stranger.process.wait(10) == 2
    assert "do not have the same token" in stranger.log()
    assert "its token is not this group's" in leader.log()
    empty = launch(1, token="")
    assert empty.process.wait(10) == 2
    assert re.search("has 0 characters; .* needs at least 32", empty.log())
    worker = launch(1)
    leader.ready()
    twin = launch(1)
    until(lambda: "worker 1 is already here" in twin.log(), "the twin is told why it waits")
    assert leader.ask(1) == 10
    assert not psutil.Process(twin.process.pid).children()
    assert worker.stop() == 0


@pytest.mark.skipif(not (DEBIAN_MPIRUN.exists() and DEBIAN_LIBMPI.exists()), reason="Debian's openmpi-bin is not here")
def test_open_mpi_4_starts_its_daemons_by_the_same_agent(launch: Callable[..., Launched], hosts: Hosts) -> None:
    said = subprocess.run([DEBIAN_MPIRUN, "--version"], capture_output=True, text=True, check=True).stdout
    if "4.1." not in said:
        pytest.skip(f"{DEBIAN_MPIRUN} is not Open MPI 4.1: {said.splitlines()[0]}")
    env = {"MPI4PY_LIBMPI": str(DEBIAN_LIBMPI)}
    leader, worker = launch(0, "--mpirun", str(DEBIAN_MPIRUN), env=env), launch(1, env=env)
    state = leader.ready()
    assert [rank["host"] for rank in state["ranks"]] == [hosts.names[0]] * 2 + [hosts.names[1]] * 2
    assert any(process.name() == "orted" for process in worker.processes())
    assert leader.ask(5) == 50
    os.kill(rank_of(state, 3, "server"), signal.SIGKILL)
    leader.ready(2)
    assert leader.ask(5) == 50
