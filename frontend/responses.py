"""One completion over HTTP: streamed or whole, told in-band when it cannot go on, cancelled when its client leaves."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing, suppress

from starlette.types import Receive, Scope, Send

from frontend import metrics
from frontend.completion import Sequence
from frontend.engine import STOP_SECONDS
from frontend.errors import ApiError, unavailable
from frontend.events import EventWriter
from frontend.formats import DONE, Format, Piece, Usage

ENGINE_SECONDS = 1.0
"""What the engine has to end a request that is cut off."""


class CompletionResponse:
    """An ASGI response. `ended` is called once with the status and the tokens of the answer, however it ends."""

    def __init__(
        self,
        sequences: list[Sequence],
        form: Format,
        *,
        prompt_tokens: int,
        stream: bool,
        ended: Callable[[int, int], None],
    ) -> None:
        self._sequences, self._form, self._prompt_tokens = sequences, form, prompt_tokens
        self._stream, self._ended = stream, ended
        self._cut_off: ApiError | None = None
        self._generating: asyncio.Timeout | None = None
        self._status = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        began = time.perf_counter()
        work = asyncio.create_task(self._answer(send))
        leaves = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait([work, leaves], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._status = 499
                self._stop()
                await asyncio.wait([work], timeout=2 * STOP_SECONDS)
        finally:
            leaves.cancel()
            work.cancel()
            await asyncio.wait([work])
            metrics.duration.observe(time.perf_counter() - began)
            self._ended(self._status, sum(sequence.tokens for sequence in self._sequences))
        if not work.cancelled():
            work.result()

    def cut_off(self) -> None:
        """End now and tell the client why, even where the engine does not answer."""
        self._cut_off = unavailable("the server shuts down: send the request again", "shutting_down")
        self._stop()
        if self._generating is not None:
            with suppress(RuntimeError):  # all is generated, and only to be sent
                self._generating.reschedule(asyncio.get_running_loop().time() + ENGINE_SECONDS)

    def _stop(self) -> None:
        for sequence in self._sequences:
            sequence.stop()

    async def _answer(self, send: Send) -> None:
        writer = EventWriter(send)
        try:
            pieces: list[list[Piece]] = [[] for _ in self._sequences]
            with suppress(TimeoutError):
                async with asyncio.timeout(None) as self._generating:
                    await self._all_choices(writer, pieces)
            if not all(sequence.finished for sequence in self._sequences):
                raise self._cut_off or unavailable("the client left", "client_left")
            usage = Usage(self._prompt_tokens, sum(sequence.tokens for sequence in self._sequences))
            if self._stream:
                await writer.close(self._form.closing(usage))
            else:
                await _whole(send, 200, {"content-type": "application/json"}, self._form.body(pieces, usage))
        except ApiError as error:
            if self._status == 200:
                self._status = error.status
            if writer.started:
                await writer.close(b"data: " + error.body() + b"\n\n" + DONE)
            else:
                await _whole(send, error.status, error.headers(), error.body())

    async def _all_choices(self, writer: EventWriter, pieces: list[list[Piece]]) -> None:
        if len(pieces) == 1:
            await self._choice(0, writer, pieces[0])
            return
        try:
            async with asyncio.TaskGroup() as group:
                for index, kept in enumerate(pieces):
                    group.create_task(self._choice(index, writer, kept))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _choice(self, index: int, writer: EventWriter, kept: list[Piece]) -> None:
        """Streams start with their first token: until then a failure has a status of its own."""
        event, opening = self._form.event, self._form.opening(index)
        async with aclosing(self._sequences[index].pieces()) as pieces:
            async for piece in pieces:
                if self._stream:
                    await writer.write(opening + event(index, piece))
                    opening = b""
                else:
                    kept.append(piece)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _whole(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
