"""Packages in a folder that pods share, installed by the real pip from an index on this machine."""

import functools
import hashlib
import os
import platform
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from runtime.environment import MACHINES, install, main
from runtime.errors import Refusal

NAME = "0123456789"
CODE = {machine: f"MACHINE = {machine!r}\n" for machine in MACHINES}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an index that pip is told of, with a wheel of the package `built` for each machine."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("this Python has no pip")
    folder = tmp_path / "index"
    (folder / "built").mkdir(parents=True)
    for machine in MACHINES:
        wheel(folder / "built", machine)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {"INDEX_URL": f"http://127.0.0.1:{server.server_port}/", "CONFIG_FILE": os.devnull, "RETRIES": "0"}
        for name, value in settings.items():
            monkeypatch.setenv(f"PIP_{name}", value)
        yield folder
        server.shutdown()


def wheel(folder: Path, machine: str) -> Path:
    made, info = folder / f"built-1.0-py3-none-manylinux2014_{machine}.whl", "built-1.0.dist-info"
    tag = f"py3-none-manylinux2014_{machine}"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("built.py", CODE[machine])
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: built\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return made


def requirements(tmp_path: Path, index: Path) -> Path:
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((index / "built").iterdir())]
    file = tmp_path / "pods.txt"
    file.write_text("built==1.0" + "".join(f" --hash=sha256:{digest}" for digest in hashes) + "\n")
    return file


def test_each_machine_gets_its_own_wheels_and_imports_them(tmp_path: Path, index: Path) -> None:
    folder = install(requirements(tmp_path, index), tmp_path / "shared", NAME)

    assert folder == tmp_path / "shared" / NAME
    for machine in MACHINES:
        assert (folder / machine / "built.py").read_text() == CODE[machine]
    program = "import built; print(built.MACHINE, built.__file__)"
    environment = {"PYTHONPATH": f"{tmp_path}:{folder}"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.split() == [platform.machine(), str(folder / platform.machine() / "built.py")]
    # A program's own files come first.
    (tmp_path / "built.py").write_text("MACHINE = 'none'\n")
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.startswith("none")


def test_what_is_there_is_not_installed_again(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requirements(tmp_path, index)
    install(asked, tmp_path / "shared", NAME)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")

    assert main(["--requirements", str(asked), "--into", str(tmp_path / "shared"), "--name", NAME]) == 0


def test_what_a_killed_installer_left_is_cleared_away(tmp_path: Path, index: Path) -> None:
    left = tmp_path / "shared" / "staging" / f"{NAME}.dead"
    left.mkdir(parents=True)
    (left / "half").write_text("half")

    install(requirements(tmp_path, index), tmp_path / "shared", NAME)

    assert not [*(tmp_path / "shared" / "staging").glob(f"{NAME}.dead")]


def refused(tmp_path: Path, asked: Path) -> str:
    with pytest.raises(Refusal) as refusal:
        install(asked, tmp_path / "shared", NAME, MACHINES[:1])
    assert not (tmp_path / "shared" / NAME).exists()
    assert not [*(tmp_path / "shared" / "staging").iterdir()], "nothing half-done is left"
    return refusal.value.what


def test_another_wheel_than_the_pinned_one_is_refused(tmp_path: Path, index: Path) -> None:
    asked = requirements(tmp_path, index)
    for path in (index / "built").iterdir():
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("more.py", "")

    assert "hash differs" in refused(tmp_path, asked)


def test_an_index_that_does_not_answer_is_refused(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "1")

    assert "does not answer" in refused(tmp_path, requirements(tmp_path, index))


def test_a_package_without_a_wheel_is_refused_by_name(tmp_path: Path, index: Path) -> None:
    asked = requirements(tmp_path, index)
    for path in (index / "built").glob(f"*{MACHINES[0]}*"):
        path.unlink()

    assert "built==1.0" in refused(tmp_path, asked)


def test_a_full_disk_is_refused(tmp_path: Path, index: Path) -> None:
    """On a file system of 1 MiB, as a quota would end it."""
    with (index / "built" / "large").open("wb") as large:
        large.truncate(4 << 20)
    small = tmp_path / "shared"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], check=False).returncode:
        pytest.skip("this user may not mount")
    try:
        for path in (index / "built").glob("*.whl"):
            with zipfile.ZipFile(path, "a") as archive:
                archive.write(index / "built" / "large", "large.bin")
        assert "is full" in refused(tmp_path, requirements(tmp_path, index))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_read_only_folder_is_refused(tmp_path: Path, index: Path) -> None:
    (tmp_path / "shared").write_text("a file")
    asked = requirements(tmp_path, index)
    assert main(["--requirements", str(asked), "--into", str(tmp_path / "shared"), "--name", NAME]) == 1
