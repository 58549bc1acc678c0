"""Fetching from a Hub that answers as the real one does, in processes that are killed, raced and refused."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest

from planner.sources import checkpoint_folder
from runtime.checkpoint_files import wanted
from runtime.fetch import RECORD, folder_name
from tests.hub import COMMIT, TOKEN, Hub
from tests.ports import free_ports
from tests.runtime import fetching
from tests.runtime.fetching import finish, published
from tests.runtime.launched import until

ROOT = Path(__file__).parents[2]
NAME = "org/tiny-model"
SHARDS = [f"model-{n:05}-of-00004.safetensors" for n in range(1, 5)]
SMALL = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "merges.txt": b"a b\n", "chat_template.jinja": b"{{ x }}"}
UNWANTED = {
    "README.md": b"# it",
    "pytorch_model.bin": b"pickle",
    "consolidated-00001-of-00001.safetensors": b"the same again",
    "original/consolidated.00.pth": b"pickle",
    "original/model.safetensors": b"the same again",
    "modeling_tiny.py": b"import os",
}


def shard(path: str) -> bytes:
    return path.encode() * 40_000  # 1.3 MB


@pytest.fixture
def hub() -> Generator[Hub]:
    files = {path: shard(path) for path in SHARDS} | SMALL | UNWANTED
    with Hub({NAME: files}).serving() as serving:
        yield serving


def start(
    hub: str,
    into: Path,
    *,
    revision: str = COMMIT,
    source: str = f"hf://{NAME}",
    prefix: tuple[str, ...] = (),
    more: tuple[str, ...] = (),
    **env: str,
) -> "subprocess.Popen[str]":
    cache = into.parent / f"{into.name}-cache"
    of_hub = {"HF_ENDPOINT": hub, "XDG_CACHE_HOME": str(cache)}
    return fetching.start(source, into, of_hub | env, *more, revision=revision, prefix=prefix)


def assert_whole(folder: Path) -> None:
    wanted_files = {path: shard(path) for path in SHARDS} | SMALL
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != RECORD} == wanted_files


def test_a_checkpoint_is_fetched_without_what_no_build_reads(hub: Hub, tmp_path: Path) -> None:
    into = tmp_path / "checkpoints"
    status, out, err = finish(start(hub.url, into))

    assert status == 0, err
    folder = into / checkpoint_folder(f"hf://{NAME}", COMMIT)
    assert out == f"{folder}\n"
    assert_whole(folder)
    assert set(hub.gets) == {*SHARDS, *SMALL}
    assert list((into / "staging").iterdir()) == []
    assert "fetching 4.9 MiB, of which 0 B are here" in err

    asked = hub.gets.total()
    again = start("http://127.0.0.1:1", into)  # no Hub there: it is not asked
    assert finish(again)[:2] == (0, f"{folder}\n")
    assert hub.gets.total() == asked


def test_the_planner_names_the_folder_as_the_runtime_does() -> None:
    for source, revision in [(f"hf://{NAME}", COMMIT), ("hf://a/b", "v1"), ("hf://a/b@", "1")]:
        assert checkpoint_folder(source, revision) == folder_name(source, revision)
    assert len(folder_name("a", "b")) == 16


def test_weights_in_other_layouts_are_left_where_they_are() -> None:
    paths = ["model.safetensors", "consolidated.safetensors", "metal/model.bin", "original/model.safetensors"]
    paths += ["model.safetensors.index.json", "model.gguf", "tokenizer.model", "onnx/model.json", "run.py"]
    assert wanted(paths) == ["model.safetensors", "model.safetensors.index.json", "tokenizer.model"]


def test_a_fetch_killed_in_the_middle_publishes_nothing_and_the_next_goes_on(hub: Hub, tmp_path: Path) -> None:
    into = tmp_path / "checkpoints"
    hub.stalled = set(SHARDS[2:])
    first = start(hub.url, into)
    staging = into / "staging" / checkpoint_folder(f"hf://{NAME}", COMMIT)
    # Half of two shards is on its way, the others are complete.
    until(lambda: hub.gets[SHARDS[2]] and hub.gets[SHARDS[3]], "the large files are asked for")
    until(lambda: all((staging / path).exists() for path in [*SHARDS[:2], *SMALL]), "the others are complete")
    first.kill()
    finish(first)
    assert published(into) == []
    left = list(staging.rglob("*.incomplete"))
    assert left

    hub.release()
    before = hub.gets.copy()
    status, out, err = finish(start(hub.url, into))
    assert status == 0, err
    assert_whole(Path(out.strip()))
    assert [hub.gets[path] - before[path] for path in SHARDS] == [0, 0, 1, 1]
    assert not any(path.exists() for path in left)


def test_kill_9_at_many_moments_publishes_all_or_nothing(hub: Hub, tmp_path: Path) -> None:
    into = tmp_path / "checkpoints"
    begun = time.monotonic()
    assert finish(start(hub.url, into))[0] == 0
    seconds = time.monotonic() - begun
    shutil.rmtree(into)
    rounds = 8
    whole = 0
    for round_ in range(rounds):
        # Kills fall later and later, from before the first request to after the last.
        process = start(hub.url, into)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds * (0.4 + 0.8 * round_ / rounds))
        process.kill()
        finish(process)
        for name in published(into) if into.exists() else []:
            whole += 1
            assert_whole(into / name)
            shutil.rmtree(into / name)
    print(f"\n{rounds} kills over {1.2 * seconds:.1f} s, {whole} of them after publication")
    assert finish(start(hub.url, into))[0] == 0
    assert_whole(into / checkpoint_folder(f"hf://{NAME}", COMMIT))


def test_two_fetchers_fetch_once(hub: Hub, tmp_path: Path) -> None:
    into = tmp_path / "checkpoints"
    hub.stalled = {SHARDS[0]}
    first = start(hub.url, into)
    until(lambda: hub.gets[SHARDS[0]], "the first one fetches")
    second = start(hub.url, into)
    assert second.stderr is not None
    assert "another process is fetching" in second.stderr.readline()
    hub.release()
    results = [finish(first), finish(second)]
    assert [status for status, _, _ in results] == [0, 0]
    assert results[0][1] == results[1][1]
    assert set(hub.gets.values()) == {1}


def test_what_one_pod_of_a_node_fetched_no_other_fetches_again(hub: Hub, tmp_path: Path) -> None:
    cache = ("--cache", str(tmp_path / "node"))
    first = finish(start(hub.url, tmp_path / "a", more=cache))
    second = finish(start(hub.url, tmp_path / "b", more=cache, revision="v1"))
    for status, out, err in (first, second):
        assert status == 0, err
        assert_whole(Path(out.strip()))
    assert [hub.gets[path] for path in SHARDS] == [1] * len(SHARDS)
    assert list((tmp_path / "node" / "staging").iterdir()) == []


def test_sigterm_ends_it_at_once_and_keeps_what_is_there(hub: Hub, tmp_path: Path) -> None:
    into = tmp_path / "checkpoints"
    hub.stalled = {SHARDS[0]}
    process = start(hub.url, into)
    until(lambda: hub.gets.total() == len(SHARDS) + len(SMALL), "everything is under way")
    process.send_signal(signal.SIGTERM)
    status = process.wait(5)
    assert status == 128 + signal.SIGTERM
    assert published(into) == []
    assert "goes on from here" in finish(process)[2]


def test_a_damaged_file_is_not_published_and_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    into = tmp_path / "checkpoints"
    hub.damaged = {SHARDS[1], "config.json"}
    status, _, err = finish(start(hub.url, into))
    assert status == 1
    assert f"2 of 8 fetched files are not what the source has: config.json, {SHARDS[1]}" in err
    assert published(into) == []
    hub.damaged = set()
    assert finish(start(hub.url, into))[0] == 0
    assert {path: hub.gets[path] for path in SHARDS} == {path: 1 + (path == SHARDS[1]) for path in SHARDS}


def test_a_published_checkpoint_that_someone_damaged_is_replaced(hub: Hub, tmp_path: Path) -> None:
    into = tmp_path / "checkpoints"
    folder = Path(finish(start(hub.url, into))[1].strip())
    (folder / SHARDS[0]).write_bytes(b"half")
    assert finish(start(hub.url, into))[0] == 0
    assert_whole(folder)
    assert json.loads((folder / RECORD).read_text())["revision"] == COMMIT


def test_a_gated_repository_is_fetched_with_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.gated = {NAME}
    assert finish(start(hub.url, tmp_path / "checkpoints", HF_TOKEN=TOKEN))[0] == 0
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert finish(start(hub.url, tmp_path / "others", HF_TOKEN_PATH=str(tmp_path / "token")))[0] == 0


@pytest.mark.parametrize(
    ("broken", "arguments", "what", "fix"),
    [
        ({"gated": {NAME}}, {}, "is gated, and no token was given", "give a token"),
        ({"gated": {NAME}}, {"HF_TOKEN": "hf_other"}, "is gated, and the account of the given", "agree to the terms"),
        ({"private": {NAME}}, {}, "does not exist, or it is private and no token was given", "correct `source`"),
        ({}, {"source": "hf://org/no", "HF_TOKEN": TOKEN}, "does not exist, or the given token", "correct `source`"),
        ({}, {"revision": "f" * 40}, f"has no revision {'f' * 40}", "a commit hash"),
        ({}, {"source": "hf://org"}, "is not hf://ORG/NAME", "model source"),
        ({"status": 403}, {"HF_TOKEN": "hf_other"}, "refuses the given token with status 403", "account that may read"),
        ({"status": 418}, {}, "answered status 418", "later"),
        ({"repositories": {NAME: {"a.bin": b"x", "config.json": b""}}}, {}, "has no *.safetensors", "safetensors"),
    ],
)
def test_what_cannot_be_fetched_is_refused_with_the_fix(
    hub: Hub, tmp_path: Path, broken: dict[str, object], arguments: dict[str, str], what: str, fix: str
) -> None:
    for name, value in broken.items():
        setattr(hub, name, value)
    status, out, err = finish(start(hub.url, tmp_path / "checkpoints", **arguments))  # pyright: ignore[reportArgumentType]
    assert status == 1
    assert out == ""
    assert what in err
    assert fix in err
    assert "Traceback" not in err
    assert not (tmp_path / "checkpoints").exists() or published(tmp_path / "checkpoints") == []


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    status, _, err = finish(start(f"http://127.0.0.1:{port}", tmp_path / "checkpoints"))
    assert status == 1
    assert f"could not be fetched from http://127.0.0.1:{port}" in err
    assert "network policy" in err
    assert "Traceback" not in err


def test_a_hub_that_goes_away_in_the_middle_publishes_nothing(hub: Hub, tmp_path: Path) -> None:
    """The library takes a folder that is there for a whole one when the Hub does not answer; this must not."""
    into = tmp_path / "checkpoints"
    hub.stalled = {SHARDS[0]}
    first = start(hub.url, into)
    until(lambda: (into / "staging").exists() and list((into / "staging").rglob(SHARDS[1])), "a file is complete")
    first.kill()
    finish(first)
    hub.status = 403
    status, _, err = finish(start(hub.url, into))
    assert status == 1
    assert "status 403" in err
    assert published(into) == []


def test_a_read_only_folder_is_refused(hub: Hub, tmp_path: Path) -> None:
    into = tmp_path / "a file"
    into.write_text("")
    status, _, err = finish(start(hub.url, into))
    assert status == 1
    assert "cannot be written" in err
    assert hub.gets.total() == 0


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        # As large as the checkpoint needs by its bytes, but out of inodes: it is full in the middle.
        ("size=100m,nr_inodes=24", "is full"),
        ("size=2m", "is too small"),
    ],
)
def test_a_full_disk_is_refused_and_publishes_nothing(hub: Hub, tmp_path: Path, limits: str, what: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o {limits} none {disk} && exec "$@"', "sh")
    if subprocess.run([*mounted, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root and util-linux")
    status, _, err = finish(start(hub.url, disk / "checkpoints", prefix=mounted))
    assert status == 1
    assert f"the disk of {disk}/checkpoints {what}" in err
    assert "Traceback" not in err
