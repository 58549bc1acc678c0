"""Fetch a checkpoint from the Hugging Face Hub, an object store or a folder.

    python -m runtime.fetch --source SOURCE --revision REVISION --into DIR [--anonymous]
                            [--cache DIR [--cache-gib N]]

    DIR/<id>/             a whole checkpoint; id: the first 16 hexadecimal digits of sha256("SOURCE@REVISION")
    DIR/staging/<id>/     what is being fetched; it stays when a fetch is stopped, and the next one goes on from it
    DIR/locks/<id>.fetch  one fetcher at a time; others wait, and find the checkpoint there

Sources are hf://ORG/NAME (runtime/hub.py), and s3://, gs://, az:// and file:// (runtime/object_store.py): it is said
there what a revision is, whose credentials are used, and which checksums are compared before one rename publishes the
folder. Only what a build reads is fetched: safetensors, configuration and tokenizer. With --cache, a folder on the
node's own disk, files are fetched into it first, once for all pods of the node, and copied from there
(runtime/blob_cache.py). Prints the checkpoint's folder; progress goes to standard error. A token for gated repositories
is read from HF_TOKEN, or from the file that HF_TOKEN_PATH names.

Exit status: 0 fetched or already there, 1 refused, 2 wrong usage.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, Protocol

from runtime.blob_cache import BlobCache, link_or_copy
from runtime.checkpoint_files import SourceFile, is_sound, wanted
from runtime.errors import Refusal
from runtime.files import file_lock, human, make_writable, remove_tree, sync, sync_tree, tree_bytes
from runtime.hub import Hub
from runtime.object_store import SCHEMES, ObjectStore

Progress = Callable[[str], None]

RECORD = "fetched.json"
PROGRESS_SECONDS = 10.0
HASHERS = 4  # files hashed at once


class Source(Protocol):
    """Where a checkpoint comes from. What it raises within `refusals` becomes a Refusal."""

    def refusals(self, into: Path) -> contextlib.AbstractContextManager[None]: ...
    def files(self, staging: Path, progress: Progress) -> list[SourceFile]: ...
    def rounds(self, files: Sequence[SourceFile]) -> Sequence[Sequence[SourceFile]]: ...
    def download(self, staging: Path, files: Sequence[SourceFile]) -> None: ...


def fetch(
    source: str,
    revision: str,
    into: Path,
    progress: Progress = lambda _: None,
    cache: Path | None = None,
    cache_bytes: int | None = None,
    *,
    anonymous: bool = False,
) -> Path:
    """The checkpoint's folder below `into`, fetched unless it is there already; raises Refusal."""
    origin = _origin(source, revision, anonymous)
    folder = into / folder_name(source, revision)
    if _is_whole(folder):
        return folder
    _make_folders(into)
    blobs = _cache(cache, cache_bytes) if cache else None
    with contextlib.ExitStack() as held:
        held.enter_context(origin.refusals(blobs.folder if blobs else into))
        staging = held.enter_context(_alone(into, folder.name, source, progress))
        if _is_whole(folder):
            return folder
        near = held.enter_context(_alone(blobs.folder, folder.name, source, progress)) if blobs else staging
        files = _fetched(origin, source, near, progress, blobs)
        if blobs:
            _copy(near, staging, files)
            blobs.keep(near, files)
        _publish(staging, folder, {"source": source, "revision": revision}, files)
        if blobs:
            shutil.rmtree(near)
    return folder


def folder_name(source: str, revision: str) -> str:
    """The name of a checkpoint's folder; `planner.sources.checkpoint_folder` has the same hash."""
    return hashlib.sha256(f"{source}@{revision}".encode()).hexdigest()[:16]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime.fetch", description="Fetch a checkpoint.")
    parser.add_argument(
        "--source", required=True, help="hf://ORG/NAME, s3://BUCKET/PREFIX, gs://…, az://…, file:///FOLDER"
    )
    parser.add_argument("--revision", required=True, help="commit hash, or what runtime/object_store.py says")
    parser.add_argument("--into", type=Path, required=True, help="folder of fetched checkpoints")
    parser.add_argument("--anonymous", action="store_true", help="read a public bucket, without credentials")
    parser.add_argument("--cache", type=Path, help="folder on the node's own disk")
    parser.add_argument("--cache-gib", type=int, help="most that may lie there; no bound otherwise")
    args = parser.parse_args(arguments)
    most = None if args.cache_gib is None else args.cache_gib << 30
    previous = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        print(fetch(args.source, args.revision, args.into, _say, args.cache, most, anonymous=args.anonymous))
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _leave(number: int, _: object) -> NoReturn:
    # At once: Python's own end would wait for gigabytes under way in threads, and what is complete is kept anyway.
    _say("stopped; the next fetch goes on from here")
    os._exit(128 + number)


def _origin(source: str, revision: str, anonymous: bool) -> Source:
    named = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)", source)
    if named:
        return Hub(named[1], revision)
    if source.startswith(SCHEMES):
        return ObjectStore(source, revision, anonymous=anonymous)
    raise Refusal(
        f"{source} is not hf://ORG/NAME, {', '.join(SCHEMES)}",
        "there is nothing to fetch from",
        "give the plan's model source",
    )


