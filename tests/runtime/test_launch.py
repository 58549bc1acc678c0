"""A group on this host, for real: three tritonservers in one MPI world, killed in every place it can break."""

import asyncio
import fcntl
import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path

import psutil
import pytest

from runtime.launch import main
from runtime.leader import back_off_seconds
from runtime.process_tree import NAME_PREFIX, ProcessTree
from runtime.rank import HostSettings
from runtime.state import IN_FLIGHT
from runtime.triton import LOG_FLAGS, Endpoints, Triton
from runtime.worker import rank_host_environment
from tests.kubelet.volumes import TIMESTAMP, write_atomically
from tests.ports import free_ports
from tests.runtime.launched import Launched, publish_engine, until, write_model_repository

RANKS = 3
HOST = HostSettings(
    host="here",
    backend="tensorrt",
    model_repository="/models",
    triton=Triton("t", "b", {}),
    endpoints=Endpoints("127.0.0.1", 1, 2, 3),
    log_directory="/logs",
    tree_directory="",
    shm_prefix="",
    ranks_per_host=1,
    busy_ranks=1,
    interface=None,
    temporary_directory=None,
)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("models")
    repository = write_model_repository(directory / "repository")
    return ["--model-repository", str(repository), "--engine", str(publish_engine(directory / "store", RANKS))]


@pytest.fixture
def launch(tmp_path: Path, arguments: list[str]) -> Generator[Callable[..., Launched]]:
    started: list[Launched] = []

    def start(*more: str, env: dict[str, str] | None = None) -> Launched:
        http, grpc, metrics = map(str, free_ports(3))
        ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
        started.append(Launched(tmp_path / str(len(started)), [*arguments, *ports, *more], env or {}))
        return started[-1]

    yield start
    for launched in started:
        launched.destroy()


def test_every_rank_takes_part_in_an_answer(launch: Callable[..., Launched]) -> None:
    group = launch()
    state = group.ready()
    assert [rank["rank"] for rank in state["ranks"]] == [0, 1, 2]
    assert group.ask(7) == 7 * (1 + 2 + 3)
    assert psutil.Process(state["launcher"]).pid == group.process.pid
    log = (group.run_dir / "rank1.log").read_text()
    assert log
    assert all(line.startswith("[rank 1] ") for line in log.splitlines())


def test_models_are_served_from_a_config_maps_volume(launch: Callable[..., Launched], tmp_path: Path) -> None:
    """Triton takes every folder for a model, and ends when one of them, like the volume's `..data`, is none."""
    repository = write_model_repository(tmp_path / "rendered")
    files = {path.relative_to(repository).as_posix(): path.read_bytes() for path in repository.rglob("*.*")}
    write_atomically(tmp_path / "volume", files)
    assert (tmp_path / "volume" / TIMESTAMP / "tensorrt_llm").is_dir()
    group = launch("--model-repository", str(tmp_path / "volume"))
    group.ready()
    assert group.ask(1) == 6


def tritonserver_of(rank: int) -> Callable[[Launched], int]:
    return lambda group: group.state()["ranks"][rank]["server"]


def stub_of(rank: int) -> Callable[[Launched], int]:
    def find(group: Launched) -> int:
        (stub,) = psutil.Process(group.state()["ranks"][rank]["server"]).children()
        return stub.pid

    return find


def rank_process_of(rank: int) -> Callable[[Launched], int]:
    return lambda group: group.state()["ranks"][rank]["pid"]


def mpirun(group: Launched) -> int:
    return next(p.pid for p in group.processes() if p.name() in ("mpirun", "prterun"))


def keeper(group: Launched) -> int:
    (child,) = psutil.Process(group.process.pid).children()
    return child.pid


