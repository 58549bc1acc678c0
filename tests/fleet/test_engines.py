import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from fleet.engines import add_parser, run
from runtime.store import EngineStore
from tests.runtime.sample_engines import CPU_KEY, GPU_KEY, spec_of, write_engine

CPU, GPU = spec_of(CPU_KEY), spec_of(GPU_KEY)


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    """A store with one CPU and one GPU engine."""
    store = EngineStore(tmp_path / "store")
    for spec in (CPU, GPU):
        store.publish(spec, lambda out, spec=spec: write_engine(out, spec, rank_bytes=2 << 20))
    return store


def engines(store: EngineStore, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["engines", *arguments, "--store", str(store.root)])
    assert args.run is run
    return run(args)


def make_old(store: EngineStore, id_: str, days: float) -> None:
    then = time.time() - days * 86400
    engine = store.root / "engines" / id_
    for path in (engine, engine / "manifest.json", store.root / "locks" / f"{id_}.lease"):
        os.utime(path, (then, then))


def test_list_shows_every_engine_with_its_facts(store: EngineStore, capsys: pytest.CaptureFixture[str]) -> None:
    (store.root / "engines" / GPU["engine"] / "rank0.engine").unlink()
    with store.lease(CPU["engine"]):
        assert engines(store, "list") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for text in ("file:///models/tiny", "cpu", "3 x 1", "none (CPU)", "6.0 MiB", "yes", "whole"):
        assert text in rows[CPU["engine"]]
    for text in ("hf://meta-llama/Llama-3.1-8B@d04e592", "tensorrt", "2 x 1", "H100-80GB", "2.0 MiB", "no", "damaged"):
        assert text in rows[GPU["engine"]]


def test_a_narrow_terminal_cuts_no_id_off(
    store: EngineStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert engines(store, "list") == 0
    printed = capsys.readouterr().out
    assert CPU["engine"] in printed
    assert GPU["engine"] in printed


def test_list_as_json_holds_the_key(store: EngineStore, capsys: pytest.CaptureFixture[str]) -> None:
    (store.root / "engines" / GPU["engine"] / "manifest.json").write_text("{")
    assert engines(store, "list", "--json") == 0
    listed: dict[str, Any] = {entry["id"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed[CPU["engine"]]["key"] == CPU["key"]
    assert (listed[CPU["engine"]]["in_use"], listed[CPU["engine"]]["problem"]) == (False, None)
    assert listed[GPU["engine"]]["key"] == {}
    assert "cannot be read" in listed[GPU["engine"]]["problem"]


def test_an_engine_with_an_unreadable_manifest_is_still_a_row(
    store: EngineStore, capsys: pytest.CaptureFixture[str]
) -> None:
    (store.root / "engines" / GPU["engine"] / "manifest.json").write_text("{")
    assert engines(store, "list") == 0
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["list", "verify", "gc"])
def test_an_empty_store_is_no_error(tmp_path: Path, action: str) -> None:
    assert engines(EngineStore(tmp_path / "none"), action) == 0
    assert not (tmp_path / "none").exists()


def test_verify_says_sound_until_one_byte_differs(store: EngineStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert engines(store, "verify") == 0
    assert capsys.readouterr().out.count("sound") == 2
    with (store.root / "engines" / GPU["engine"] / "rank1.engine").open("r+b") as stream:
        stream.seek(1 << 20)
        stream.write(b"\0")
    assert engines(store, "verify", CPU["engine"][:8]) == 0
    capsys.readouterr()
    assert engines(store, "verify", "--json") == 1
    printed = capsys.readouterr()
    problems = json.loads(printed.out)
    assert problems[CPU["engine"]] == []
    assert "rank1.engine has other content" in problems[GPU["engine"]][0]
    assert "1 of 2 engines damaged" in printed.err
    assert "fix:" in printed.err


def test_verify_of_an_unknown_id_names_those_there_are(store: EngineStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert engines(store, "verify", "nothing") == 1
    error = capsys.readouterr().err
    assert "'nothing' names no engine" in error
    assert CPU["engine"] in error


def test_gc_removes_the_old_and_keeps_the_named_the_used_and_the_recent(
    store: EngineStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engines(store, "gc") == 0
    assert "removed 0, 0 B" in capsys.readouterr().out
    make_old(store, CPU["engine"], 40)
    make_old(store, GPU["engine"], 20)
    assert engines(store, "gc", "--dry-run", "--json") == 0
    (planned,) = json.loads(capsys.readouterr().out)
    assert Path(planned["path"]).name == CPU["engine"]
    assert planned["bytes"] > 6 << 20
    assert engines(store, "gc", "--keep", CPU["engine"][:6]) == 0
    assert len(store.list()) == 2
    assert engines(store, "gc", "--older-than-days", "10", "--keep", CPU["engine"]) == 0
    assert "unused for 20.0 days" in capsys.readouterr().out
    assert [info.id for info in store.list()] == [CPU["engine"]]
    assert engines(store, "gc") == 0
    assert store.list() == []


@pytest.mark.parametrize("days", ["-1", "nan", "soon", "inf"])
def test_a_senseless_age_is_wrong_usage(store: EngineStore, days: str) -> None:
    with pytest.raises(SystemExit) as caught:
        engines(store, "gc", f"--older-than-days={days}")
    assert caught.value.code == 2
    assert len(store.list()) == 2
