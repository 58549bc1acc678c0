"""Who may join a group, and what may travel between its hosts."""

import asyncio
import json
import struct
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import Refusal
from runtime.rendezvous import (
    MAX_FRAME,
    MIN_TOKEN_LENGTH,
    Channel,
    ConnectionLost,
    Member,
    Message,
    Rendezvous,
    Timing,
    TryAgain,
    join,
    read_token,
)

TOKEN = b"0123456789abcdef0123456789abcdef"
FAST = Timing(interval=0.05, dead_after=0.5, handshake=0.5)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Leader:
    rendezvous: Rendezvous
    port: int
    log: list[str] = field(default_factory=list[str])

    async def join(self, index: int = 1, token: bytes = TOKEN, **about: Any) -> tuple[Member, Channel]:
        channel = await join("127.0.0.1", self.port, token, index, about, FAST)
        return await asyncio.wait_for(self.rendezvous.joined.get(), 1), channel


def wrong_engine(about: Message) -> str | None:
    return "its engine is another" if about.get("engine") == "wrong" else None


@asynccontextmanager
async def leading(group_size: int = 3) -> AsyncGenerator[Leader]:
    log: list[str] = []
    rendezvous = Rendezvous(TOKEN, group_size, judge=wrong_engine, log=log.append, timing=FAST)
    leader = Leader(rendezvous, await rendezvous.listen("127.0.0.1", 0), log)
    try:
        yield leader
    finally:
        await rendezvous.close()


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 20))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@in_loop
async def test_messages_arrive_in_order_both_ways() -> None:
    async with leading() as leader:
        member, worker = await leader.join(engine="right")
        assert member.about == {"engine": "right"}
        for number in range(50):
            worker.send({"from worker": number})
            member.channel.send({"from leader": number})
        assert [await member.channel.receive() for _ in range(50)] == [{"from worker": n} for n in range(50)]
        assert [await worker.receive() for _ in range(50)] == [{"from leader": n} for n in range(50)]
        await worker.close()
        with pytest.raises(ConnectionLost, match="the connection ended"):
            await member.channel.receive()


@in_loop
async def test_a_wrong_token_is_refused_on_both_sides_and_the_listener_goes_on() -> None:
    async with leading() as leader:
        with pytest.raises(Refusal, match="do not have the same token"):
            await leader.join(token=TOKEN[::-1])
        assert leader.log == ["refused a worker from 127.0.0.1: its token is not this group's"]
        assert not leader.rendezvous.members
        await leader.join()
        assert set(leader.rendezvous.members) == {1}


@in_loop
async def test_a_leader_without_the_token_is_refused_by_the_worker() -> None:
    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        write(writer, {"protocol": "tritonfleet-rendezvous-1", "nonce": "00" * 32})
        hello = await read(reader)
        write(writer, {"proof": hello["proof"]})  # a reflection of what the worker itself sent

    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    async with server:
        with pytest.raises(Refusal, match="do not have the same token"):
            await join("127.0.0.1", server.sockets[0].getsockname()[1], TOKEN, 1, {}, FAST)


@in_loop
async def test_the_token_never_travels_and_no_two_handshakes_are_alike() -> None:
    async with leading() as leader, relaying(leader.port) as relay:
        for _ in range(2):
            channel = await join("127.0.0.1", relay.port, TOKEN, 1, {}, FAST)
            await channel.close()
            await until(lambda: not leader.rendezvous.joined.empty())
            await leader.rendezvous.drop(leader.rendezvous.joined.get_nowait())
        seen = [bytes(c) for c in relay.recorded]
        assert all(TOKEN not in each for each in seen)
        assert len(seen) == 4
        assert len({each[:200] for each in seen}) == 4


