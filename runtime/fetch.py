"""Fetch a checkpoint from the Hugging Face Hub.

    python -m runtime.fetch --source hf://ORG/NAME --revision COMMIT --into DIR

    DIR/<id>/             a whole checkpoint; id: the first 16 hexadecimal digits of sha256("SOURCE@REVISION")
    DIR/staging/<id>/     what is being fetched; it stays when a fetch is stopped, and the next one goes on from it
    DIR/locks/<id>.fetch  one fetcher at a time; others wait, and find the checkpoint there

Only what a build reads is fetched: safetensors, configuration and tokenizer. Every file is compared with the Hub's own
checksum before one rename publishes the folder. Prints that folder; progress goes to standard error. A token for gated
repositories is read from HF_TOKEN, or from the file that HF_TOKEN_PATH names.

Exit status: 0 fetched or already there, 1 refused, 2 wrong usage.
"""

import argparse
import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from runtime.errors import Refusal
from runtime.files import file_lock, human, make_writable, remove_tree, sha256, sync, sync_tree, tree_bytes
from runtime.hub_errors import refusal_of

Progress = Callable[[str], None]

RECORD = "fetched.json"
PROGRESS_SECONDS = 10.0
HASHERS = 4  # files hashed at once
SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".tiktoken", ".jinja")


@dataclass(frozen=True)
class HubFile:
    """A file as the Hub lists it. `sha256` is that of large files; small ones have only git's `blob` id."""

    path: str
    bytes: int
    sha256: str | None
    blob: str


def fetch(source: str, revision: str, into: Path, progress: Progress = lambda _: None) -> Path:
    """The checkpoint's folder below `into`, fetched unless it is there already; raises Refusal."""
    repository = _repository(source)
    folder = into / folder_name(source, revision)
    if _is_whole(folder):
        return folder
    _make_folders(into)

    def waiting() -> None:
        progress(f"another process is fetching {source}; waiting for it")

    with (
        refusal_of(repository, revision, into),
        file_lock(into / "locks" / f"{folder.name}.fetch", exclusive=True, on_wait=waiting) as alone,
    ):
        if _is_whole(folder):
            return folder
        # Where the file system has no locks, two fetchers must not share a staging folder.
        staging = into / "staging" / (folder.name if alone else f"{folder.name}.{os.urandom(4).hex()}")
        staging.mkdir(exist_ok=True)
        files = _download(repository, revision, staging, progress)
        progress(f"comparing {len(files)} files with the Hub's checksums")
        _refuse_damaged(staging, files)
        _publish(staging, folder, {"source": source, "revision": revision}, files)
    return folder


def folder_name(source: str, revision: str) -> str:
    """The name of a checkpoint's folder; `planner.sources.checkpoint_folder` has the same hash."""
    return hashlib.sha256(f"{source}@{revision}".encode()).hexdigest()[:16]


def wanted(paths: Collection[str]) -> list[str]:
    """Those files of a repository that a build reads, sorted.

    A checkpoint lies at the top: folders hold the same weights in other formats (`original/`, `onnx/`), and so do
    `consolidated*` files. Pickled weights (.bin, .pth) run code when they are loaded, and are never taken.
    """
    top = [path for path in paths if "/" not in path and path.endswith(SUFFIXES)]
    return sorted(path for path in top if not re.match(r"consolidated.*\.safetensors", path))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime.fetch", description="Fetch a checkpoint from the Hub.")
    parser.add_argument("--source", required=True, help="hf://ORG/NAME")
    parser.add_argument("--revision", required=True, help="commit hash of the repository")
    parser.add_argument("--into", type=Path, required=True, help="folder of fetched checkpoints")
    args = parser.parse_args(arguments)
    previous = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        print(fetch(args.source, args.revision, args.into, _say))
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


def _repository(source: str) -> str:
    named = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)", source)
    if named is None:
        raise Refusal(
            f"{source} is not hf://ORG/NAME", "there is no repository to fetch from", "give the plan's model source"
        )
    return named[1]


