"""Server-sent events of one answer, with at most sixty writes a second."""

import asyncio

from starlette.types import Message, Send

GATHER_SECONDS = 1 / 60
"""A write costs more than everything else that is done for a token; what comes sooner after one than a screen would
show it waits for the next. A stream whose tokens come further apart than that is never delayed."""
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventWriter:
    """`started`: the client has a status, and only events can tell it more."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self._waiting: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._flush: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()

    async def write(self, event: bytes) -> None:
        self._waiting.append(event)
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        # A client that reads slowly holds up its own answer, not this server's memory.
        if self._timer is None or self._sending.locked():
            await self._flush_now()

    async def close(self, events: bytes) -> None:
        """The last events, with those that wait."""
        async with self._sending:
            if self._timer is not None:
                self._timer.cancel()
            await self._send(_body(self._take() + events, more=False))

    async def _flush_now(self) -> None:
        async with self._sending:
            if self._waiting:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._gathered)
                await self._send(_body(self._take(), more=True))

    def _gathered(self) -> None:
        self._timer = None
        if self._waiting:
            self._flush = asyncio.create_task(self._flush_now())

    def _take(self) -> bytes:
        events = b"".join(self._waiting)
        self._waiting.clear()
        return events


def _body(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
