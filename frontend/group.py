"""Whether the group behind this frontend takes requests, as its launcher tells in state.json."""

import asyncio
import fcntl
import os
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from frontend.errors import ApiError, unavailable

POLL_SECONDS = 0.05
"""The launcher tells Triton to drain only after several of these, so that no request gets in between."""
FLOCK = "hhqqi"  # struct flock of fcntl(2)
RETURNS = "engine_unavailable"
CODES = {"stopping": "shutting_down", "stopped": "shutting_down"}


class State(msgspec.Struct):
    """The part of state.json that is read here."""

    phase: str


class Group:
    """Without `state` the group is taken to be always there, and its engine says what it cannot do.

    `refusal` is why no request may begin (message and code), None while they may.
    """

    def __init__(self, state: Path | None, engine_ready: Callable[[], Awaitable[bool]]) -> None:
        self._state, self._engine_ready = state, engine_ready
        self._held: BinaryIO | None = None
        self.refusal = None if state is None else ("the launcher has not said yet that the group is ready", RETURNS)

    def error(self) -> ApiError | None:
        """What a request is told that may not begin."""
        return (
            None if self.refusal is None else unavailable(f"{self.refusal[0]}: send the request again", self.refusal[1])
        )

    def hold(self, *, busy: bool) -> None:
        """While this frontend is busy its launcher, told to end, waits with the ranks for as long as it may.

        It sees that by a shared lock, which goes with this process however that ends.
        """
        if self._held is not None:
            self._held.close()
            self._held = None
        if busy and self._state is not None:
            with suppress(OSError):
                self._held = self._state.with_name("in-flight").open("rb")
                fcntl.lockf(self._held, fcntl.LOCK_SH)

    async def watch(self) -> None:
        """Follows the launcher for as long as the process lives."""
        while self._state is not None:
            refusal = _refusal(self._state)
            # A group that is ready anew has another Triton, which this process may have yet to connect to.
            if refusal is None and self.refusal is not None and not await self._engine_ready():
                refusal = ("the engine is not ready", RETURNS)
            self.refusal = refusal
            await asyncio.sleep(POLL_SECONDS)


def _refusal(state: Path) -> tuple[str, str] | None:
    try:
        phase = msgspec.json.decode(state.read_bytes(), type=State).phase
        lives = _is_locked(state.with_name("lock"))
    except (OSError, msgspec.MsgspecError) as error:
        return f"the launcher's state cannot be read ({error})", RETURNS
    if not lives:
        return "the group's launcher is gone", RETURNS
    return None if phase == "ready" else (f"the group is {phase}", CODES.get(phase, RETURNS))


def _is_locked(path: Path) -> bool:
    """Whether a launcher lives: it holds this file. Its pid tells nothing in another container of its pod."""
    with path.open("rb") as file:
        asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK
