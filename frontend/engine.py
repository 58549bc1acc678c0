"""Triton's `tensorrt_llm` model over gRPC: token ids in, token ids out as they come."""

import asyncio
import re
import secrets
import struct
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
from tritonclient.grpc import service_pb2

from frontend.detokenizer import Detokenizer
from frontend.errors import ApiError, unavailable

# protobuf makes its classes at import, and grpc.aio has no annotations: no type checker sees them.
pb: Any = service_pb2
aio: Any = grpc.aio
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


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What is asked of the engine. Greedy where top_k is 1; top_k 0 and top_p 1 draw from all tokens.

    `text` is the prompt before it was tokenised; None: the client sent token ids.
    """

    prompt: list[int]
    text: str | None = None
    max_tokens: int
    end_id: int
    pad_id: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    log_probs: bool = False


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
        return Answer(self, _message(self.model, str(self._last_id), generation), metadata)

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
            await call.write(_stop_message(self._engine.model, self._request.id))

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


def _message(model: str, request_id: str, generation: Generation) -> Any:
    g = generation
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    add_tensor(request, "input_ids", "INT32", struct.pack(f"<{len(g.prompt)}i", *g.prompt), len(g.prompt))
    integers = {
        "input_lengths": len(g.prompt),
        "request_output_len": g.max_tokens,
        "end_id": g.end_id,
        "pad_id": g.pad_id,
        "runtime_top_k": g.top_k,
    }
    add_numbers(request, g, integers, {"runtime_top_p": g.top_p})
    for name in ("streaming", "exclude_input_in_output", *(["return_log_probs"] if g.log_probs else [])):
        add_tensor(request, name, "BOOL", b"\1")
    for name in ("output_ids", *(["output_log_probs"] if g.log_probs else [])):
        request.outputs.add(name=name)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def add_numbers(request: Any, g: Generation, integers: dict[str, int], floats: dict[str, float]) -> None:
    """Those, and the tensors of `g` that have one name for every model."""
    penalties = {
        "presence_penalty": (g.presence_penalty, 0),
        "frequency_penalty": (g.frequency_penalty, 0),
        "repetition_penalty": (g.repetition_penalty, 1),
    }
    floats = {"temperature": g.temperature, **floats}
    floats |= {name: given for name, (given, neutral) in penalties.items() if given != neutral}
    if g.min_tokens:
        integers = {**integers, "min_tokens": g.min_tokens}
    for name, number in integers.items():
        add_tensor(request, name, "INT32", struct.pack("<i", number))
    for name, number in floats.items():
        add_tensor(request, name, "FP32", struct.pack("<f", number))
    add_tensor(request, "seed", "UINT64", struct.pack("<Q", g.seed))


def _stop_message(model: str, request_id: str) -> Any:
    """A stop, with the tensors that the engine requires of every request."""
    stop = pb.ModelInferRequest(model_name=model, id=request_id)
    for name in ("input_ids", "input_lengths", "request_output_len"):
        add_tensor(stop, name, "INT32", b"\0\0\0\0")
    add_tensor(stop, "stop", "BOOL", b"\1")
    stop.parameters["triton_enable_empty_final_response"].bool_param = True
    return stop


def add_tensor(request: Any, name: str, datatype: str, raw: bytes, count: int = 1) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=(1, count))
    request.raw_input_contents.append(raw)


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
