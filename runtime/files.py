"""File-system steps that the engine store's promises rest on: locks, durable writes, atomic removal, checksums."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

from runtime.errors import Refusal

CHUNK = 4 << 20  # bytes read at once while hashing


@contextlib.contextmanager
def file_lock(
    path: Path, *, exclusive: bool, wait: bool = True, on_wait: Callable[[], None] | None = None
) -> Generator[bool]:
    """Hold an advisory lock on `path`; yields whether it is held.

    False means that another process has it (`wait` is False), or that this file system has no locks. The kernel
    drops the lock when its holder dies, however it dies.
    """
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    while True:
        descriptor = _open_lock(path, exclusive)
        try:
            held = _try_lock(descriptor, kind, wait, on_wait)
            # A collector may have deleted the file between open and lock: a lock on an unlinked file guards nothing.
            if held and not _is_same_file(descriptor, path):
                continue
            yield held
            return
        finally:
            os.close(descriptor)


def _open_lock(path: Path, exclusive: bool) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        # Serving pods may mount the store read-only; a shared lock needs no more than that.
        if exclusive or error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _try_lock(descriptor: int, kind: int, wait: bool, on_wait: Callable[[], None] | None) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        if not wait:
            return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            return False
        raise
    if on_wait:
        on_wait()
    fcntl.flock(descriptor, kind)
    return True


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        there, held = os.stat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def regular_files(folder: Path) -> dict[str, Path]:
    """Every file below `folder` by its POSIX path relative to it, in sorted order."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    return dict(sorted(found.items()))


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def sha256(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Hexadecimal sha256 of a file; `on_bytes` hears of every chunk read."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            if on_bytes:
                on_bytes(len(chunk))
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse fsync on folders and order their metadata by themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, itself last."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def remove_tree(folder: Path, graveyard: Path) -> None:
    """Take `folder` out of its place in one rename into `graveyard` (same file system), then delete it.

    Whoever still works below the old path fails at its next step instead of publishing a half-deleted tree.
    """
    grave = graveyard / f"{folder.name}.removed-{os.urandom(4).hex()}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, grave)
        shutil.rmtree(grave, ignore_errors=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is the disk or the quota being full.

    Libraries written in other languages wrap the error number in text, so the text is read too.
    """
    while True:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        text = str(error)
        if os.strerror(errno.ENOSPC) in text or os.strerror(errno.EDQUOT) in text:
            return True
        cause = error.__cause__ or error.__context__
        if cause is None:
            return False
        error = cause


def disk_full(into: Path, consequence: str) -> Refusal:
    """What to tell whoever fetches into a full disk."""
    return Refusal(
        f"the disk of {into} is full",
        consequence,
        f"free space, or give a larger file system, and run it again; removing {into}/staging gives up what is there",
    )


def human(size: float) -> str:
    """A size in bytes with its binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def make_writable(*folders: Path) -> None:
    """Folders that exist and that this user may write. Raises OSError."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only here")