def _make_folders(into: Path) -> None:
    try:
        make_writable(into / "staging", into / "locks")
    except OSError as error:
        raise Refusal(
            f"the checkpoints' folder {into} cannot be written: {error.strerror}",
            "nothing could be fetched",
            "mount the shared file system writable, or point --into at a folder that this user may write",
        ) from None


def _is_whole(folder: Path) -> bool:
    """Whether every file of the record is there in its size. The record is written before the rename."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _download(repository: str, revision: str, staging: Path, progress: Progress) -> list[HubFile]:
    """Everything wanted, in `staging`. What an earlier fetch completed there is not fetched again."""
    hub = _hub(staging)
    # Listed here and not left to snapshot_download, which takes a folder as it is when the Hub does not answer.
    listed = hub.HfApi().list_repo_tree(repository, revision=revision, recursive=True)
    found = {entry.path: _hub_file(entry) for entry in listed if hasattr(entry, "blob_id")}  # folders have none
    files = [found[path] for path in wanted(found)]
    if not any(file.path.endswith(".safetensors") for file in files):
        raise Refusal(
            f"{repository} has no *.safetensors at its top",
            "there are no weights to build from; pickled ones (.bin, .pth) run code when loaded and are not fetched",
            "choose a repository or a revision with safetensors",
        )
    _remove_unfinished(staging)
    _require_space(staging, files)
    with _reporting(staging, sum(file.bytes for file in files), progress):
        hub.snapshot_download(
            repository, revision=revision, local_dir=staging, allow_patterns=[glob.escape(file.path) for file in files]
        )
    return files


def _hub(staging: Path) -> Any:
    """The module huggingface_hub, of 0.3x in serving images and newer ones alike. Raises Refusal.

    It reads its environment once, at import. What it keeps for itself (its cache; never the checkpoint) must lie where
    a pod with a read-only root may write.
    """
    if not {"HF_HOME", "XDG_CACHE_HOME"} & os.environ.keys():
        os.environ["HF_HOME"] = str(staging / ".cache" / "home")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Chunks are worth keeping only for a second download; older versions keep 10 GB of them.
    os.environ.setdefault("HF_XET_CHUNK_CACHE_SIZE_BYTES", "0")
    try:
        import huggingface_hub
    except ImportError:
        raise Refusal(
            "the package huggingface_hub is not installed",
            "there is nothing to fetch with",
            "run in the serving image, which has it, or `pip install huggingface_hub`",
        ) from None
    return huggingface_hub


def _hub_file(entry: Any) -> HubFile:
    return HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)


def _remove_unfinished(staging: Path) -> None:
    """Parts that a killed fetch left and nobody will go on with: newer hubs name each process's anew."""
    for part in (staging / ".cache").rglob("*.incomplete"):
        if re.search(r"\.[0-9a-f]{8}\.incomplete$", part.name):
            part.unlink(missing_ok=True)


def _require_space(staging: Path, files: Sequence[HubFile]) -> None:
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


def _refuse_damaged(staging: Path, files: Sequence[HubFile]) -> None:
    with ThreadPoolExecutor(HASHERS) as pool:
        sound = pool.map(_is_sound, [staging / file.path for file in files], files)
        damaged = [file.path for file, is_sound in zip(files, sound, strict=True) if not is_sound]
    for path in damaged:
        (staging / path).unlink(missing_ok=True)
    if damaged:
        raise Refusal(
            f"{len(damaged)} of {len(files)} fetched files are not what the Hub has: {', '.join(damaged[:3])}",
            "an engine built from them would compute nonsense; they were removed and nothing was published",
            "run it again: it fetches those anew",
        )


def _is_sound(path: Path, file: HubFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    if file.sha256 is not None:
        return sha256(path) == file.sha256
    # Git's id of a file: small files have no other checksum.
    content = b"blob %d\0" % file.bytes + path.read_bytes()
    return hashlib.sha1(content, usedforsecurity=False).hexdigest() == file.blob


def _publish(staging: Path, folder: Path, origin: dict[str, str], files: Sequence[HubFile]) -> None:
    # The library's own bookkeeping, and files of a longer list that an earlier version of this program wanted.
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