@in_loop
async def test_a_recorded_worker_cannot_join_again() -> None:
    async with leading() as leader, relaying(leader.port) as relay:
        channel = await join("127.0.0.1", relay.port, TOKEN, 1, {}, FAST)
        channel.send({"did": "something"})
        member = await asyncio.wait_for(leader.rendezvous.joined.get(), 1)
        await member.channel.receive()
        await channel.close()
        await leader.rendezvous.drop(member)
        _, writer = await asyncio.open_connection("127.0.0.1", leader.port)
        writer.write(relay.recorded[0])
        await until(lambda: bool(leader.log))
        assert "its token is not this group's" in leader.log[-1]
        assert not leader.rendezvous.members
        writer.close()


@pytest.mark.parametrize("attack", ["change", "replay", "swap", "insert", "reflect", "huge"])
def test_frames_that_were_tampered_with_end_the_connection(attack: str) -> None:
    async def test() -> None:
        async with leading() as leader, relaying(leader.port) as relay:
            channel = await join("127.0.0.1", relay.port, TOKEN, 1, {}, Timing(60, 60, 1))
            member = await asyncio.wait_for(leader.rendezvous.joined.get(), 1)
            channel.send({"pay": 0})
            assert await member.channel.receive() == {"pay": 0}  # the first heartbeats are past
            # The leader's frames get as far as the worker's, so that only the direction tells them apart.
            for number in range(2):
                member.channel.send({"pay": number})
                await channel.receive()
            relay.holding = True
            channel.send({"pay": 1})
            channel.send({"pay": 2})
            first, second = await relay.held(2)
            forged = {
                "change": [first[:-2] + b"9}"],
                "replay": [first, first],
                "swap": [second, first],
                "insert": [struct.pack(">I", 10) + bytes(32) + b'{"pay": 9}'],
                "reflect": [relay.from_leader()[-1]],
                "huge": [struct.pack(">I", MAX_FRAME + 1) + bytes(64)],
            }[attack]
            for frame in forged:
                relay.to_leader.write(frame)
            if attack == "replay":
                assert await member.channel.receive() == {"pay": 1}
            with pytest.raises(ConnectionLost, match=r"not authentic|larger than any"):
                await member.channel.receive()
            await channel.close()

    in_loop(test)()


@in_loop
async def test_silence_is_loss_and_heartbeats_are_not_messages() -> None:
    async with leading() as leader, relaying(leader.port) as relay:
        channel = await join("127.0.0.1", relay.port, TOKEN, 1, {}, FAST)
        member = await asyncio.wait_for(leader.rendezvous.joined.get(), 1)
        quiet = asyncio.gather(member.channel.receive(), channel.receive(), return_exceptions=True)
        await asyncio.sleep(3 * FAST.dead_after)
        assert not quiet.done()
        relay.holding = relay.holding_leader = True  # the connection stays open, as when a host loses its power
        cut = time.monotonic()
        results = await quiet
        assert all(isinstance(result, ConnectionLost) and "nothing was heard" in str(result) for result in results)
        assert FAST.dead_after * 0.8 < time.monotonic() - cut < FAST.dead_after * 3
        await channel.close()


@in_loop
async def test_an_index_belongs_to_one_live_worker() -> None:
    async with leading() as leader:
        member, first = await leader.join(1)
        with pytest.raises(TryAgain, match="worker 1 is already here"):
            await leader.join(1)
        assert leader.rendezvous.members[1] is member
        await first.close()
        with pytest.raises(ConnectionLost):
            await member.channel.receive()
        await leader.rendezvous.drop(member)
        successor, _ = await leader.join(1)
        assert leader.rendezvous.members == {1: successor}
        # What is known of the dead one must not hurt its successor.
        await leader.rendezvous.drop(member)
        assert leader.rendezvous.members == {1: successor}


@in_loop
async def test_unusable_workers_are_told_why() -> None:
    async with leading(group_size=3) as leader:
        for index in (0, 3, -1):
            with pytest.raises(Refusal, match=r"not in 1…2"):
                await leader.join(index)
        with pytest.raises(Refusal, match="its engine is another"):
            await leader.join(1, engine="wrong")
        assert len(leader.log) == 4


