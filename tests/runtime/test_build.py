import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.build import build_engine, main
from runtime.errors import Refusal
from runtime.store import EngineStore
from tests.runtime.sample_engines import CPU_KEY, GPU_KEY, spec_of, write_engine

SPEC = spec_of(CPU_KEY)


@pytest.fixture
def quick_cpu_builder(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the CPU builder, whose own tests shard real weights; gives the checkpoints it was called with."""
    calls: list[Path] = []

    def build(checkpoint: Path, spec: dict[str, Any], out: Path, progress: Any) -> None:
        calls.append(checkpoint)
        progress("sharding rank 1 of 3")
        write_engine(out, spec)

    monkeypatch.setattr("runtime.cpu_engine.build", build)
    return calls


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "engine.json").write_text(json.dumps(SPEC))
    (tmp_path / "model.gguf").write_bytes(b"weights")
    spec, checkpoint, store = tmp_path / "engine.json", tmp_path / "model.gguf", tmp_path / "store"
    return ["--spec", str(spec), "--checkpoint", str(checkpoint), "--store", str(store)]


def test_the_command_builds_once_and_prints_the_folder(
    quick_cpu_builder: list[Path], arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "store" / "engines" / SPEC["engine"]
    assert main(arguments) == 0
    first = capsys.readouterr()
    assert first.out == f"{engine}\n"
    assert first.err == "sharding rank 1 of 3\n"
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"engine": SPEC["engine"], "path": str(engine)}
    assert quick_cpu_builder == [tmp_path / "model.gguf"]
    assert EngineStore(tmp_path / "store").verify(SPEC["engine"]) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "does not exist"),
        ("{", "cannot be read as JSON"),
        ("[1]", "not a JSON object"),
        (json.dumps(SPEC | {"engine": "0" * 16}), "not the hash of its key"),
        (json.dumps(SPEC).replace("float32", "float16"), "not the hash of its key"),
    ],
)
def test_a_bad_spec_is_refused_with_status_1_and_no_traceback(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, reason: str
) -> None:
    (tmp_path / "engine.json").unlink() if text is None else (tmp_path / "engine.json").write_text(text)
    assert main([*arguments, "--json"]) == 1
    printed = capsys.readouterr()
    assert reason in printed.err
    assert "fix:" in printed.err
    assert reason in json.loads(printed.out)["refused"]["what"]
    assert not (tmp_path / "store").exists()


def test_a_missing_checkpoint_is_refused_and_nothing_stays(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.gguf").unlink()
    assert main(arguments) == 1
    assert "model.gguf does not exist" in capsys.readouterr().err
    assert list((tmp_path / "store" / "staging").iterdir()) == []


def test_an_engine_that_is_there_needs_no_checkpoint(
    quick_cpu_builder: list[Path], arguments: list[str], tmp_path: Path
) -> None:
    assert main(arguments) == 0
    (tmp_path / "model.gguf").unlink()
    assert main(arguments) == 0
    assert len(quick_cpu_builder) == 1


def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--spec", "x"])
    assert caught.value.code == 2
    assert "--checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["tensorrt", "pytorch"])
def test_a_gpu_engine_is_refused_on_a_host_without_its_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Refusal, match="and this host has none"):
        build_engine(spec_of(GPU_KEY | {"backend": backend}), tmp_path, tmp_path / "store")


def test_a_cpu_engine_is_not_built_under_a_key_of_another_format(quick_cpu_builder: list[Path], tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="cpu_engine 0, and this host has 1"):
        build_engine(spec_of(CPU_KEY, versions={"cpu_engine": "0"}), tmp_path, tmp_path / "store")
    assert quick_cpu_builder == []


def test_a_build_that_cannot_fit_is_refused_before_it_starts(
    quick_cpu_builder: list[Path], arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "model.gguf").open("wb") as stream:
        stream.truncate(shutil.disk_usage(tmp_path).free + (1 << 30))  # sparse: it takes no space
    assert main(arguments) == 1
    assert "is too small" in capsys.readouterr().err
    assert quick_cpu_builder == []


def test_a_stopped_build_cleans_up(arguments: list[str], tmp_path: Path) -> None:
    """SIGTERM is what a pod gets: the staging folder must not fill the shared disk."""
    program = (
        "import sys, time, runtime.cpu_engine as c, runtime.build as b\n"
        "def build(checkpoint, spec, out, progress):\n"
        "    (out / 'rank0.safetensors').write_bytes(b'half')\n"
        "    progress('started'); time.sleep(60)\n"
        "c.build = build\n"
        "sys.exit(b.main(sys.argv[1:]))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    assert child.stderr.readline() == "started\n"
    assert any((tmp_path / "store" / "staging").iterdir())
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 128 + signal.SIGTERM
    child.stderr.close()
    assert list((tmp_path / "store" / "staging").iterdir()) == []


def test_a_stopped_build_takes_its_tools_along(tmp_path: Path) -> None:
    from runtime.tensorrt_engine import _run  # pyright: ignore[reportPrivateUsage]

    class Stop(BaseException):
        pass

    def stop_at_first_line(line: str) -> None:
        if line.isdigit():
            raise Stop(line)

    with pytest.raises(Stop) as caught:
        _run(["sh", "-c", "sleep 60 & echo $!; wait"], tmp_path, stop_at_first_line)
    worker = int(str(caught.value))
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
            state = Path(f"/proc/{worker}/stat").read_text().rsplit(")")[-1].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":
            return
        time.sleep(0.01)
    raise AssertionError(f"worker {worker} outlived the build")
