"""Checkpoints of object stores and local folders, read through obstore.

    s3://BUCKET/PREFIX      Amazon S3 and what speaks its protocol (AWS_ENDPOINT_URL)
    gs://BUCKET/PREFIX      Google Cloud Storage
    az://CONTAINER@ACCOUNT/PREFIX   Azure Blob Storage; without @ACCOUNT it is in AZURE_STORAGE_ACCOUNT_NAME
    file:///FOLDER          a folder that this machine sees

Credentials are those that obstore finds: the pod's workload identity, or the environment. A public bucket is read
anonymously, without any.

A revision is one of
    sha256:HEX   the sha256 of the file SHA256SUMS beside the weights, which pins every byte
    etags:HEX    what the objects' names, sizes and ETags come to; it is printed when they are listed
    a name       the user's own for what lies there; a fetch that finds other objects than it began with is refused

What is compared before anything is published: the sha256 of SHA256SUMS where that file is there; else the MD5 that the
store gives (an ETag that is one, as those of S3 and Cloud Storage are for objects uploaded at once; S3's for objects
uploaded in parts of a usual size; Content-MD5 of Azure where the credentials can sign for a look at it); else, and for
a local folder, the length alone. Every request names the listed ETag, so that no file is put together from two versions
of an object.
"""

import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from runtime.checkpoint_files import Checksum, SourceFile, etag_checksum, md5_of_header, wanted
from runtime.errors import Refusal
from runtime.object_errors import KEPT, is_cut, refusal_of
from runtime.parts import PartialFile, Span, spans

SCHEMES = ("s3://", "gs://", "az://", "file://")
SUMS = "SHA256SUMS"
JOURNALS = ".parts"
LISTING = "listing.json"
PARALLEL = 8
TRIES = 5  # of a part whose answer was cut; obstore itself retries what never began and what is told to come later
# A kill loses at most the parts under way: 8/256 of a checkpoint, and no more than 128 MiB.
PARTS, PAGE, LEAST_PART, LARGEST_PART = 256, 4 << 10, 64 << 10, 16 << 20
_TIMES = {"connect_timeout": timedelta(seconds=10), "read_timeout": timedelta(minutes=1), "timeout": timedelta(hours=1)}


