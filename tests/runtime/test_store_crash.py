"""A builder killed with SIGKILL at any instant leaves nothing, or a whole engine.

KILL9_ROUNDS sets the number of kills (200 by default).
"""

import contextlib
import os
import random
import signal
import statistics
import time
from pathlib import Path

import pytest

from runtime.files import file_lock
from runtime.spec import rank_files
from runtime.store import EngineStore
from tests.runtime.sample_engines import CPU_KEY, spec_of, write_engine

ROUNDS = int(os.environ.get("KILL9_ROUNDS", "200"))
RANK_BYTES = 120_000


def _build_in_child(root: Path, round_: int, go: int) -> None:
    spec = spec_of(CPU_KEY, dtype=f"round{round_}")
    os.read(go, 1)
    EngineStore(root).publish(spec, lambda out: write_engine(out, spec, RANK_BYTES))


def _start(root: Path, round_: int) -> tuple[int, int]:
    """A child that is about to build: (its pid, a pipe that starts it)."""
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(ready_write, b"r")
            _build_in_child(root, round_, go_read)
            os._exit(0)
        finally:
            os._exit(1)
    os.read(ready_read, 1)
    for descriptor in (ready_read, ready_write, go_read):
        os.close(descriptor)
    return child, go_write


def _build_seconds(root: Path, round_: int) -> float:
    """Duration of one whole build."""
    child, go = _start(root, round_)
    begun = time.monotonic()
    os.write(go, b"g")
    assert os.waitpid(child, 0)[1] == 0
    os.close(go)
    return time.monotonic() - begun


def test_kill_9_at_any_instant_never_publishes_half_an_engine(tmp_path: Path) -> None:
    chance = random.Random(9)
    store = EngineStore(tmp_path)
    durations: list[float] = []
    seconds = 0.0
    before_any_file = writing = sealed = published = finished = 0
    for round_ in range(ROUNDS):
        spec = spec_of(CPU_KEY, dtype=f"round{round_}")
        if round_ % 10 == 0:
            # Measured anew all along: other load on the machine would move the kills out of the build.
            durations += [_build_seconds(tmp_path, -10 * round_ - n) for n in range(1, 10 if round_ == 0 else 3)]
            seconds = 1.1 * statistics.median(durations[-9:])
        child, go = _start(tmp_path, round_)
        os.write(go, b"g")
        time.sleep(chance.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(go)
        finished += os.WIFEXITED(status)
        engine = tmp_path / "engines" / spec["engine"]
        if engine.exists():
            published += 1
            assert store.verify(engine.name) == []
            assert all((engine / name).stat().st_size == RANK_BYTES for name in rank_files(spec["key"]))
        elif any((tmp_path / "staging").glob(f"{spec['engine']}.*/manifest.json")):
            sealed += 1
        elif any((tmp_path / "staging").glob(f"{spec['engine']}.*")):
            writing += 1
        else:
            before_any_file += 1
    print(
        f"{ROUNDS} kills over {seconds * 1e3:.1f} ms: {before_any_file} before staging, {writing} while building, "
        f"{sealed} between manifest and rename, {published} after publication ({finished} after the builder's end)"
    )
    assert writing + sealed >= ROUNDS // 20, "too few kills landed inside a build for this test to mean anything"
    assert published >= ROUNDS // 20, "too few kills landed after a publication"

    # A dead builder of the same engine hinders nobody, and the collector clears what all of them left.
    for round_ in range(0, ROUNDS, max(1, ROUNDS // 20)):
        spec = spec_of(CPU_KEY, dtype=f"round{round_}")
        engine = store.publish(spec, lambda out, spec=spec: write_engine(out, spec, RANK_BYTES))
        assert store.verify(engine.name) == []
    store.gc(keep={info.id for info in store.list()}, older_than_s=0)
    assert list((tmp_path / "staging").iterdir()) == []
    ids = {info.id for info in store.list()}
    assert {path.name.split(".")[0] for path in (tmp_path / "locks").iterdir()} == ids


def test_kill_9_while_collecting_never_leaves_half_an_engine(tmp_path: Path) -> None:
    chance = random.Random(10)
    store = EngineStore(tmp_path)
    spec = spec_of(CPU_KEY)
    kept = removed = 0
    for _ in range(max(20, ROUNDS // 5)):
        engine = store.publish(spec, lambda out: write_engine(out, spec, RANK_BYTES))
        child = os.fork()
        if child == 0:
            try:
                store.gc(keep=set(), older_than_s=0)
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0, 0.004))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if engine.exists():
            kept += 1
            assert store.verify(engine.name) == []
        else:
            removed += 1
    assert kept
    assert removed
    store.gc(keep=set(), older_than_s=0)
    assert [path.name for folder in tmp_path.iterdir() for path in folder.iterdir()] == []


def test_everything_is_on_the_disk_before_the_rename_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves the page cache alone, a power cut does not: the order of flushes is what a test can hold."""
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def recorded_rename(source: Path, target: Path) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    spec = spec_of(CPU_KEY)
    engine = EngineStore(tmp_path).publish(spec, lambda out: write_engine(out, spec))
    before, after = steps[: steps.index("rename")], steps[steps.index("rename") + 1 :]
    flushed = [Path(step).relative_to(tmp_path / "staging").parts[1:] for step in before]
    files = {path.relative_to(engine).parts for path in engine.rglob("*")}
    assert set(flushed) == files | {()}
    assert [parts for parts in flushed if parts != ()][-1] == ("manifest.json",)
    assert flushed[-1] == ()
    assert after == [str(tmp_path / "engines")]


def test_the_next_builder_clears_what_a_dead_one_of_the_same_engine_left(tmp_path: Path) -> None:
    spec = spec_of(CPU_KEY)
    dead, other = (tmp_path / "staging" / f"{id_}.dead" for id_ in (spec["engine"], "0" * 16))
    for folder in (dead, other):
        folder.mkdir(parents=True)
    EngineStore(tmp_path).publish(spec, lambda out: write_engine(out, spec))
    assert list((tmp_path / "staging").iterdir()) == [other]


def test_a_lock_on_a_deleted_file_is_not_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held_by: list[bool] = []

    def delete_it_meanwhile() -> None:
        path.unlink()
        collector.close()

    with contextlib.ExitStack() as collector:
        collector.enter_context(file_lock(path, exclusive=True))
        builder = file_lock(path, exclusive=True, on_wait=delete_it_meanwhile)
        with builder, file_lock(path, exclusive=True, wait=False) as also:
            held_by.append(also)
    assert held_by == [False]