@pytest.mark.parametrize(
    ("victim", "blamed"),
    [
        pytest.param(tritonserver_of(0), "rank 0 on .*: tritonserver was killed by signal 9", id="server-0"),
        pytest.param(tritonserver_of(1), "rank 1 on .*: tritonserver was killed by signal 9", id="server-1"),
        pytest.param(stub_of(0), "rank 0 on .*: the model process", id="stub-0"),
        pytest.param(stub_of(1), "rank 1 on .*: (the model process|tritonserver ended)", id="stub-1"),
        pytest.param(rank_process_of(1), "rank 1: its process was killed by signal 9", id="rank-1"),
        pytest.param(mpirun, "mpirun was killed by signal 9", id="mpirun"),
        pytest.param(keeper, "mpirun was killed by signal 9", id="keeper"),
    ],
)
def test_losing_any_part_ends_the_whole_group_and_starts_it_again(
    launch: Callable[..., Launched], victim: Callable[[Launched], int], blamed: str
) -> None:
    group = launch()
    group.ready()
    before = group.processes()
    assert len(before) == 2 + 3 * RANKS  # keeper, mpirun; and per rank: rank process, server, stub
    pid = victim(group)
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    until(lambda: group.state()["phase"] != "ready", "the loss is noticed", 10)
    noticed = time.monotonic()
    state = group.ready(generation=2)
    print(f"\nnoticed after {noticed - killed:.2f} s, ready again after {time.monotonic() - killed:.2f} s")
    assert not [p for p in before if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert state["generation"] == 2
    assert re.search(blamed, state["reason"]), state["reason"]
    assert group.ask(1) == 6
    assert not shared_memory_left()


def shared_memory_left() -> list[Path]:
    """Directories and regions of trees whose launcher is gone. Other groups on this host may be running."""
    in_use = {p.info["cmdline"][3] for p in psutil.process_iter(["cmdline"]) if is_keeper(p.info["cmdline"])}
    return [
        path
        for path in Path("/dev/shm").glob(f"{NAME_PREFIX}*")
        if not any(str(path).startswith(directory) for directory in in_use)
    ]


def is_keeper(cmdline: list[str] | None) -> bool:
    return bool(cmdline) and len(cmdline) > 3 and cmdline[2].endswith("process_tree.py")


def test_killing_the_launcher_leaves_nothing(launch: Callable[..., Launched]) -> None:
    group = launch()
    group.ready()
    before = group.processes()
    group.process.kill()
    gone, alive = psutil.wait_procs(before, timeout=5)
    assert not alive
    assert len(gone) == 2 + 3 * RANKS
    until(lambda: not shared_memory_left(), "shared memory removed", 2)


def test_killing_launcher_and_keeper_together_leaves_no_process(launch: Callable[..., Launched]) -> None:
    group = launch()
    group.ready()
    before = group.processes()
    os.kill(keeper(group), signal.SIGSTOP)
    group.process.kill()
    for process in before[:1]:
        process.kill()
    _, alive = psutil.wait_procs(before, timeout=5)
    assert not alive
    ProcessTree.remove_stale()
    assert not shared_memory_left()


def is_ready(group: Launched) -> bool:
    try:
        urllib.request.urlopen(f"http://{group.state()['http']}/v2/health/ready", timeout=2)
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


@pytest.mark.parametrize("in_time", [True, False])
def test_the_ranks_serve_a_frontends_streams_to_their_end(launch: Callable[..., Launched], in_time: bool) -> None:
    """Its streams are not waited for by Triton, which counts no requests of decoupled models."""
    group = launch("--drain-seconds", "60" if in_time else "2")
    group.ready()
    with (group.run_dir / IN_FLIGHT).open() as busy:
        fcntl.lockf(busy, fcntl.LOCK_SH)
        group.process.send_signal(signal.SIGTERM)
        until(lambda: group.state()["phase"] == "stopping", "the launcher is told")
        time.sleep(1)
        assert is_ready(group)
        assert group.ask(1) == 6
        if not in_time:
            assert group.process.wait(20) == 0
    assert group.process.wait(20) == 0


def test_requests_in_flight_end_before_the_ranks_do(launch: Callable[..., Launched]) -> None:
    group = launch()
    group.ready()
    before = group.processes()
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(group.ask(2000)))
    slow.start()
    group.until_asked(2000)
    group.process.send_signal(signal.SIGTERM)
    until(lambda: not is_ready(group), "no new requests", 5)
    assert not answers
    slow.join()
    assert answers == [12000]
    assert group.process.wait(10) == 0
    assert not [p for p in before if p.is_running()]
    assert group.state()["phase"] == "stopped"
    assert group.state()["ranks"] == []


@pytest.mark.parametrize("level", LOG_FLAGS)
def test_at_each_log_level_requests_in_flight_end_and_nothing_is_waited_for_longer(
    launch: Callable[..., Launched], level: str
) -> None:
    """A rank learns from its server's log that the last request has ended; at some levels little is logged."""
    group = launch("--log-level", level, env={"TEST_FINALIZE_SECONDS": "60"})
    group.ready()
    begins = [line.split(" ", 2)[2][:1] for line in (group.run_dir / "rank0.log").read_text().splitlines()]
    assert ("I" in begins) == (level in ("info", "verbose"))
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(group.ask(2000)))
    slow.start()
    group.until_asked(2000)
    begun = time.monotonic()
    assert group.stop() == 0
    slow.join()
    assert answers == [12000]
    assert time.monotonic() - begun < 8


