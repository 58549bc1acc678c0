"""The engine store: content-addressed engines that are either whole or not there.

    <root>/engines/<id>/    published engines; manifest.json names every file with its size and sha256
    <root>/staging/         builds under way, what dead builders left, and what is being deleted
    <root>/locks/           <id>.build (one builder at a time), <id>.lease (shared by the groups that run the engine)

A build happens in staging on the same file system. Its files are flushed, the manifest is written last, and one
rename publishes the folder: a builder killed at any instant leaves either nothing under `engines/` or a whole engine.
Locks only save work (a second builder waits and reuses) and keep the collector off what is in use; where two builders
do reach the rename, it fails for the second, which takes the first one's engine.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import Refusal
from runtime.files import (
    file_lock,
    human,
    is_disk_full,
    make_writable,
    regular_files,
    remove_tree,
    sha256,
    sync,
    tree_bytes,
)
from runtime.host import HostFacts, require_host
from runtime.manifest import MANIFEST, check_sizes, read_manifest, unloadable, write_manifest
from runtime.spec import Spec, check_spec, rank_files, world_size


@dataclass(frozen=True)
class EngineInfo:
    """One folder of the store. `problem` says why it cannot be loaded, and `key` is then empty if unreadable."""

    id: str
    path: Path
    key: dict[str, Any]
    bytes: int
    in_use: bool
    problem: str | None


@dataclass(frozen=True)
class Removal:
    """Something `gc` removed, or would remove."""

    path: Path
    bytes: int
    why: str


class EngineStore:
    """Engines under `root`, shared by any number of builders and groups on any number of hosts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._engines = root / "engines"
        self._staging = root / "staging"
        self._locks = root / "locks"

    def publish(
        self,
        spec: Spec,
        build: Callable[[Path], None],
        *,
        progress: Callable[[str], None] = lambda _: None,
        at_least_bytes: int = 0,
    ) -> Path:
        """The engine's folder, built by `build(staging)` if the store does not have it yet.

        `at_least_bytes` is a lower bound of what the build writes: less free space than that is refused at once.
        """
        check_spec(spec, "the engine spec")
        engine = self._engines / spec["engine"]
        if _is_complete(engine):
            return engine
        self._make_folders()

        def waiting() -> None:
            progress(f"another process is building engine {engine.name}; waiting for it")

        with file_lock(self._lock(engine.name, "build"), exclusive=True, on_wait=waiting) as alone:
            if _is_complete(engine):
                return engine
            if alone:
                for leftover in self._staging.glob(f"{engine.name}.*"):
                    remove_tree(leftover, self._staging)
            # It exists from now on, for groups that see the store read-only; its time is the engine's last use.
            self._lock(engine.name, "lease").touch()
            return self._build(spec, build, engine, at_least_bytes)

    def open(self, id_or_prefix: str) -> Path:
        """The folder of the one engine whose id starts with `id_or_prefix`; raises Refusal for none or several."""
        names = [path.name for path in self._folders()]
        matches = [name for name in names if id_or_prefix and name.startswith(id_or_prefix)]
        if len(matches) != 1:
            found = f"several engines: {', '.join(matches)}" if matches else "no engine"
            raise Refusal(
                f"{id_or_prefix!r} names {found} in {self.root}",
                "there is no telling which engine is meant",
                f"use one of: {', '.join(names) or 'none, the store is empty; build one first'}",
            )
        return self._engines / matches[0]

    def list(self) -> Sequence[EngineInfo]:
        """Every engine, by id. Sizes are checked, checksums are not: `verify` does that."""
        return [self._info(path) for path in self._folders()]

    def verify(self, id_or_prefix: str, on_bytes: Callable[[int], None] | None = None) -> Sequence[str]:
        """Everything wrong with an engine, by reading all of it; empty when it is what was published."""
        engine = self.open(id_or_prefix)
        try:
            manifest = read_manifest(engine)
        except Refusal as refusal:
            return [refusal.what]
        problems: list[str] = []
        there = regular_files(engine)
        for name, entry in manifest["files"].items():
            path = there.pop(name, None)
            if path is None:
                problems.append(f"{name} is missing")
            elif path.stat().st_size != entry["bytes"]:
                problems.append(f"{name} has {path.stat().st_size} bytes, not {entry['bytes']}")
            elif sha256(path, on_bytes) != entry["sha256"]:
                problems.append(f"{name} has other content than was published (sha256 differs)")
        problems += [f"{name} is not part of the engine" for name in there if name != MANIFEST]
        return problems

    @contextlib.contextmanager
    def lease(self, id_or_prefix: str) -> Generator[Path]:
        """Hold an engine: `gc` keeps it until every holder has let go or has died."""
        engine = self.open(id_or_prefix)
        lock = self._lock(engine.name, "lease")
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(file_lock(lock, exclusive=False))
            except OSError as error:
                raise Refusal(
                    f"engine {engine.name} cannot be held: {lock}: {error.strerror}",
                    "`engines gc` could remove it while a group runs it",
                    "mount the store writable here, or build the engine through the store, which makes that file",
                ) from None
            if not engine.is_dir():
                raise Refusal(
                    f"engine {engine.name} was removed just now",
                    "the group would have loaded half an engine",
                    "build it again",
                )
            # A read-only mount cannot record the use.
            with contextlib.suppress(OSError):
                os.utime(lock)
            yield engine

    def gc(self, keep: set[str], older_than_s: float, dry_run: bool = False) -> Sequence[Removal]:
        """Remove what dead builders left, and engines not in `keep`, held by no group and unused for `older_than_s`."""
        removals: list[Removal] = []
        if not self.root.is_dir():
            return removals
        self._make_folders()
        for path in sorted(self._staging.iterdir()):
            id_ = path.name.split(".")[0]
            with file_lock(self._lock(id_, "build"), exclusive=True, wait=False) as dead:
                if dead:
                    removals.append(Removal(path, tree_bytes(path), "left by a build that died"))
                    if not dry_run:
                        remove_tree(path, self._staging)
        for path in self._folders():
            if path.name not in keep:
                removals += self._collect(path, older_than_s, dry_run)
        if not dry_run:
            self._drop_idle_locks()
        return removals

    def _collect(self, engine: Path, older_than_s: float, dry_run: bool) -> Sequence[Removal]:
        idle_s = time.time() - self._last_use(engine)
        if idle_s < older_than_s:
            return []
        with (
            file_lock(self._lock(engine.name, "build"), exclusive=True, wait=False) as no_builder,
            file_lock(self._lock(engine.name, "lease"), exclusive=True, wait=False) as no_group,
        ):
            if not no_builder or not no_group:
                return []
            removal = Removal(engine, tree_bytes(engine), f"unused for {idle_s / 86400:.1f} days")
            if not dry_run:
                remove_tree(engine, self._staging)
            return [removal]

    def _last_use(self, engine: Path) -> float:
        times: list[float] = []
        for path in (engine, engine / MANIFEST, self._lock(engine.name, "lease")):
            with contextlib.suppress(FileNotFoundError):
                times.append(path.stat().st_mtime)
        return max(times, default=0.0)

    def _drop_idle_locks(self) -> None:
        for path in self._locks.iterdir():
            id_ = path.name.split(".")[0]
            if not (self._engines / id_).exists() and not any(self._staging.glob(f"{id_}.*")):
                with file_lock(path, exclusive=True, wait=False) as idle:
                    if idle:
                        path.unlink()

    def _build(self, spec: Spec, build: Callable[[Path], None], engine: Path, at_least_bytes: int) -> Path:
        staging = self._staging / f"{engine.name}.{os.urandom(4).hex()}"
        free = shutil.disk_usage(self.root).free
        if free < at_least_bytes:
            raise _disk_full(self.root, at_least_bytes, free)
        try:
            staging.mkdir()
            build(staging)
            write_manifest(staging, spec)
            self._promote(staging, engine)
        except BaseException as error:
            # BaseException: an interrupted build leaves nothing behind either.
            remove_tree(staging, self._staging)
            if is_disk_full(error):
                raise _disk_full(self.root, max(at_least_bytes, free), free) from error
            raise
        return engine

    def _promote(self, staging: Path, engine: Path) -> None:
        while True:
            try:
                os.rename(staging, engine)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if _is_complete(engine):
                remove_tree(staging, self._staging)
                break
            # Someone damaged the published engine: set it aside and publish the new one.
            remove_tree(engine, self._staging)
        sync(self._engines)

    def _info(self, path: Path) -> EngineInfo:
        key: dict[str, Any] = {}
        problem = None
        try:
            manifest = read_manifest(path)
            key = manifest["key"]
            check_sizes(path, manifest)
        except Refusal as refusal:
            problem = refusal.what
        return EngineInfo(path.name, path, key, tree_bytes(path), self._is_leased(path.name), problem)

    def _is_leased(self, id_: str) -> bool:
        lease = self._lock(id_, "lease")
        if not lease.exists():
            return False
        try:
            with file_lock(lease, exclusive=True, wait=False) as idle:
                return not idle
        except OSError:
            # A reader without write access cannot probe; what is removed hangs on the collector's own probe alone.
            return False

    def _folders(self) -> Sequence[Path]:
        if not self._engines.is_dir():
            return []
        return sorted(path for path in self._engines.iterdir() if re.fullmatch("[0-9a-f]{16}", path.name))

    def _lock(self, id_: str, purpose: str) -> Path:
        return self._locks / f"{id_}.{purpose}"

    def _make_folders(self) -> None:
        try:
            make_writable(self._engines, self._staging, self._locks)
        except OSError as error:
            raise Refusal(
                f"the engine store {self.root} cannot be written: {error.strerror}",
                "nothing could be built or cleaned up",
                "choose a store folder that this user may write",
            ) from error


