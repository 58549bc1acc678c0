"""Triton's `tensorrt_llm` model over gRPC: token ids in, token ids out as they come."""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple

import grpc

from frontend.detokenizer import Detokenizer
from frontend.errors import ApiError, unavailable
from frontend.messages import Generation, message, pb, stop_message

aio: Any = grpc.aio  # it has no annotations
Metadata = tuple[tuple[str, str], ...]
SERVICE = "/inference.GRPCInferenceService/"
STOP_SECONDS = 5.0
ID_BYTES = 4
RAW_OUTPUT_CONTENTS_TAG = b"\x32"
"""Field 6 of ModelInferResponse, the last: protobuf writes fields in the order of their numbers."""
GONE = ("stopping", "not ready", "not found", "not healthy", "send the request again")
"""Words of errors that say that the engine does not serve now, and nothing of the request."""
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class Tokens(NamedTuple):
    """Tokens just generated, their log probabilities (empty unless asked for), and whether they are the last."""

    ids: list[int]
    log_probs: list[float]
    final: bool


class Engine:
    """One for a process. Streams are kept for the requests that follow: opening one costs as much as several tokens."""

    def __init__(self, address: str, model: str, silence_seconds: float) -> None:
        self.model, self.silence_seconds = model, silence_seconds
        self._channel = aio.insecure_channel(address, options=OPTIONS)
        self._stream = self._channel.stream_stream(
            SERVICE + "ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            # As bytes: see Answer.tokens.
            response_deserializer=None,
        )
        self._ready = self._channel.unary_unary(
            SERVICE + "ModelReady",
            request_serializer=pb.ModelReadyRequest.SerializeToString,
            response_deserializer=pb.ModelReadyResponse.FromString,
        )
        self.idle: list[Any] = []
        self.heard: dict[Any, float] = {}  # streams that generate, and when they last gave something
        self._tasks: set[asyncio.Task[None]] = set()
        # The C++ backend reads a request id with stoul; two frontends of one engine must not share ids.
        self._last_id = secrets.randbelow(2**62)

    async def ready(self) -> bool:
        """Whether the model answers now."""
        try:
            return (await self._ready(pb.ModelReadyRequest(name=self.model), timeout=2)).ready
        except grpc.RpcError:
            return False

    def answer(self, generation: Generation, metadata: Metadata = ()) -> "Answer":
        """One generation, which begins when its tokens are asked for."""
        self._last_id += 1
        return Answer(self, message(self.model, str(self._last_id), generation), metadata)

    async def watch(self) -> None:
        """Cancels streams whose engine is silent, for as long as the process lives."""
        while True:
            await asyncio.sleep(self.silence_seconds / 10)
            limit = time.monotonic() - self.silence_seconds
            for call in [call for call, heard in self.heard.items() if heard < limit]:
                call.cancel()

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
        await self._channel.close()

    def open(self, metadata: Metadata) -> Any:
        # Triton takes a trace's parent from the metadata of a stream, so a traced request has one of its own.
        while self.idle and not metadata:
            call = self.idle.pop()
            if not call.done():
                return call
        return self._stream(metadata=metadata)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Answer:
    """The tokens of one generation. It is ended early by a stop request, as upstream's clients do: cancelling a gRPC
    stream whose request runs now and then crashed Triton 2.51."""

    def __init__(self, engine: Engine, request: Any, metadata: Metadata) -> None:
        self._engine, self._request, self._metadata = engine, request, metadata
        self._call: Any = None
        self._finals = 1  # to come: the generation's, and that of a stop request
        self._usual: bytes | None = None
        self.stopped = False

    async def tokens(self) -> AsyncGenerator[Tokens, None]:
        """As they come, until the end or a stop; closed early, the engine is told to stop. Raises ApiError.

        Replies of one token are alike in all but their last four bytes, which are its id. So after one has been parsed,
        the next are compared with it: parsing each would cost more than turning it into text.
        """
        if self.stopped:
            return
        engine = self._engine
        call = self._call = engine.open(self._metadata)
        engine.heard[call] = time.monotonic()
        try:
            await call.write(self._request)
            while self._finals:
                raw = await call.read()
                if raw is aio.EOF:
                    raise unavailable("the engine ended the stream: send the request again", "engine_unavailable")
                engine.heard[call] = time.monotonic()
                if raw[:-ID_BYTES] == self._usual:
                    if not self.stopped:
                        yield Tokens([int.from_bytes(raw[-ID_BYTES:], "little", signed=True)], [], False)
                    continue
                reply = _parsed(raw)
                final = self._count(reply)
                if self.stopped:
                    continue
                if reply.error_message:
                    raise _engine_error(reply.error_message)
                if not final and _is_one_token(raw, reply.infer_response):
                    self._usual = raw[:-ID_BYTES]
                yield self._tokens(reply.infer_response, final)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise _lost(error) from None
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # pyright: ignore[reportOptionalMemberAccess]
                raise
            if self.stopped:
                return
            # Not the caller was cancelled but the stream, by the watch over silent ones.
            raise unavailable(f"the engine is silent for {engine.silence_seconds:g} s", "engine_stalled") from None
        finally:
            del engine.heard[call]
            self._call = None
            if self._finals and not call.done():
                engine.spawn(self._finish(call))
            else:
                self._release(call)

    def text_of(self, decode: Callable[[list[int]], str]) -> Callable[[list[int]], str]:
        """A function from the ids that `tokens` just gave to the text that they complete."""
        return Detokenizer(decode).push

    def stop(self) -> None:
        """Ask the engine to end; `tokens` ends when it has."""
        if not self.stopped and self._call is not None:
            self._finals += 1
            self._engine.spawn(self._send_stop(self._call))
        self.stopped = True

    async def _finish(self, call: Any) -> None:
        """Nobody reads any more: stop, and read to the end so that the stream can serve the next request."""
        try:
            async with asyncio.timeout(STOP_SECONDS):
                if not self.stopped:
                    self._finals += 1
                    await self._send_stop(call)
                while self._finals:
                    raw = await call.read()
                    if raw is aio.EOF:
                        return
                    self._count(_parsed(raw))
        except (grpc.RpcError, asyncio.InvalidStateError, TimeoutError):
            call.cancel()
        else:
            self._release(call)

    async def _send_stop(self, call: Any) -> None:
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            await call.write(stop_message(self._engine.model, self._request.id))

    def _release(self, call: Any) -> None:
        if call.done() or self._metadata:
            call.cancel()
        else:
            self._engine.idle.append(call)

    def _tokens(self, response: Any, final: bool) -> Tokens:
        return _tokens(response, final)

    def _count(self, reply: Any) -> bool:
        final = bool(reply.error_message) or reply.infer_response.parameters["triton_final_response"].bool_param
        self._finals -= final
        return final


