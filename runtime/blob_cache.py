"""Files of checkpoints on a node's own disk, by content: what any pod of the node fetched, no other fetches again.

DIR/blobs/<kind>-<checksum>   a whole file, named by the checksum that its source lists
DIR/staging/<id>/             what is being fetched for this node
DIR/locks/<id>.fetch          one fetcher of a checkpoint at a time on this node
"""

import errno
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from runtime.checkpoint_files import SourceFile
from runtime.files import file_lock, make_writable


class BlobCache:
    """At most `most_bytes` of files (None: no bound), of which the least lately used are given up first."""

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self.folder, self._most = folder, most_bytes
        make_writable(folder / "blobs", folder / "staging", folder / "locks")

    def seed(self, staging: Path, files: Sequence[SourceFile]) -> None:
        """Puts what is here into `staging`. It is compared there like what is fetched."""
        for file in files:
            blob, path = self._blob(file), staging / file.path
            if blob and blob.is_file() and blob.stat().st_size == file.bytes and not path.exists():
                link_or_copy(blob, path)
                os.utime(blob)

    def keep(self, staging: Path, files: Sequence[SourceFile]) -> None:
        """Keeps sound files. Files without a checksum have no name to be found by."""
        kept: set[Path] = set()
        for file in files:
            if blob := self._blob(file):
                kept.add(blob)
                with suppress(FileExistsError):
                    os.link(staging / file.path, blob)
        with file_lock(self.folder / "locks" / "blobs", exclusive=True):
            self._evict(kept)

    def forget(self, file: SourceFile) -> None:
        """Gives up a file that turned out damaged."""
        if blob := self._blob(file):
            blob.unlink(missing_ok=True)

    def _blob(self, file: SourceFile) -> Path | None:
        checksum = file.checksum
        return self.folder / "blobs" / f"{checksum.kind}-{checksum.value}" if checksum else None

    def _evict(self, kept: set[Path]) -> None:
        blobs = sorted((blob.stat().st_mtime, blob.stat().st_size, blob) for blob in (self.folder / "blobs").iterdir())
        total = sum(size for _, size, _ in blobs)
        for _, size, blob in blobs:
            if self._most is not None and total > self._most and blob not in kept:
                blob.unlink(missing_ok=True)
                total -= size


def link_or_copy(source: Path, target: Path) -> None:
    """The same file at `target`: whole or not there, and without a second copy where the file system can."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        part = target.with_name(f".{target.name}.part")
        shutil.copyfile(source, part)
        os.replace(part, target)