def check_loadable(engine_dir: Path, *, world_size: int, host: HostFacts) -> dict[str, Any]:
    """The engine's manifest, once everything that can be known without loading it says that it will load here.

    Checks the manifest, the key's hash, every file's size, one file per rank, the mapping, and the host's GPUs and
    versions against the key. Checksums are left to `EngineStore.verify`: an engine can be hundreds of GB.
    """
    manifest = read_manifest(engine_dir)
    key = manifest["key"]
    check_sizes(engine_dir, manifest)
    ranks = _world_size(key)
    if ranks != world_size:
        mapping = key["mapping"]
        raise Refusal(
            f"engine {manifest['engine']} needs {ranks} ranks (TP {mapping['tensor_parallel']} x PP "
            f"{mapping['pipeline_parallel']}), and the group has {world_size}",
            "the ranks would wait for each other for ever, or the runtime would abort at start",
            f"start the group with {ranks} ranks, or build the engine for {world_size}",
        )
    for name in rank_files(key):
        if name not in manifest["files"]:
            raise unloadable(engine_dir, f"it has no {name}", "one rank would have nothing to load")
    built_for = _config_world_size(engine_dir)
    if built_for != ranks:
        raise unloadable(
            engine_dir, f"its config.json says world size {built_for}, its key {ranks}", "the runtime would abort"
        )
    require_host(key, host, f"engine {manifest['engine']}")
    return manifest


def _is_complete(engine: Path) -> bool:
    try:
        check_sizes(engine, read_manifest(engine))
    except Refusal:
        return False
    return True


def _config_world_size(engine_dir: Path) -> int | None:
    try:
        config = json.loads((engine_dir / "config.json").read_text(encoding="utf-8"))
        return int(config["pretrained_config"]["mapping"]["world_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


_world_size = world_size  # `check_loadable` has a parameter of that name


def _disk_full(root: Path, needed: int, free: int) -> Refusal:
    return Refusal(
        f"the disk of the engine store {root} is too small: the build needs more than {human(needed)}, "
        f"{human(free)} were free",
        "the build was given up and what it had written was removed; no engine was published",
        "free space (`engines gc` removes engines that nobody uses), or point --store at a larger disk",
    )