def _parsed(raw: bytes) -> Any:
    return pb.ModelStreamInferResponse.FromString(raw)


def _is_one_token(raw: bytes, response: Any) -> bool:
    """Whether the last bytes of a message are its raw_output_contents, and these the id of one token."""
    contents = response.raw_output_contents
    return (
        len(contents) == 1
        and response.outputs[0].name == "output_ids"
        and raw.endswith(RAW_OUTPUT_CONTENTS_TAG + bytes((ID_BYTES,)) + contents[0])
        and len(contents[0]) == ID_BYTES
    )


def _tokens(response: Any, final: bool) -> Tokens:
    """Raw contents are read as they lie: making an array of each token would cost more than all the rest."""
    ids: list[int] = []
    log_probs: list[float] = []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == "output_ids":
            ids = memoryview(raw).cast("i").tolist()
        elif output.name == "output_log_probs":
            log_probs = list[float](memoryview(raw).cast("f"))
    return Tokens(ids, log_probs, final)


def _engine_error(message: str) -> ApiError:
    if "maximum queue size" in message or "queue is full" in message:
        return unavailable(f"the engine's queue is full: {message}", "queue_full")
    if any(word in message for word in GONE):
        return unavailable(f"the engine cannot serve now: {message}", "engine_unavailable")
    if unsupported := re.search(r"(\w+) is not supported by", message):
        return ApiError(400, message, param=unsupported[1], code="unsupported_parameter")
    if "KV cache" in message:
        return ApiError(400, f"the request is larger than the engine: {message}", code="context_length_exceeded")
    return ApiError(500, f"the engine refused the request: {message}", kind="server_error", code="engine_error")


def _lost(error: Any) -> ApiError:
    what = error.details() if isinstance(error, grpc.RpcError) else str(error)
    return unavailable(f"the engine cannot be reached: {what}", "engine_unavailable")