@in_loop
async def test_strangers_cannot_keep_the_listener_busy() -> None:
    async with leading() as leader:
        silent = await asyncio.open_connection("127.0.0.1", leader.port)
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", struct.pack(">I", 1 << 31), struct.pack(">I", 2) + b"[]", b""):
            _, writer = await asyncio.open_connection("127.0.0.1", leader.port)
            writer.write(garbage)
            writer.write_eof()
        await leader.join()
        await until(lambda: len(leader.log) == 5)
        assert "did not finish the handshake in time" in leader.log[-1]
        silent[1].close()


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)))
def test_no_hello_of_a_stranger_gets_in_or_breaks_the_listener(hello: object) -> None:
    async def test() -> None:
        async with leading() as leader:
            _, writer = await asyncio.open_connection("127.0.0.1", leader.port)
            payload = json.dumps(hello).encode()
            writer.write(struct.pack(">I", len(payload)) + payload)
            writer.write_eof()
            await until(lambda: bool(leader.log))
            assert not leader.rendezvous.members
            writer.close()

    in_loop(test)()


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    path.write_bytes(TOKEN + b"\n")
    assert read_token(path) == TOKEN
    monkeypatch.setenv("TRITONFLEET_TOKEN", TOKEN.decode())
    assert read_token(None) == TOKEN
    path.write_bytes(b"x" * (MIN_TOKEN_LENGTH - 1))
    for bad in (path, tmp_path / "none"):
        with pytest.raises(Refusal) as refusal:
            read_token(bad)
        assert str(bad) in refusal.value.what
    monkeypatch.delenv("TRITONFLEET_TOKEN")
    with pytest.raises(Refusal, match="TRITONFLEET_TOKEN has 0 characters"):
        read_token(None)


class Relay:
    """Someone on the path between worker and leader: records all, and holds back what `holding` says."""

    def __init__(self, leader_port: int) -> None:
        self.leader_port = leader_port
        self.port = 0
        self.recorded: list[bytearray] = []
        self.holding = False
        self.holding_leader = False
        self.to_leader: asyncio.StreamWriter
        self._held = bytearray()
        self._writers: list[asyncio.StreamWriter] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        leader_reader, self.to_leader = await asyncio.open_connection("127.0.0.1", self.leader_port)
        self._writers += [writer, self.to_leader]
        await asyncio.gather(self._pump(reader, self.to_leader, True), self._pump(leader_reader, writer, False))

    async def held(self, frames: int) -> list[bytes]:
        await until(lambda: len(split_frames(self._held)) >= frames)
        return split_frames(self._held)

    def from_leader(self) -> list[bytes]:
        """The frames after the handshake, whose two are plain."""
        data = self.recorded[-1]
        for _ in range(2):
            data = data[4 + struct.unpack(">I", data[:4])[0] :]
        return split_frames(data)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, from_worker: bool) -> None:
        self.recorded.append(record := bytearray())
        while data := await reader.read(65536):
            record += data
            if from_worker and self.holding:
                self._held += data
            elif from_worker or not self.holding_leader:
                writer.write(data)
        writer.close()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def relaying(leader_port: int) -> AsyncGenerator[Relay]:
    relay = Relay(leader_port)
    server = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        relay.close()
        server.close()


def split_frames(data: bytearray) -> list[bytes]:
    frames: list[bytes] = []
    rest = bytes(data)
    while len(rest) >= 36:
        end = 36 + struct.unpack(">I", rest[:4])[0]
        frames.append(rest[:end])
        rest = rest[end:]
    return frames


def write(writer: asyncio.StreamWriter, message: Message) -> None:
    payload = json.dumps(message).encode()
    writer.write(struct.pack(">I", len(payload)) + payload)


async def read(reader: asyncio.StreamReader) -> Message:
    (length,) = struct.unpack(">I", await reader.readexactly(4))
    return json.loads(await reader.readexactly(length))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(3):
        while not condition():
            await asyncio.sleep(0.01)