@contextlib.contextmanager
def _alone(root: Path, name: str, source: str, progress: Progress) -> Generator[Path]:
    """The staging folder of the checkpoint below `root`, held by one fetcher at a time."""

    def waiting() -> None:
        progress(f"another process is fetching {source}; waiting for it")

    with file_lock(root / "locks" / f"{name}.fetch", exclusive=True, on_wait=waiting) as alone:
        # Where the file system has no locks, two fetchers must not share a staging folder.
        staging = root / "staging" / (name if alone else f"{name}.{os.urandom(4).hex()}")
        staging.mkdir(exist_ok=True)
        yield staging


def _fetched(
    origin: Source, source: str, staging: Path, progress: Progress, blobs: BlobCache | None
) -> list[SourceFile]:
    """What a build reads of the source, whole in `staging` and compared with the source's checksums."""
    found = {file.path: file for file in origin.files(staging, progress)}
    files = [found[path] for path in wanted(found)]
    if not any(file.path.endswith(".safetensors") for file in files):
        raise Refusal(
            f"{source} has no *.safetensors at its top",
            "there are no weights to build from; pickled ones (.bin, .pth) run code when loaded and are not fetched",
            "choose a source or a revision with safetensors",
        )
    if blobs:
        blobs.seed(staging, files)
    _require_space(staging, files)
    with _reporting(staging, sum(file.bytes for file in files), progress):
        for some in origin.rounds(files):
            origin.download(staging, some)
            progress(f"comparing {len(some)} files with the source's checksums")
            _refuse_damaged(staging, some, blobs)
    return files


def _make_folders(into: Path) -> None:
    try:
        make_writable(into / "staging", into / "locks")
    except OSError as error:
        raise Refusal(
            f"the checkpoints' folder {into} cannot be written: {error.strerror}",
            "nothing could be fetched",
            "mount the shared file system writable, or point --into at a folder that this user may write",
        ) from None


def _cache(folder: Path, most_bytes: int | None) -> BlobCache:
    try:
        return BlobCache(folder, most_bytes)
    except OSError as error:
        raise Refusal(
            f"the cache's folder {folder} cannot be written: {error.strerror}",
            "nothing could be fetched",
            "point --cache at a folder of the node's disk that this user may write, or leave it out",
        ) from None


def _copy(near: Path, staging: Path, files: Sequence[SourceFile]) -> None:
    _require_space(staging, [file for file in files if near.stat().st_dev != staging.stat().st_dev])
    for file in files:
        (staging / file.path).unlink(missing_ok=True)
        link_or_copy(near / file.path, staging / file.path)


def _is_whole(folder: Path) -> bool:
    """Whether every file of the record is there in its size. The record is written before the rename."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _require_space(staging: Path, files: Sequence[SourceFile]) -> None:
    needed = sum(file.bytes for file in files) - tree_bytes(staging)
    free = shutil.disk_usage(staging).free
    if free < needed:
        raise Refusal(
            f"the disk of {staging.parents[1]} is too small: {human(needed)} to fetch, {human(free)} free",
            "the fetch would end in the middle; nothing more was fetched",
            "free space, or give a larger file system",
        )


@contextlib.contextmanager
def _reporting(staging: Path, total: int, progress: Progress) -> Generator[None]:
    """Tells now and then how much is there, whichever way the library fetches it."""
    over = threading.Event()

    def report() -> None:
        before, then = tree_bytes(staging), time.monotonic()
        progress(f"fetching {human(total)}, of which {human(min(before, total))} are here")
        while not over.wait(PROGRESS_SECONDS):
            here, now = tree_bytes(staging), time.monotonic()
            speed = max(0.0, (here - before) / (now - then))
            progress(f"{human(min(here, total))} of {human(total)}, {human(speed)}/s")
            before, then = here, now

    reporter = threading.Thread(target=report, name="progress", daemon=True)
    reporter.start()
    try:
        yield
    finally:
        over.set()
        reporter.join()


def _refuse_damaged(staging: Path, files: Sequence[SourceFile], blobs: BlobCache | None) -> None:
    with ThreadPoolExecutor(HASHERS) as pool:
        sound = pool.map(is_sound, [staging / file.path for file in files], files)
        damaged = [file for file, sound in zip(files, sound, strict=True) if not sound]
    for file in damaged:
        (staging / file.path).unlink(missing_ok=True)
        if blobs:
            blobs.forget(file)
    if damaged:
        raise Refusal(
            f"{len(damaged)} of {len(files)} fetched files are not what the source has: "
            + ", ".join(file.path for file in damaged[:3]),
            "an engine built from them would compute nonsense; they were removed and nothing was published",
            "run it again: it fetches those anew; where the bucket's encryption keys (SSE-KMS, CMEK) make its ETags no "
            "checksums, put a SHA256SUMS beside the files",
        )


def _publish(staging: Path, folder: Path, origin: dict[str, str], files: Sequence[SourceFile]) -> None:
    # Bookkeeping of the download, and files of a longer list that an earlier version of this program wanted.
    for path in staging.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in {file.path for file in files}:
            path.unlink()
    record = origin | {"files": {file.path: file.bytes for file in files}}
    (staging / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sync_tree(staging)
    if _is_whole(folder):  # another fetcher's, where the file system has no locks
        remove_tree(staging, staging.parent)
        return
    remove_tree(folder, staging.parent)  # where there is one, someone damaged it
    os.rename(staging, folder)
    sync(folder.parent)


if __name__ == "__main__":
    sys.exit(main())