class ObjectStore:
    """The objects directly below one prefix, at one revision."""

    def __init__(self, source: str, revision: str, *, anonymous: bool = False) -> None:
        self.source, self.revision, self.anonymous = source, revision, anonymous

    @cached_property
    def _obstore(self) -> Any:
        return _obstore()

    @cached_property
    def _store(self) -> Any:
        return _open(self.source, anonymous=self.anonymous)

    def refusals(self, into: Path) -> AbstractContextManager[None]:
        return refusal_of(self.source, into)

    def files(self, staging: Path, progress: Callable[[str], None]) -> list[SourceFile]:
        """Every object below the prefix that a build reads."""
        listed = self._obstore.list_with_delimiter(self._store)["objects"]
        files = [_source_file(entry) for entry in listed]
        if not files:
            raise Refusal(
                f"{self.source} has no files: there is no such prefix, or nothing lies directly below it",
                "nothing could be fetched",
                "correct `source`, or upload the checkpoint's files there",
            )
        read = set(wanted([file.path for file in files]))
        read_files = [file for file in files if file.path in read]
        self._refuse_other_revision(read_files, progress)
        _refuse_other_objects(self.source, staging, read_files)
        return self._with_checksums(read_files, any(file.path == SUMS for file in files), progress)

    def rounds(self, files: Sequence[SourceFile]) -> list[list[SourceFile]]:
        """Small files first: they show at once when the store's checksums are of no use."""
        small = [file for file in files if not file.path.endswith(".safetensors")]
        return [small, [file for file in files if file not in small]]

    def download(self, staging: Path, files: Sequence[SourceFile]) -> None:
        """Every file, in `staging`. Parts that an earlier fetch left there are not fetched again."""
        part = part_bytes(sum(file.bytes for file in files))
        with ExitStack() as opened, ThreadPoolExecutor(PARALLEL) as pool:
            under_way: list[Future[None]] = []
            for file in files:
                path, journal = staging / file.path, staging / JOURNALS / file.path
                if not journal.exists() and path.exists() and path.stat().st_size == file.bytes:
                    continue  # from the cache
                target = opened.enter_context(closing(PartialFile(path, journal)))
                missing = [span for span in spans(file.bytes, part) if span not in target.present]
                under_way += [pool.submit(self._fetch_part, file, span, target) for span in missing]
            done, _ = wait(under_way, return_when=FIRST_EXCEPTION)
            pool.shutdown(cancel_futures=True)  # waits for those that run: they write into open files
            for future in done:
                future.result()

    def _fetch_part(self, file: SourceFile, span: Span, target: PartialFile) -> None:
        options = {"range": span} | ({"if_match": file.etag} if file.etag else {})
        for attempt in range(1, TRIES + 1):
            try:
                answer = self._obstore.get(self._store, file.path, options=options)
                if _bare(answer.meta["e_tag"]) != _bare(file.etag):  # a store that does not know If-Match
                    raise _changed(self.source, [file.path])
                target.write(span, memoryview(answer.bytes()))
                return
            except self._obstore.exceptions.PreconditionError:
                raise _changed(self.source, [file.path]) from None
            except Exception as error:
                if attempt == TRIES or not is_cut(error):
                    raise

    def _refuse_other_revision(self, files: list[SourceFile], progress: Callable[[str], None]) -> None:
        content = [[file.path, file.bytes, _bare(file.etag)] for file in sorted(files, key=lambda file: file.path)]
        actual = f"etags:{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}"
        progress(f"{self.source} has {len(files)} files of a checkpoint, {actual}")
        if self.revision.startswith("etags:") and self.revision != actual:
            raise _no_revision(self.source, self.revision, f"the objects there are {actual}")

    def _with_checksums(
        self, files: list[SourceFile], has_sums: bool, progress: Callable[[str], None]
    ) -> list[SourceFile]:
        if has_sums:
            content = bytes(self._obstore.get(self._store, SUMS).bytes())
            actual = f"sha256:{hashlib.sha256(content).hexdigest()}"
            if self.revision.startswith("sha256:") and self.revision != actual:
                raise _no_revision(self.source, self.revision, f"its {SUMS} is {actual}")
            return _with_sums(self.source, files, content)
        if self.revision.startswith("sha256:"):
            raise _no_revision(self.source, self.revision, f"there is no {SUMS} beside the files")
        with ThreadPoolExecutor(PARALLEL) as pool:
            files = list(pool.map(self._with_stores_checksum, files))
        bare = sum(file.checksum is None for file in files)
        if bare:
            progress(f"{bare} of {len(files)} files have no checksum in the store: only their lengths are compared")
        return files

    def _with_stores_checksum(self, file: SourceFile) -> SourceFile:
        if not self.source.startswith("az:"):
            return replace(file, checksum=etag_checksum(_bare(file.etag), file.bytes))
        # obstore keeps Content-MD5 to itself, not every credential may sign, and public containers have none.
        with suppress(self._obstore.exceptions.BaseError, ValueError, OSError):
            url = self._obstore.sign(self._store, "GET", file.path, timedelta(minutes=5))
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=30) as answer:
                md5 = answer.headers.get("Content-MD5")
                if md5 and _bare(answer.headers.get("ETag")) == _bare(file.etag):
                    return replace(file, checksum=md5_of_header(md5))
        return file


