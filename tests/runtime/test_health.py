"""The probe of pods that have no port to ask: against a real worker, a real leader, and what dead ones left."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.health import main
from runtime.rendezvous import Rendezvous, Timing
from runtime.state import started, write_state
from tests.ports import free_ports
from tests.runtime.launched import ROOT, Launched, publish_engine, until, write_model_repository

TOKEN = "a token that only this group's hosts have 0123456789"


def probe(run_dir: Path, *flags: str) -> tuple[int, str]:
    """What a kubelet's exec probe gets."""
    command = [sys.executable, "-m", "runtime.health", "--run-dir", str(run_dir), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=20)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    return done.returncode, done.stdout.strip()


def arguments(directory: Path, ranks: int) -> list[str]:
    engine = publish_engine(directory / "store", ranks)
    return ["--model-repository", str(write_model_repository(directory / "repository")), "--engine", str(engine)]


def test_a_worker_is_alive_while_it_joins_and_ready_once_it_has(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    flags = ["--leader-address", "127.0.0.1", "--group-size", "2", "--worker-index", "1"]
    flags += ["--rendezvous-port", str(port), "--dead-after-seconds", "2", "--heartbeat-seconds", "0.3"]
    worker = Launched(tmp_path / "worker", [*arguments(tmp_path, 2), *flags], {"TRITONFLEET_TOKEN": TOKEN})
    try:
        until(lambda: worker.state().get("reason"), "the worker finds no leader")
        assert probe(worker.run_dir) == (0, f"worker 1: joining (no leader answers at 127.0.0.1:{port})")
        status, why = probe(worker.run_dir, "--ready")
        assert status == 1
        assert why.startswith("not ready: worker 1: joining")
        asyncio.run(lead(port, worker))
        until(lambda: worker.state()["phase"] == "joining", "the worker noticed that its leader left")
        assert probe(worker.run_dir)[0] == 0
        assert worker.stop() == 0
        assert worker.state()["phase"] == "stopped"
        assert probe(worker.run_dir)[0] == 1
    finally:
        worker.destroy()


async def lead(port: int, worker: Launched) -> None:
    """A leader that welcomes the worker, has it probed, and goes."""
    timing = Timing(interval=0.3, dead_after=2)
    rendezvous = Rendezvous(TOKEN.encode(), 2, judge=lambda _: None, log=print, timing=timing)
    await rendezvous.listen("127.0.0.1", port)
    async with asyncio.timeout(20):
        await rendezvous.joined.get()
        while worker.state()["phase"] != "joined":
            await asyncio.sleep(0.05)
        assert await asyncio.to_thread(probe, worker.run_dir, "--ready") == (0, "worker 1: joined")
    await rendezvous.close()


def test_a_leader_is_alive_while_it_loads_and_ready_when_its_group_answers(tmp_path: Path) -> None:
    ports = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), free_ports(3), strict=True)]
    leader = Launched(tmp_path / "leader", [*arguments(tmp_path, 1), *ports])
    try:
        until(lambda: leader.state()["phase"], "the leader says what it does")
        assert probe(leader.run_dir)[0] == 0
        leader.ready()
        assert probe(leader.run_dir, "--ready") == (0, "leader, generation 1: ready")
        leader.processes()
        leader.process.kill()
        leader.process.wait()
        pid = leader.process.pid
        assert probe(leader.run_dir) == (1, f"the launcher (pid {pid}) is gone; it was leader, generation 1: ready")
    finally:
        leader.destroy()


def test_what_a_dead_launcher_left_is_not_taken_for_a_living_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a container each launcher is process 1, so the next one has the pid that the old state names."""
    assert main(["--run-dir", str(tmp_path)]) == 1
    assert "no launcher has said anything" in capsys.readouterr().out
    write_state(tmp_path, {"phase": "joined", "worker": 1, "reason": None})
    assert main(["--run-dir", str(tmp_path), "--ready"]) == 0
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["launcher"] == os.getpid()
    state["launcher_started"] -= 1
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert main(["--run-dir", str(tmp_path)]) == 1
    assert "is gone" in capsys.readouterr().out


def test_a_zombie_does_not_live() -> None:
    child = subprocess.Popen(["true"])
    until(lambda: started(child.pid) is None, "the child ended")
    child.wait()
    assert started(os.getpid()) is not None
