"""The files of a checkpoint as its source lists them, and whether what lies on the disk is the same."""

import base64
import hashlib
import re
from collections.abc import Collection, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.files import CHUNK, sha256

SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".tiktoken", ".jinja")
MIB = 1 << 20
# Sizes of parts that uploaders take: 8 MiB the AWS CLI, 5 rclone and obstore, 15 s3cmd, and rounder ones for more.
PART_MIB = (8, 5, 16, 10, 15, 20, 25, 32, 50, 64, 100, 128, 200, 250, 256, 500, 512, 1000, 1024)


@dataclass(frozen=True)
class Checksum:
    """`git`: the id of a blob; `parts`: S3's ETag of an object uploaded in parts; the others in hexadecimal."""

    kind: Literal["sha256", "md5", "git", "parts"]
    value: str


@dataclass(frozen=True)
class SourceFile:
    """A file as its source lists it. `etag` names one content of it, where the source gives one."""

    path: str
    bytes: int
    checksum: Checksum | None
    etag: str | None = None


def wanted(paths: Collection[str]) -> list[str]:
    """Those files of a source that a build reads, sorted.

    A checkpoint lies at the top: folders hold the same weights in other formats (`original/`, `onnx/`), and so do
    `consolidated*` files. Pickled weights (.bin, .pth) run code when they are loaded, and are never taken.
    """
    top = [path for path in paths if "/" not in path and path.endswith(SUFFIXES)]
    return sorted(path for path in top if not re.match(r"consolidated.*\.safetensors", path))


def is_sound(path: Path, file: SourceFile) -> bool:
    """Whether the file at `path` has the length and, where one is known, the checksum of its source."""
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    if file.checksum is None:
        return True
    match file.checksum.kind:
        case "sha256":
            return sha256(path) == file.checksum.value
        case "md5":
            return _md5(path, file.bytes).hex() == file.checksum.value
        case "parts":
            return any(_parts_tag(path, size) == file.checksum.value for size in part_sizes(file))
        case "git":
            content = b"blob %d\0" % file.bytes + path.read_bytes()
            return hashlib.sha1(content, usedforsecurity=False).hexdigest() == file.checksum.value


def etag_checksum(etag: str | None, size: int) -> Checksum | None:
    """What an ETag of S3 or Cloud Storage says about the content; None where it says nothing."""
    if etag and re.fullmatch(r"[0-9a-f]{32}", etag):
        return Checksum("md5", etag)
    if etag and re.fullmatch(r"[0-9a-f]{32}-\d+", etag):
        checksum = Checksum("parts", etag)
        return checksum if part_sizes(SourceFile("", size, checksum)) else None
    return None


def md5_of_header(value: str) -> Checksum:
    """The checksum of a Content-MD5 header."""
    return Checksum("md5", base64.b64decode(value).hex())


def part_sizes(file: SourceFile) -> list[int]:
    """Bytes of a part, of those that uploaders take, which make as many parts as the ETag says. S3 does not list it."""
    assert file.checksum
    count = int(file.checksum.value.split("-")[1])
    if count == 1:
        return [max(1, file.bytes)]
    exact = -(-file.bytes // count // MIB)  # uploaders that want at most 10,000 parts round up to this
    sizes = {size * MIB: None for size in (*PART_MIB, exact)}
    return [size for size in sizes if -(-file.bytes // size) == count]


def _parts_tag(path: Path, part: int) -> str:
    size = path.stat().st_size
    digests = [_md5(path, min(part, size - start), start) for start in range(0, max(1, size), part)]
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def _md5(path: Path, length: int, start: int = 0) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in _chunks(path, start, length):
        digest.update(chunk)
    return digest.digest()


def _chunks(path: Path, start: int, length: int) -> Generator[bytes]:
    with path.open("rb") as stream:
        stream.seek(start)
        while length and (chunk := stream.read(min(CHUNK, length))):
            length -= len(chunk)
            yield chunk
