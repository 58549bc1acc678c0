"""How the hosts of a group find and trust each other: TCP, one shared token, no ssh and no Kubernetes API.

Handshake, each message a frame of JSON: the leader sends a nonce; the worker sends its index, what it has (`about`),
its own nonce and an HMAC-SHA256 over all of that; the leader answers with an HMAC of its own over the same. The token
never travels, and a fresh nonce from either side makes recordings useless. From both nonces a session key is derived;
every later frame carries an HMAC over direction, sequence number and content, so that nothing can be put in,
replayed, reordered or turned around. Contents are not secret.

Both sides send heartbeats: a host that vanishes without closing its connection is noticed after `Timing.dead_after`
seconds.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import Refusal

PROTOCOL = "tritonfleet-rendezvous-1"
MAX_FRAME = 1 << 20
MAX_HANDSHAKE_FRAME = 1 << 13
MIN_TOKEN_LENGTH = 32
TOKEN_VARIABLE = "TRITONFLEET_TOKEN"

Message = dict[str, Any]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Timing:
    """Seconds. `dead_after` without a frame from the other side is the loss of it."""

    interval: float = 1.0
    dead_after: float = 10.0
    handshake: float = 5.0


class ConnectionLost(Exception):
    """The other side is gone, silent for too long, or sent what only someone without the token would."""


class TryAgain(Exception):
    """The leader, known by its proof, will not have this worker now but may later."""


def read_token(token_file: Path | None) -> bytes:
    """The token from a file (a mounted Secret) or from TRITONFLEET_TOKEN. Raises Refusal when missing or short."""
    try:
        token = token_file.read_bytes().strip() if token_file else os.environ.get(TOKEN_VARIABLE, "").strip().encode()
    except OSError as error:
        raise Refusal(
            f"the token file {token_file} cannot be read: {error.strerror}",
            "the hosts of this group could not know each other",
            "mount the group's Secret there, or correct --token-file",
        ) from None
    if len(token) < MIN_TOKEN_LENGTH:
        where = f"the token in {token_file}" if token_file else f"the token in {TOKEN_VARIABLE}"
        raise Refusal(
            f"{where} has {len(token)} characters; a group of several hosts needs at least {MIN_TOKEN_LENGTH}",
            "anyone who reaches the leader's port and guesses it could start processes on every host of the group",
            "make one with `openssl rand -hex 32` and give the same to every host with --token-file",
        )
    return token


class Channel:
    """An authenticated connection. One task may receive; any may send."""

    def __init__(self, streams: Streams, key: bytes, mine: bytes, theirs: bytes, timing: Timing) -> None:
        self._reader, self._writer = streams
        self._key, self._mine, self._theirs, self._timing = key, mine, theirs, timing
        self._sent = 0
        self._received = 0
        self._beats = asyncio.create_task(self._beat())

    @property
    def local_address(self) -> str:
        return self._writer.get_extra_info("sockname")[0]

    @property
    def remote_address(self) -> str:
        return self._writer.get_extra_info("peername")[0]

    def send(self, message: Message) -> None:
        """Queues the message; that it does not arrive shows as ConnectionLost from `receive`."""
        payload = json.dumps(message).encode()
        if len(payload) > MAX_FRAME:
            raise ValueError(f"a message of {len(payload)} bytes is larger than {MAX_FRAME}")
        mac = self._mac(self._mine, self._sent, payload)
        self._sent += 1
        if not self._writer.is_closing():
            self._writer.write(struct.pack(">I", len(payload)) + mac + payload)

    async def receive(self) -> Message:
        """The next message that is not a heartbeat. Raises ConnectionLost."""
        while True:
            try:
                async with asyncio.timeout(self._timing.dead_after):
                    (length,) = struct.unpack(">I", await self._reader.readexactly(4))
                    if length > MAX_FRAME:
                        raise ConnectionLost("a frame was larger than any message")
                    mac = await self._reader.readexactly(32)
                    payload = await self._reader.readexactly(length)
            except TimeoutError:
                raise ConnectionLost(f"nothing was heard for {self._timing.dead_after:g} s") from None
            except (asyncio.IncompleteReadError, OSError):
                raise ConnectionLost("the connection ended") from None
            if not hmac.compare_digest(mac, self._mac(self._theirs, self._received, payload)):
                raise ConnectionLost("a frame was not authentic")
            self._received += 1
            message: Message = json.loads(payload)
            if message:
                return message

    async def close(self) -> None:
        self._beats.cancel()
        self._writer.close()
        # A peer that vanished will never take what is still queued.
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(0.5):
                await self._writer.wait_closed()
        self._writer.transport.abort()

    def _mac(self, direction: bytes, number: int, payload: bytes) -> bytes:
        return hmac.digest(self._key, direction + struct.pack(">Q", number) + payload, "sha256")

    async def _beat(self) -> None:
        while True:
            self.send({})
            await asyncio.sleep(self._timing.interval)


@dataclass(frozen=True)
class Member:
    """A worker host that proved to hold the token. `about` is what it said of itself, authenticated."""

    index: int
    about: Message
    channel: Channel


class Rendezvous:
    """The leader's side: accepts one worker per index 1…group_size-1 and puts each into `joined`.

    `judge` gets what a worker says of itself and returns why it cannot be used, or None. `log` gets a line per refusal.
    """

    def __init__(
        self,
        token: bytes,
        group_size: int,
        *,
        judge: Callable[[Message], str | None],
        log: Callable[[str], None],
        timing: Timing,
    ) -> None:
        self.members: dict[int, Member] = {}
        self.joined: asyncio.Queue[Member] = asyncio.Queue()
        self._token, self._group_size, self._judge, self._log, self._timing = token, group_size, judge, log, timing
        self._server: asyncio.Server | None = None

    async def listen(self, address: str, port: int) -> int:
        """Starts accepting; returns the port, which is chosen when 0 was asked for."""
        self._server = await asyncio.start_server(self._accept, address, port)
        return self._server.sockets[0].getsockname()[1]

    async def drop(self, member: Member) -> None:
        """Forgets a member that is lost, so that its successor is welcome."""
        if self.members.get(member.index) is member:
            del self.members[member.index]
        await member.channel.close()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for member in list(self.members.values()):
            await self.drop(member)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")[0]
        try:
            async with asyncio.timeout(self._timing.handshake):
                problem = await self._welcome(reader, writer)
        except TimeoutError:
            problem = "it did not finish the handshake in time"
        except (asyncio.IncompleteReadError, OSError):
            problem = "it left during the handshake"
        except (ValueError, KeyError, TypeError, RecursionError):
            problem = "it does not speak this protocol"
        if problem is not None:
            self._log(f"refused a worker from {peer}: {problem}")
            writer.close()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
        nonce = secrets.token_hex(32)
        _write_plain(writer, {"protocol": PROTOCOL, "nonce": nonce})
        hello = await _read_plain(reader)
        transcript = _transcript(nonce, str(hello["nonce"]), hello["index"], hello["about"])
        if not hmac.compare_digest(str(hello["proof"]).encode(), _proof(self._token, "worker", transcript)):
            _write_plain(writer, {"refused": "token"})
            return "its token is not this group's"
        index, about = int(hello["index"]), dict(hello["about"])
        again = index in self.members
        problem = f"worker {index} is already here, from another host that is alive" if again else self._judge(about)
        if not 1 <= index < self._group_size:
            problem = f"worker index {index} is not in 1…{self._group_size - 1}"
        if problem is not None:
            proof = _proof(self._token, f"refused {again} {problem}", transcript).decode()
            _write_plain(writer, {"refused": problem, "again": again, "proof": proof})
            return problem
        _write_plain(writer, {"proof": _proof(self._token, "leader", transcript).decode()})
        key = hmac.digest(self._token, b"session" + transcript, "sha256")
        member = Member(index, about, Channel((reader, writer), key, b"leader", b"worker", self._timing))
        self.members[index] = member
        self.joined.put_nowait(member)
        return None


async def join(address: str, port: int, token: bytes, index: int, about: Message, timing: Timing) -> Channel:
    """The worker's side. Raises Refusal (for good), TryAgain, or ConnectionLost when there is no leader to talk to."""
    try:
        async with asyncio.timeout(timing.handshake):
            reader, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        raise ConnectionLost(f"no leader answers at {address}:{port}") from None
    try:
        async with asyncio.timeout(timing.handshake):
            return await _introduce((reader, writer), token, index, about, timing)
    except (TimeoutError, asyncio.IncompleteReadError, OSError):
        writer.close()
        raise ConnectionLost("the leader ended the handshake") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        writer.close()
        raise ConnectionLost(f"what answers at {address}:{port} does not speak this protocol") from None
    except BaseException:
        writer.close()
        raise


