"""A file that arrives in parts, in any order, and survives kill -9 with all that had arrived.

Beside the file lies a journal: a line for each part that is on the disk, with the part's CRC-32. Whoever goes on
believes a line only when the bytes match it: after a power cut the journal may be there and the bytes not.
"""

import os
import zlib
from pathlib import Path

from runtime.files import CHUNK

Span = tuple[int, int]  # first byte, first byte after


def spans(size: int, part: int) -> list[Span]:
    """The parts of a file."""
    return [(start, min(start + part, size)) for start in range(0, size, part)]


class PartialFile:
    """A file at `path` with its journal at `journal`; safe for threads that write different parts."""

    def __init__(self, path: Path, journal: Path) -> None:
        journal.parent.mkdir(exist_ok=True)
        if not path.exists():
            journal.unlink(missing_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        # A line that a kill cut short is ended, so that the next one does not continue it.
        self._journal = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self.present = {span for span, crc in _lines(journal).items() if self._crc(span) == crc}
        os.write(self._journal, b"\n")

    def write(self, span: Span, content: memoryview) -> None:
        start, end = span
        assert len(content) == end - start
        crc = zlib.crc32(content)
        while content:
            written = os.pwrite(self._file, content, start)
            start, content = start + written, content[written:]
        # One write to the end of a file: other threads' lines are not mixed with it.
        os.write(self._journal, b"%d %d %d\n" % (*span, crc))
        self.present.add(span)

    def close(self) -> None:
        os.close(self._file)
        os.close(self._journal)

    def _crc(self, span: Span) -> int:
        start, end = span
        crc = 0
        while start < end and (chunk := os.pread(self._file, min(CHUNK, end - start), start)):
            crc, start = zlib.crc32(chunk, crc), start + len(chunk)
        return crc


def _lines(journal: Path) -> dict[Span, int]:
    found: dict[Span, int] = {}
    for line in journal.read_bytes().splitlines():
        words = line.split()
        if len(words) == 3 and all(word.isdigit() for word in words):
            start, end, crc = map(int, words)
            found[start, end] = crc
    return found
