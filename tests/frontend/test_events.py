"""Events reach a client once and in order, whenever the end comes and however slowly the client reads."""

import asyncio
import itertools

import pytest
from starlette.types import Message

from frontend import events
from frontend.events import GATHER_SECONDS, EventWriter


class Client:
    """What was sent; each body takes `pause` seconds, where the socket takes no more for a while."""

    def __init__(self, pause: float) -> None:
        self.pause, self.bodies = pause, list[bytes]()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            if self.pause:
                await asyncio.sleep(self.pause)
            self.bodies.append(message["body"])


@pytest.mark.parametrize("writers", [1, 3])
def test_a_slow_client_gets_each_event_once(writers: int) -> None:
    client, numbers, written = Client(3 * GATHER_SECONDS), itertools.count(), list[bytes]()

    async def answer() -> None:
        writer = EventWriter(client.send)

        async def choice() -> None:
            for _ in range(10):
                written.append(b"%d," % next(numbers))
                await writer.write(written[-1])
                await asyncio.sleep(GATHER_SECONDS / 3)

        await asyncio.gather(*(choice() for _ in range(writers)))
        await writer.close(b"end")

    asyncio.run(answer())
    assert b"".join(client.bodies) == b"".join(written) + b"end"


@pytest.mark.parametrize("turns", range(6))
def test_nothing_follows_the_end(monkeypatch: pytest.MonkeyPatch, turns: int) -> None:
    """Whatever of the loop's turns it comes in: gathered events may be about to be sent."""
    monkeypatch.setattr(events, "GATHER_SECONDS", 0)
    client = Client(0)

    async def answer() -> None:
        writer = EventWriter(client.send)
        await writer.write(b"1,")
        await writer.write(b"2,")
        for _ in range(turns):
            await asyncio.sleep(0)
        await writer.close(b"end")
        await asyncio.sleep(0.02)

    asyncio.run(answer())
    assert b"".join(client.bodies) == b"1,2,end"
