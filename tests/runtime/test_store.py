import errno
import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import Refusal
from runtime.manifest import read_manifest
from runtime.spec import Spec, engine_id
from runtime.store import EngineStore
from tests.runtime.sample_engines import CPU_KEY, GPU_KEY, spec_of, write_engine

SPEC = spec_of(CPU_KEY)


def publish(store: EngineStore, spec: Spec = SPEC) -> Path:
    return store.publish(spec, lambda out: write_engine(out, spec))


def staged(store: EngineStore) -> list[str]:
    return sorted(path.name for path in (store.root / "staging").iterdir())


def test_a_published_engine_has_the_shape_that_everyone_reads(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    engine = publish(store)
    assert engine == tmp_path / "engines" / SPEC["engine"]
    manifest = json.loads((engine / "manifest.json").read_text())
    assert (manifest["engine"], manifest["key"]) == (SPEC["engine"], SPEC["key"])
    assert set(manifest["files"]) == {
        "config.json",
        "rank0.safetensors",
        "rank1.safetensors",
        "rank2.safetensors",
        "tokenizer/tokenizer.json",
    }
    assert manifest["files"]["rank1.safetensors"]["bytes"] == 3000
    assert store.verify(SPEC["engine"]) == []
    assert staged(store) == []
    assert engine.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_second_publish_of_an_id_builds_nothing(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    first = publish(store)

    def must_not_run(out: Path) -> None:
        raise AssertionError(f"built again in {out}")

    assert store.publish(SPEC, must_not_run) == first


def test_a_failing_build_leaves_nothing_and_its_error_is_kept(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)

    def fails(out: Path) -> None:
        (out / "rank0.safetensors").write_bytes(b"half")
        raise RuntimeError("out of GPU memory")

    with pytest.raises(RuntimeError, match="out of GPU memory"):
        store.publish(SPEC, fails)
    assert staged(store) == []
    assert list((tmp_path / "engines").iterdir()) == []
    assert store.verify(publish(store).name) == []


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"engine": "0" * 16, "key": CPU_KEY}, "not the hash"),
        ({"engine": SPEC["engine"], "key": CPU_KEY | {"dtype": "float16"}}, "not the hash"),
        ({"engine": "x"}, "needs `engine`"),
        (spec_of({**CPU_KEY, "backend": "cuda"}), "backend"),
        (spec_of(CPU_KEY, mapping={"tensor_parallel": 0}), "below 1"),
        (spec_of(CPU_KEY, mapping={"tensor_parallel": True}), "tensor_parallel"),
        (spec_of({k: v for k, v in CPU_KEY.items() if k != "target"}), "target"),
    ],
)
def test_a_spec_that_does_not_hold_is_refused_before_anything_is_written(
    tmp_path: Path, spec: dict[str, Any], word: str
) -> None:
    store = EngineStore(tmp_path / "store")
    with pytest.raises(Refusal, match=word):
        publish(store, spec)
    assert not (tmp_path / "store").exists()


def test_ids_agree_with_the_planner() -> None:
    engine_key = pytest.importorskip("planner.engine_key")
    assert engine_key.key_id(GPU_KEY) == engine_id(GPU_KEY)


def test_a_damaged_engine_is_replaced_by_the_next_build(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    engine = publish(store)
    (engine / "rank1.safetensors").write_bytes(b"short")
    assert publish(store) == engine
    assert store.verify(engine.name) == []
    assert staged(store) == []


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda e: (e / "rank0.safetensors").write_bytes(b"\1" * 2999 + b"\0"), "other content"),
    (lambda e: (e / "rank0.safetensors").write_bytes(b"\1"), "has 1 bytes, not 3000"),
    (lambda e: (e / "rank0.safetensors").unlink(), "rank0.safetensors is missing"),
    (lambda e: (e / "note.txt").write_text("hello"), "note.txt is not part of the engine"),
    (lambda e: (e / "manifest.json").write_text("{"), "manifest.json cannot be read"),
    (lambda e: (e / "manifest.json").unlink(), "has no manifest.json"),
]


