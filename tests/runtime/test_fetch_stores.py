"""Fetching from servers that speak S3, Cloud Storage and Azure Blob, whose answers are cut, late and damaged."""

import hashlib
import json
import os
import signal
import subprocess
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.checkpoint_files import Checksum, SourceFile, is_sound, part_sizes
from runtime.fetch import RECORD, folder_name
from runtime.object_store import LEAST_PART, PARALLEL, part_bytes
from tests.object_stores import ACCOUNT, BUCKET, STORES, Servers, Store
from tests.ports import free_ports
from tests.runtime.fetching import finish, published, start
from tests.runtime.launched import until

ROOT = Path(__file__).parents[2]
SHARDS = {f"model-{n:05}-of-00004.safetensors": bytes([n]) * 1_300_000 for n in range(1, 5)}
SMALL = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "empty.txt": b""}
UNWANTED = {"README.md": b"# it", "model.gguf": b"no", "consolidated.safetensors": b"again"}
FIRST = next(iter(SHARDS))
NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, object_stores: Servers) -> Store:
    fresh = object_stores[request.param].fresh()
    fresh.put(SHARDS | SMALL | UNWANTED | {"original/model.safetensors": b"of another model"})
    return fresh


@pytest.fixture
def s3(object_stores: Servers) -> Store:
    fresh = object_stores["s3"].fresh()
    fresh.put(SHARDS | SMALL | UNWANTED)
    return fresh


def fetch(store: Store, into: Path, *more: str, revision: str = "v1", **env: str) -> tuple[int, str, str]:
    return finish(start(store.source, into, store.env | env, *more, revision=revision))


def assert_whole(folder: Path) -> None:
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != RECORD} == SHARDS | SMALL


def sums(files: dict[str, bytes]) -> bytes:
    return b"".join(f"{hashlib.sha256(body).hexdigest()}  {name}\n".encode() for name, body in files.items())


def test_a_checkpoint_is_fetched_once_without_what_no_build_reads(store: Store, tmp_path: Path) -> None:
    status, out, err = fetch(store, tmp_path)
    assert status == 0, err
    assert out == f"{tmp_path / folder_name(store.source, 'v1')}\n"
    assert_whole(Path(out.strip()))
    assert sum(store.proxy.sent[name] for name in SHARDS) == sum(map(len, SHARDS.values()))
    assert not store.proxy.gets.keys() & UNWANTED.keys() & {name for name, count in store.proxy.gets.items() if count}
    assert "has 7 files of a checkpoint, etags:" in err
    assert "only their lengths" not in err, "each of these stores gives checksums"
    before = store.proxy.gets.total()
    assert fetch(store, tmp_path)[:2] == (0, out)
    assert store.proxy.gets.total() == before


