"""Keeps the frontend running: process 1 of its container.

    python -m frontend.keep --port 9000 …    (what else is given goes to `python -m frontend`, too)

Kubernetes restarts a container that ends, and LeaderWorkerSet then makes the whole group anew, however many GPUs it
has. So a frontend that ends or no longer answers is started again in here, where no controller sees it. On SIGTERM the
frontend drains, and its exit status is this process's.
"""

import argparse
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException

CHECK_SECONDS, PATIENCE_SECONDS = 10.0, 60.0
# Between two starts: longer each time that it did not last.
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, LASTING_SECONDS = 1.0, 30.0, 60.0

_STOP = {signal.SIGTERM, signal.SIGINT}
_CHILD = signal.SIGCHLD


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m frontend.keep", add_help=False)
    parser.add_argument("--port", type=int, default=9000)
    port = parser.parse_known_args(given)[0].port
    # Waited for, never handled.
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_STOP, _CHILD})
    pause = PAUSE_SECONDS
    while True:
        began = time.monotonic()
        child = subprocess.Popen([sys.executable, "-m", "frontend", *given], preexec_fn=_unblock)
        if _watch(child, f"http://127.0.0.1:{port}/healthz"):
            child.terminate()
            return child.wait()
        lasted = time.monotonic() - began
        pause = PAUSE_SECONDS if lasted > LASTING_SECONDS else min(2 * pause, LONGEST_PAUSE_SECONDS)
        print(f"the frontend ended with status {child.returncode}; again in {pause:g} s", file=sys.stderr, flush=True)
        if signal.sigtimedwait(_STOP, pause):
            return 0


def _watch(child: "subprocess.Popen[bytes]", url: str) -> bool:
    """Returns when the child has ended (False), or this process is to end (True). Ends a child that says nothing."""
    answered = time.monotonic()
    while child.poll() is None:
        heard = signal.sigtimedwait({*_STOP, _CHILD}, CHECK_SECONDS)
        if heard and heard.si_signo in _STOP:
            return True
        if _answers(url):
            answered = time.monotonic()
        elif time.monotonic() - answered > PATIENCE_SECONDS:
            print(f"the frontend has not answered for {PATIENCE_SECONDS:g} s", file=sys.stderr, flush=True)
            child.kill()
            child.wait()
    return False


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=CHECK_SECONDS) as response:
            return response.status == 200
    except (OSError, HTTPException):
        return False


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


if __name__ == "__main__":
    sys.exit(main())