@pytest.mark.parametrize(("damage", "problem"), DAMAGE)
def test_verify_finds_every_kind_of_damage(tmp_path: Path, damage: Callable[[Path], object], problem: str) -> None:
    store = EngineStore(tmp_path)
    engine = publish(store)
    damage(engine)
    (found,) = store.verify(engine.name)
    assert problem in found


def test_verify_reports_every_byte_it_reads(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    engine = publish(store)
    read: list[int] = []
    store.verify(engine.name, read.append)
    assert sum(read) == sum(entry["bytes"] for entry in read_manifest(engine)["files"].values())


def test_open_takes_a_prefix_and_refuses_what_is_not_one_engine(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    engine = publish(store)
    assert store.open(engine.name[:6]) == engine
    for wrong in ("", "zz", "../engines", engine.name + "0"):
        with pytest.raises(Refusal, match="no engine"):
            store.open(wrong)
    # Ids spread over 16 first digits: among 17 engines two share one.
    others = [spec_of(CPU_KEY, dtype=f"float{n}") for n in range(16)]
    for spec in others:
        publish(store, spec)
    digits = [spec["engine"][0] for spec in (SPEC, *others)]
    shared = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(Refusal, match="several engines"):
        store.open(shared)


def _publish_in_process(root: Path, barrier: Any, counter: Path, results: Any) -> None:
    store = EngineStore(root)

    def build(out: Path) -> None:
        with counter.open("a") as stream:
            stream.write("x")
        time.sleep(0.05)
        write_engine(out, SPEC)

    barrier.wait()
    results.put(str(store.publish(SPEC, build)))


def _race(tmp_path: Path, processes: int) -> tuple[list[str], int]:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(processes), context.Queue()
    counter = tmp_path / "builds"
    arguments = (tmp_path / "store", barrier, counter, results)
    children = [context.Process(target=_publish_in_process, args=arguments) for _ in range(processes)]
    for child in children:
        child.start()
    paths = [results.get(timeout=30) for _ in children]
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    return paths, counter.stat().st_size


def test_eight_builders_of_one_engine_build_it_once(tmp_path: Path) -> None:
    paths, builds = _race(tmp_path, 8)
    assert set(paths) == {str(tmp_path / "store" / "engines" / SPEC["engine"])}
    assert builds == 1


def test_without_locks_every_builder_gets_the_one_whole_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("runtime.files.fcntl.flock", no_locks)
    paths, builds = _race(tmp_path, 4)
    assert len(set(paths)) == 1
    assert builds > 1, "the builders never reached the rename together"
    store = EngineStore(tmp_path / "store")
    assert store.verify(SPEC["engine"]) == []
    assert staged(store) == []


def test_the_second_of_two_builders_at_the_rename_takes_the_first_ones_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("runtime.files.fcntl.flock", no_locks)
    store, first = EngineStore(tmp_path), list[int]()

    def overtaken(out: Path) -> None:
        write_engine(out, SPEC)
        first.append(publish(store).stat().st_ino)

    assert store.publish(SPEC, overtaken).stat().st_ino == first[0]
    assert staged(store) == []


def test_gc_keeps_what_a_group_runs_and_what_is_named_and_what_is_recent(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    leased, kept, old = (publish(store, spec_of(CPU_KEY, dtype=name)).name for name in ("a", "b", "c"))
    assert store.gc(keep=set(), older_than_s=3600) == []
    with store.lease(leased) as path:
        assert path.name == leased
        assert {info.id for info in store.list() if info.in_use} == {leased}
        planned = store.gc(keep={kept}, older_than_s=0, dry_run=True)
        assert [removal.path.name for removal in planned] == [old]
        assert planned[0].bytes > 9000
        assert (tmp_path / "engines" / old).is_dir()
        assert [removal.path.name for removal in store.gc(keep={kept}, older_than_s=0)] == [old]
    assert {info.id for info in store.list()} == {leased, kept}
    assert {path.name.split(".")[0] for path in (tmp_path / "locks").iterdir()} == {leased, kept}
    assert staged(store) == []


def test_an_engine_counts_as_used_while_groups_come_and_go(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    engine = publish(store)
    week_ago = time.time() - 7 * 86400
    for path in (engine, engine / "manifest.json", tmp_path / "locks" / f"{engine.name}.lease"):
        os.utime(path, (week_ago, week_ago))
    store.list()
    assert len(store.gc(keep=set(), older_than_s=6 * 86400, dry_run=True)) == 1
    with store.lease(engine.name):
        pass
    assert store.gc(keep=set(), older_than_s=6 * 86400, dry_run=True) == []


def test_a_lease_ends_with_its_process(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    engine = publish(store)
    child = os.fork()
    if child == 0:
        with store.lease(engine.name):
            (tmp_path / "leased").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "leased").exists():
        time.sleep(0.005)
    assert store.gc(keep=set(), older_than_s=0) == []
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert len(store.gc(keep=set(), older_than_s=0)) == 1


def test_gc_leaves_a_live_builders_staging_alone(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    seen: list[int] = []

    def build(out: Path) -> None:
        write_engine(out, SPEC)
        seen.append(len(EngineStore(tmp_path).gc(keep=set(), older_than_s=0)))

    engine = store.publish(SPEC, build)
    assert seen == [0]
    assert store.verify(engine.name) == []


def test_gc_of_a_store_that_is_not_there_does_nothing(tmp_path: Path) -> None:
    assert EngineStore(tmp_path / "none").gc(keep=set(), older_than_s=0) == []
    assert not (tmp_path / "none").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A tmpfs of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_refusal_and_leaves_the_store_clean(small_disk: Path) -> None:
    store = EngineStore(small_disk)
    with pytest.raises(Refusal, match=r"needs more than 1\.0 MiB, 1\.0 MiB were free"):
        store.publish(SPEC, lambda out: write_engine(out, SPEC, rank_bytes=600_000))
    assert staged(store) == []
    assert list((small_disk / "engines").iterdir()) == []
    assert store.verify(publish(store).name) == []


def test_a_full_disk_is_recognised_where_a_library_wraps_the_error(small_disk: Path) -> None:
    np = pytest.importorskip("numpy")
    save_file = pytest.importorskip("safetensors.numpy").save_file

    def build(out: Path) -> None:
        save_file({"w": np.zeros(2_000_000, np.float32)}, out / "rank0.safetensors")

    with pytest.raises(Refusal, match="too small"):
        EngineStore(small_disk).publish(SPEC, build)


def test_too_little_space_is_refused_before_the_build(small_disk: Path) -> None:
    store = EngineStore(small_disk)

    def must_not_run(out: Path) -> None:
        raise AssertionError(out)

    with pytest.raises(Refusal, match=r"needs more than 2\.0 MiB"):
        store.publish(SPEC, must_not_run, at_least_bytes=2 << 20)


def test_a_read_only_store_serves_and_is_not_cleaned(small_disk: Path) -> None:
    store = EngineStore(small_disk)
    engine = publish(store)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert publish(store) == engine
    with store.lease(engine.name) as leased:
        assert leased == engine
    with pytest.raises(Refusal, match="cannot be written: it is read-only here"):
        store.gc(keep=set(), older_than_s=0)
    with pytest.raises(Refusal, match="cannot be written: it is read-only here"):
        publish(store, spec_of(CPU_KEY, dtype="float16"))
    assert [info.in_use for info in store.list()] == [False]


def test_a_lease_that_cannot_be_held_is_refused(small_disk: Path) -> None:
    store = EngineStore(small_disk)
    engine = publish(store)
    (small_disk / "locks" / f"{engine.name}.lease").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(Refusal, match="cannot be held"), store.lease(engine.name):
        pass


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match="cannot be written"):
        publish(EngineStore(tmp_path / "file"))