def part_bytes(total: int) -> int:
    """The length of the ranges in which a checkpoint of `total` bytes is fetched."""
    share = -(-total // PARTS // PAGE) * PAGE
    return max(LEAST_PART, min(LARGEST_PART, share))


def _obstore() -> Any:
    try:
        import obstore
        import obstore.store  # pyright: ignore[reportUnusedImport] - `obstore` has it as an attribute then
    except ImportError:
        raise Refusal(
            "the package obstore is not installed",
            "object stores and folders cannot be read",
            "run `pip install obstore`; pods have it from requirements/pods.txt",
        ) from None
    return obstore


def _open(source: str, *, anonymous: bool) -> Any:
    scheme, _, rest = source.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    stores = _obstore().store
    options: dict[str, Any] = {"client_options": _TIMES | _plain_http(), "prefix": prefix or None}
    if scheme == "file":
        folder = Path("/", unquote(prefix))
        if bucket or not folder.is_dir():
            raise Refusal(f"{source} is not a folder here", "nothing could be fetched", "give file:///PATH/OF/A/FOLDER")
        return stores.LocalStore(folder)
    if not bucket:
        raise Refusal(f"{source} names no bucket", "nothing could be fetched", f"give {scheme}://BUCKET/PREFIX")
    if anonymous:
        options["skip_signature"] = True
    if scheme == "s3":
        # A pod's own region is another's as often as not, and in its environment.
        if region := _region(bucket):
            options["region"] = region
        return stores.S3Store(bucket, **options)
    if scheme == "gs":
        return stores.GCSStore(bucket, **options)
    container, _, account = bucket.partition("@")
    return stores.AzureStore(container, **options, **({"account_name": account} if account else {}))


def _plain_http() -> dict[str, bool]:
    """What obstore reads of its environment, but not beside other options."""
    return {"allow_http": "true" in {os.environ.get(f"{store}_ALLOW_HTTP") for store in ("AWS", "GOOGLE", "AZURE")}}


def _region(bucket: str) -> str | None:
    """Where a bucket of S3 is; S3 tells everybody, and answers requests in that region only."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{endpoint}/{bucket}", method="HEAD"), timeout=10
        ) as answer:
            return answer.headers.get("x-amz-bucket-region")
    except urllib.error.HTTPError as error:
        return error.headers.get("x-amz-bucket-region")
    except OSError:
        return None


def _source_file(entry: Mapping[str, Any]) -> SourceFile:
    return SourceFile(entry["path"], entry["size"], None, entry["e_tag"])


def _bare(etag: str | None) -> str | None:
    """An ETag without its quotes: lists of Azure and of some servers leave them out."""
    return etag.strip('"') if etag else None


def _with_sums(source: str, files: Sequence[SourceFile], content: bytes) -> list[SourceFile]:
    """The files with their sums in SHA256SUMS (`sha256sum *`). Raises Refusal when these are not the same files."""
    lines = re.findall(r"^([0-9a-fA-F]{64}) [ *](?:\./)?(.+?)\r?$", content.decode("utf-8", "replace"), re.MULTILINE)
    sums = {path: digest.lower() for digest, path in lines}
    differ = sorted(set(wanted(sums)) ^ {file.path for file in files})
    if differ:
        raise Refusal(
            f"{SUMS} of {source} and the files there differ in {', '.join(differ[:3])}",
            "the checkpoint would be incomplete, or in part not compared; nothing was fetched",
            "upload what is missing, or make the list anew: sha256sum * > SHA256SUMS",
        )
    return [replace(file, checksum=Checksum("sha256", sums[file.path])) for file in files]


def _refuse_other_objects(source: str, staging: Path, files: Sequence[SourceFile]) -> None:
    """Raises Refusal when an earlier fetch of the same revision began with other objects."""
    listing = staging / JOURNALS / LISTING
    now = {file.path: [file.bytes, _bare(file.etag)] for file in files}
    with suppress(FileNotFoundError, ValueError):
        before = json.loads(listing.read_text(encoding="utf-8"))
        if before != now:
            raise _changed(source, sorted(path for path in before | now if before.get(path) != now.get(path)))
    listing.parent.mkdir(exist_ok=True)
    listing.with_suffix(".new").write_text(json.dumps(now), encoding="utf-8")
    os.replace(listing.with_suffix(".new"), listing)


def _changed(source: str, paths: Sequence[str]) -> Refusal:
    return Refusal(
        f"{source} was changed since its fetch began: {', '.join(paths[:3])}",
        "parts of two versions would be mixed; nothing was published",
        "give what lies there now a `revision` of its own, which is fetched from the beginning",
    )


def _no_revision(source: str, revision: str, why: str) -> Refusal:
    return Refusal(
        f"{source} has no revision {revision}: {why}",
        KEPT,
        "correct `revision`, or upload that version again",
    )
