"""Process 1 of the frontend's container: starts it again, passes the end on, and ends with it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.ports import free_ports

ROOT = Path(__file__).parents[2]

# In place of the frontend: answers on --port, as long as the file `silent` is not there.
STAND_IN = """\
import http.server, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if os.path.exists("silent") else 200)
        self.end_headers()
    def log_message(self, *_): pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("started", *sys.argv[1:], flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


class Kept:
    """The real frontend.keep, with the stand-in for the frontend."""

    def __init__(self, folder: Path) -> None:
        package = folder / "frontend"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(STAND_IN)
        code = (ROOT / "frontend" / "keep.py").read_text()
        quick = code.replace("PATIENCE_SECONDS = 10.0, 60.0", "PATIENCE_SECONDS = 0.1, 5.0")
        assert quick != code
        (package / "keep.py").write_text(quick)
        self.folder, self.log = folder, folder / "log"
        command = [sys.executable, "-m", "frontend.keep", "--model", "m", "--port", str(free_ports(1)[0])]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

    def said(self) -> str:
        return self.log.read_text()

    def child(self) -> int:
        (child,) = psutil.Process(self.process.pid).children()
        return child.pid


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    try:
        until(lambda: "started" in made.said())
        yield made
    finally:
        for process in (
            [made.process, *psutil.Process(made.process.pid).children()] if made.process.poll() is None else []
        ):
            process.kill()
        made.process.wait()


def test_a_frontend_that_dies_is_started_again_with_the_same_options(kept: Kept) -> None:
    first = kept.child()
    os.kill(first, signal.SIGKILL)
    until(lambda: kept.said().count("started --model m") == 2)

    assert kept.process.poll() is None
    assert kept.child() != first
    assert "ended with status -9" in kept.said()


def test_a_frontend_that_does_not_answer_is_started_again(kept: Kept) -> None:
    (kept.folder / "silent").touch()
    until(lambda: "has not answered" in kept.said())
    (kept.folder / "silent").unlink()
    until(lambda: kept.said().count("started") == 2)

    assert kept.process.poll() is None


def test_the_end_is_the_frontends_and_so_is_the_status(kept: Kept) -> None:
    child = kept.child()
    kept.process.send_signal(signal.SIGTERM)

    assert kept.process.wait(30) == 7
    assert not psutil.pid_exists(child)
    assert kept.said().count("started") == 1


def test_between_two_starts_it_ends_at_once(kept: Kept) -> None:
    (kept.folder / "frontend" / "__main__.py").write_text("import sys; sys.exit(2)")
    os.kill(kept.child(), signal.SIGKILL)
    until(lambda: "ended with status 2" in kept.said())
    kept.process.send_signal(signal.SIGTERM)

    assert kept.process.wait(30) == 0