async def _introduce(streams: Streams, token: bytes, index: int, about: Message, timing: Timing) -> Channel:
    reader, writer = streams
    challenge = await _read_plain(reader)
    if challenge["protocol"] != PROTOCOL:
        raise ValueError("another protocol")
    nonce = secrets.token_hex(32)
    transcript = _transcript(str(challenge["nonce"]), nonce, index, about)
    proof = _proof(token, "worker", transcript).decode()
    _write_plain(writer, {"index": index, "about": about, "nonce": nonce, "proof": proof})
    answer = await _read_plain(reader)
    given = str(answer.get("proof", "")).encode()
    reason, again = answer.get("refused"), answer.get("again")
    if reason is not None and hmac.compare_digest(given, _proof(token, f"refused {again} {reason}", transcript)):
        if again:
            raise TryAgain(str(reason))
        raise Refusal(
            f"the leader refused this worker: {reason}",
            "the group cannot start with this host in it",
            "give every host of the group the same engine, group size and its own worker index",
        )
    if not hmac.compare_digest(given, _proof(token, "leader", transcript)):
        raise Refusal(
            "the leader and this worker do not have the same token",
            "neither can trust the other, so nothing was started here",
            "give every host of the group the same token file",
        )
    key = hmac.digest(token, b"session" + transcript, "sha256")
    return Channel(streams, key, b"worker", b"leader", timing)


def _transcript(leader_nonce: str, worker_nonce: str, index: object, about: object) -> bytes:
    return json.dumps([PROTOCOL, leader_nonce, worker_nonce, index, about], sort_keys=True).encode()


def _proof(token: bytes, role: str, transcript: bytes) -> bytes:
    return hmac.new(token, role.encode() + b"\0" + transcript, hashlib.sha256).hexdigest().encode()


def _write_plain(writer: asyncio.StreamWriter, message: Message) -> None:
    payload = json.dumps(message).encode()
    writer.write(struct.pack(">I", len(payload)) + payload)


async def _read_plain(reader: asyncio.StreamReader) -> Message:
    (length,) = struct.unpack(">I", await reader.readexactly(4))
    if length > MAX_HANDSHAKE_FRAME:
        raise ValueError("a handshake frame is too large")
    return dict(json.loads(await reader.readexactly(length)))