def test_a_second_signal_ends_everything_at_once(launch: Callable[..., Launched]) -> None:
    group = launch()
    group.ready()
    before = group.processes()
    threading.Thread(target=lambda: group.ask_ignoring_failure(8000), daemon=True).start()
    group.until_asked(8000)
    begun = time.monotonic()
    group.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    group.process.send_signal(signal.SIGINT)
    assert group.process.wait(3) != 0
    _, alive = psutil.wait_procs(before, timeout=3)
    assert not alive
    assert time.monotonic() - begun < 5  # the request alone takes longer


def test_a_model_that_cannot_load_is_reported_once_and_not_retried(launch: Callable[..., Launched]) -> None:
    group = launch(env={"TEST_FAILING_RANK": "1"})
    assert group.process.wait(20) == 1
    said = group.log()
    assert "this rank was told to fail" in said
    assert said.count("starting 3 ranks") == 1
    assert len(said.splitlines()) < 25
    assert not shared_memory_left()


def test_a_model_process_that_cannot_be_started_is_reported(launch: Callable[..., Launched], tmp_path: Path) -> None:
    """Triton starts it by bash, and waits for ever where there is none."""
    tools = tmp_path / "tools without bash"
    tools.mkdir()
    group = launch(env={"PATH": str(tools)})
    assert group.process.wait(30) == 1
    assert "is bash in PATH?" in group.log()


def test_a_stop_while_loading_ends_cleanly(launch: Callable[..., Launched]) -> None:
    group = launch()
    until(lambda: len(group.state()["ranks"]) == RANKS, "the servers started")
    left = group.processes()
    assert group.stop() == 0
    assert not [p for p in left if p.is_running()]
    assert group.state()["phase"] == "stopped"


def test_one_run_directory_has_one_launcher(
    launch: Callable[..., Launched], capsys: pytest.CaptureFixture[str]
) -> None:
    group = launch()
    until(lambda: group.state()["phase"], "state.json is written")
    assert main([*group.arguments, "--run-dir", str(group.run_dir)]) == 2
    assert "another launcher" in capsys.readouterr().err


def test_a_port_in_use_is_refused_with_its_holder(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        assert main([*arguments, "--run-dir", str(tmp_path), "--http-port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"http port {port}" in said
    assert f"pid {os.getpid()}" in said
    assert "--http-port" in said


def test_a_wrong_world_size_is_refused_before_anything_starts(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--run-dir", str(tmp_path), "--ranks-per-host", "2"]) == 2
    said = capsys.readouterr().err
    assert "3 ranks" in said
    assert "the group has 2" in said
    assert not (tmp_path / "state.json").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--group-size", "2"], "--leader-address"),
        (["--group-size", "3", "--leader-address", "127.0.0.1", "--worker-index", "3"], "worker index 3"),
        (["--group-size", "3", "--leader-address", "127.0.0.1"], "openssl rand -hex 32"),
        (["--group-size", "2", "--leader-address", "127.0.0.1"], "do not divide evenly"),
        (["--model-repository", "/nonexistent"], "no model tensorrt_llm"),
        (["--engine", "/nonexistent"], "manifest.json"),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert main([*arguments, "--run-dir", str(tmp_path), *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("LWS_GROUP_SIZE", "two", "--group-size"), ("LWS_WORKER_INDEX", "", "--worker-index")],
)
def test_leader_worker_sets_variables_are_checked(
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    said: str,
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_ranks_inherit_the_environment_but_not_the_groups_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONFLEET_TOKEN", "secret")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    tree = ProcessTree()
    try:
        assert tree.directory.stat().st_mode & 0o777 == 0o700
        env = rank_host_environment(HOST, tree, "127.0.0.1")
    finally:
        asyncio.run(tree.end())
    assert not tree.directory.exists()
    assert "secret" not in env.values()
    assert env["NCCL_DEBUG"] == "INFO"
    told = HostSettings.from_json(env["TRITONFLEET_HOST"])
    assert (told.interface, told.tree_directory) == ("lo", str(tree.directory))


def test_back_off_grows_to_a_minute_and_starts_at_once() -> None:
    pauses = [back_off_seconds(failures) for failures in range(1, 12)]
    assert pauses[:5] == [0, 1, 2, 4, 8]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 60