def test_a_shard_comes_in_ranges_at_once(store: Store, tmp_path: Path) -> None:
    store.proxy.pause = 0.05
    assert fetch(store, tmp_path)[0] == 0
    assert all(store.proxy.gets[name] == -(-1_300_000 // LEAST_PART) for name in SHARDS)
    assert store.proxy.most_at_once >= PARALLEL


def test_cut_answers_and_a_busy_store_cost_no_more_than_a_part_each(store: Store, tmp_path: Path) -> None:
    store.proxy.cut.update(dict.fromkeys(SHARDS, 2))
    store.proxy.busy.update(dict.fromkeys(SHARDS, 2))
    status, out, err = fetch(store, tmp_path)
    assert status == 0, err
    assert_whole(Path(out.strip()))
    assert sum(store.proxy.cut.values()) == sum(store.proxy.busy.values()) == 0, "all of it happened"
    size = sum(map(len, SHARDS.values()))
    assert size <= sum(store.proxy.sent[name] for name in SHARDS) <= size + 8 * LEAST_PART


def test_429_is_waited_for_too(s3: Store, tmp_path: Path) -> None:
    s3.proxy.busy_answer = (429, "slow down")
    s3.proxy.busy.update({FIRST: 3})
    status, _, err = fetch(s3, tmp_path)
    assert status == 0, err


def test_a_damaged_byte_is_found_and_only_its_file_fetched_again(store: Store, tmp_path: Path) -> None:
    store.proxy.damaged = {FIRST}
    status, _, err = fetch(store, tmp_path)
    assert status == 1
    assert f"1 of 4 fetched files are not what the source has: {FIRST}" in err
    assert published(tmp_path) == []
    store.proxy.damaged.clear()
    before = store.proxy.gets.copy()
    status, out, _ = fetch(store, tmp_path)
    assert status == 0
    assert_whole(Path(out.strip()))
    assert {name for name in SHARDS if store.proxy.gets[name] > before[name]} == {FIRST}


def test_kept_parts_are_believed_only_when_their_bytes_are_there(s3: Store, tmp_path: Path) -> None:
    """After a power cut the journal may be on the disk and the bytes not."""
    s3.proxy.damaged = {FIRST}  # leaves everything else in staging
    assert fetch(s3, tmp_path)[0] == 1
    s3.proxy.damaged.clear()
    other = list(SHARDS)[1]
    staging = tmp_path / "staging" / folder_name(s3.source, "v1")
    with (staging / other).open("r+b") as file:
        file.write(bytes(LEAST_PART))
    before = s3.proxy.gets.copy()
    status, out, err = fetch(s3, tmp_path)
    assert status == 0, err
    assert_whole(Path(out.strip()))
    assert s3.proxy.gets[other] - before[other] == 1


def test_objects_that_change_during_the_fetch_are_refused(store: Store, tmp_path: Path) -> None:
    store.proxy.pause = 0.2
    process = start(store.source, tmp_path, store.env)
    last = list(SHARDS)[-1]
    until(lambda: store.proxy.gets[FIRST], "the shards are on their way")
    store.put({last: bytes(1_300_000)})
    status, _, err = finish(process)
    assert status == 1
    assert f"was changed since its fetch began: {last}" in err
    assert published(tmp_path) == []
    store.proxy.pause = 0
    assert "was changed since its fetch began" in fetch(store, tmp_path)[2]
    status, out, err = fetch(store, tmp_path, revision="v2")
    assert status == 0, err
    assert (Path(out.strip()) / last).read_bytes() == bytes(1_300_000)


def test_a_list_of_sums_pins_every_byte(store: Store, tmp_path: Path) -> None:
    listed = sums(SHARDS | SMALL)
    store.put({"SHA256SUMS": listed})
    pinned = f"sha256:{hashlib.sha256(listed).hexdigest()}"
    status, out, err = fetch(store, tmp_path, revision=pinned)
    assert status == 0, err
    assert_whole(Path(out.strip()))
    store.put({FIRST: bytes(1_300_000)})  # the same length, a new ETag; the list is the old one
    status, _, err = fetch(store, tmp_path / "again", revision=pinned)
    assert status == 1
    assert f"not what the source has: {FIRST}" in err
    store.put({"SHA256SUMS": sums({**SHARDS, **SMALL, FIRST: bytes(1_300_000)})})
    status, _, err = fetch(store, tmp_path / "third", revision=pinned)
    assert status == 1
    assert f"has no revision {pinned}: its SHA256SUMS is sha256:" in err


def test_a_list_of_sums_that_comes_later_is_heeded_and_must_name_the_files(s3: Store, tmp_path: Path) -> None:
    """It is the remedy where ETags are no checksums."""
    s3.proxy.damaged = {"config.json"}
    assert "put a SHA256SUMS beside the files" in fetch(s3, tmp_path)[2]
    assert not any(s3.proxy.gets[name] for name in SHARDS), "what is small is compared before the weights are fetched"
    s3.proxy.damaged.clear()
    for listed in ({"config.json": b"{}"}, SHARDS | SMALL | {"vocab.json": b""}):
        s3.put({"SHA256SUMS": sums(listed)})
        status, _, err = fetch(s3, tmp_path)
        assert status == 1
        assert "and the files there differ in" in err
    s3.put({"SHA256SUMS": sums(SHARDS | SMALL | {"README.md": b"# it"})})
    assert fetch(s3, tmp_path)[0] == 0


def test_etags_pin_a_bucket_that_has_no_list_of_sums(s3: Store, tmp_path: Path) -> None:
    _, _, err = fetch(s3, tmp_path)
    pinned = next(word for word in err.split() if word.startswith("etags:"))
    assert fetch(s3, tmp_path, revision=pinned)[0] == 0
    s3.put({"config.json": b"{ }"})
    status, _, err = fetch(s3, tmp_path / "again", revision=pinned)
    assert status == 1
    assert f"has no revision {pinned}: the objects there are etags:" in err


@pytest.mark.parametrize(
    ("answer", "what", "fix"),
    [
        ((400, "<Error><Code>ExpiredToken</Code></Error>"), "the credentials for s3://", "renew them"),
        ((403, "<Error><Code>AccessDenied</Code></Error>"), "may not be read with the credentials", "AWS_ACCESS_KEY"),
        ((404, "<Error><Code>NoSuchBucket</Code></Error>"), "there is no bucket of s3://", "AWS_ENDPOINT_URL"),
        ((418, "a teapot"), "answered 418", "later"),
    ],
)
def test_what_a_store_refuses_is_named_with_the_fix(
    s3: Store, tmp_path: Path, answer: tuple[int, str], what: str, fix: str
) -> None:
    s3.proxy.always = answer
    status, out, err = fetch(s3, tmp_path)
    assert (status, out) == (1, "")
    assert what in err
    assert fix in err
    assert "Traceback" not in err
    assert "Debug source" not in err


@pytest.mark.parametrize(
    ("scheme", "env", "what"),
    [
        ("s3", {}, "there is no bucket of s3://other/x"),
        ("az", {}, "there is no bucket of az://other/x"),
        ("az", {"AZURE_STORAGE_ACCOUNT_NAME": ""}, "no credentials were found for az://other/x"),
        ("s3", NO_KEYS | {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:1"}, "no credentials were found for s3://other/x"),
        ("az", {"AZURE_STORAGE_ACCOUNT_KEY": "AAAA"}, "may not be read with the credentials given"),
    ],
)
def test_the_stores_own_refusals_are_told_apart(
    object_stores: Servers, tmp_path: Path, scheme: str, env: dict[str, str], what: str
) -> None:
    status, _, err = finish(start(f"{scheme}://other/x", tmp_path, object_stores[scheme].fresh().env | env))
    assert status == 1
    assert what in err
    assert "Traceback" not in err


def test_a_store_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "eu-west-1"}
    env |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    status, _, err = finish(start("s3://weights/x", tmp_path, env))
    assert status == 1
    assert "s3://weights/x could not be reached" in err
    assert f"AWS_ENDPOINT_URL=http://127.0.0.1:{port}" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (f"s3://{BUCKET}/none", "has no files: there is no such prefix"),
        (f"s3://{BUCKET}/pickles", "has no *.safetensors"),
        ("s3://", "names no bucket"),
        ("file:///no/such/folder", "is not a folder here"),
        ("ftp://a/b", "is not hf://ORG/NAME, s3://"),
    ],
)
def test_a_source_without_a_checkpoint_is_refused(s3: Store, tmp_path: Path, source: str, what: str) -> None:
    replace(s3, prefix="pickles").put({"model.bin": b"x"})
    status, _, err = finish(start(source, tmp_path, s3.env))
    assert status == 1
    assert what in err
    assert "Traceback" not in err


def test_a_bucket_is_asked_for_its_region(s3: Store, tmp_path: Path) -> None:
    assert fetch(s3, tmp_path)[0] == 0
    asked = [path for path in s3.proxy.heads if path == f"/{BUCKET}"]
    assert asked
    s3.proxy.heads.clear()
    # EKS puts the cluster's own region into each pod that has an identity.
    assert fetch(s3, tmp_path / "again", AWS_REGION="eu-west-1")[0] == 0
    assert f"/{BUCKET}" in s3.proxy.heads


def test_a_public_bucket_is_read_without_credentials(s3: Store, tmp_path: Path) -> None:
    assert fetch(s3, tmp_path / "somebody")[0] == 0
    assert s3.proxy.signed
    s3.proxy.signed = 0
    assert "may not be read" in fetch(s3, tmp_path / "private", "--anonymous")[2]
    for name in SHARDS | SMALL:
        url = f"{s3.proxy.upstream}/{BUCKET}/{s3.prefix}/{name}?acl"
        headers = {"x-amz-acl": "public-read", "Authorization": "AWS a:b"}  # moto asks no more of an owner
        for_everybody = urllib.request.Request(url, headers=headers, method="PUT")
        urllib.request.urlopen(for_everybody, timeout=30).close()
    status, out, err = fetch(s3, tmp_path / "everybody", "--anonymous")
    assert status == 0, err
    assert_whole(Path(out.strip()))
    assert s3.proxy.signed == 0


def test_a_source_names_its_storage_account(object_stores: Servers, tmp_path: Path) -> None:
    azure = object_stores["az"].fresh()
    azure.put(SHARDS | SMALL)
    source = azure.source.replace(BUCKET, f"{BUCKET}@{ACCOUNT}", 1)
    status, out, err = finish(start(source, tmp_path, azure.env | {"AZURE_STORAGE_ACCOUNT_NAME": ""}))
    assert status == 0, err
    assert_whole(Path(out.strip()))


def test_a_folder_is_a_source_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "my weights"
    folder.mkdir()
    for name, body in (SHARDS | SMALL | UNWANTED).items():
        (folder / name).write_bytes(body)
    status, out, err = finish(start(folder.as_uri(), tmp_path / "into", {}))
    assert status == 0, err
    assert_whole(Path(out.strip()))
    assert "7 of 7 files have no checksum" in err


def test_two_fetchers_of_one_node_fetch_once(s3: Store, tmp_path: Path) -> None:
    s3.proxy.pause = 0.05
    folders = [tmp_path / "a", tmp_path / "b"]
    processes = [start(s3.source, into, s3.env, "--cache", str(tmp_path / "node")) for into in folders]
    results = [finish(process) for process in processes]
    assert [status for status, _, _ in results] == [0, 0], results
    for _, out, _ in results:
        assert_whole(Path(out.strip()))
    assert sum(s3.proxy.sent[name] for name in SHARDS) == sum(map(len, SHARDS.values()))
    assert "another process is fetching" in "".join(err for _, _, err in results)


def test_a_cached_file_serves_other_sources_and_is_replaced_when_damaged(s3: Store, tmp_path: Path) -> None:
    cache = ("--cache", str(tmp_path / "node"))
    assert fetch(s3, tmp_path / "a", *cache)[0] == 0
    before = s3.proxy.gets.copy()
    assert fetch(s3, tmp_path / "b", *cache, revision="other")[0] == 0
    assert {name for name in SHARDS if s3.proxy.gets[name] > before[name]} == set()

    blob = tmp_path / "node" / "blobs" / f"md5-{hashlib.md5(SHARDS[FIRST]).hexdigest()}"
    blob.unlink()  # and not a write into it: the checkpoints are links to the same file
    blob.write_bytes(bytes(len(SHARDS[FIRST])))
    assert fetch(s3, tmp_path / "c", *cache)[0] == 1
    status, out, err = fetch(s3, tmp_path / "c", *cache)
    assert status == 0, err
    assert_whole(Path(out.strip()))
    assert {name for name in SHARDS if s3.proxy.gets[name] > before[name]} == {FIRST}


def test_the_cache_gives_up_what_was_not_used_for_longest(s3: Store, tmp_path: Path) -> None:
    cache = ("--cache", str(tmp_path / "node"))
    assert fetch(s3, tmp_path / "a", *cache)[0] == 0
    blobs = tmp_path / "node" / "blobs"
    old = {path.name for path in blobs.iterdir()}
    s3.put({name: body[::-1] + b"!" for name, body in SHARDS.items()})
    assert fetch(s3, tmp_path / "b", *cache, "--cache-gib", "0", revision="v2")[0] == 0
    left = {path.name for path in blobs.iterdir()}
    assert len(left & old) == len(SMALL), "the small files are the same; the old shards are gone"
    assert len(left - old) == len(SHARDS)


def test_sigterm_ends_it_at_once_and_the_next_goes_on(s3: Store, tmp_path: Path) -> None:
    s3.proxy.pause = 0.3
    process = start(s3.source, tmp_path, s3.env)
    until(lambda: sum(s3.proxy.sent[name] for name in SHARDS) > 8 * LEAST_PART, "parts have arrived")
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 128 + signal.SIGTERM
    assert "goes on from here" in finish(process)[2]
    s3.proxy.pause = 0
    assert fetch(s3, tmp_path)[0] == 0
    size = sum(map(len, SHARDS.values()))
    assert sum(s3.proxy.sent[name] for name in SHARDS) <= size + PARALLEL * LEAST_PART


@pytest.mark.parametrize(("limits", "what"), [("size=100m,nr_inodes=12", "is full"), ("size=2m", "is too small")])
def test_a_full_disk_is_refused(s3: Store, tmp_path: Path, limits: str, what: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o {limits} none {disk} && exec "$@"', "sh")
    if subprocess.run([*mounted, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root and util-linux")
    status, _, err = finish(start(s3.source, disk / "checkpoints", s3.env, prefix=mounted))
    assert status == 1
    assert f"the disk of {disk}/checkpoints {what}" in err
    assert "Traceback" not in err


def test_s3s_tag_of_an_object_in_parts_is_compared(tmp_path: Path) -> None:
    body = os.urandom(20 << 20)
    (tmp_path / "file").write_bytes(body)
    for part in (8 << 20, 5 << 20, 7 << 20):
        digests = [hashlib.md5(body[start : start + part]).digest() for start in range(0, len(body), part)]
        tag = f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"
        file = SourceFile("file", len(body), Checksum("parts", tag))
        if part in part_sizes(file):
            assert is_sound(tmp_path / "file", file)
            (tmp_path / "damaged").write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
            assert not is_sound(tmp_path / "damaged", file)
        else:
            assert part == 7 << 20, "no uploader's size"
    assert part_sizes(SourceFile("file", 4_800_000_000, Checksum("parts", f"{'0' * 32}-573"))) == [8 << 20]


def test_a_kill_loses_little_of_any_checkpoint() -> None:
    for size in (1 << 24, 1 << 27, 16 << 30, 812 << 30):
        part = part_bytes(size)
        assert PARALLEL * part <= max(size / 30, PARALLEL * LEAST_PART)
        assert size / part <= 60_000


def test_the_record_names_source_and_revision(s3: Store, tmp_path: Path) -> None:
    _, out, _ = fetch(s3, tmp_path)
    record = json.loads((Path(out.strip()) / RECORD).read_text())
    assert (record["source"], record["revision"]) == (s3.source, "v1")
    assert record["files"] == {name: len(body) for name, body in sorted((SHARDS | SMALL).items())}
