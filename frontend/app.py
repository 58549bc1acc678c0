"""The HTTP application: paths, and what every request must pass before the engine sees it."""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from frontend import metrics, page
from frontend.completion import Model, prompts_of, sequences_of
from frontend.errors import ApiError, unavailable
from frontend.formats import ChatFormat, Format, TextFormat
from frontend.group import Group
from frontend.keys import Caller, Keys
from frontend.openapi import document
from frontend.requests import AnyRequest, ChatRequest, CompletionRequest, decoded
from frontend.responses import CompletionResponse
from frontend.tracing import Trace, Tracing

MAX_BODY_BYTES = 10 * 1000 * 1000
BODY_SECONDS = 60.0
LAST_WORD_SECONDS = 2.0


class Admission:
    """Counts the sequences asked of the engine. What is over the limit is refused at once: nothing grows unbounded.

    Nothing is admitted while this process shuts down (`closed`) or the group takes no requests.
    """

    def __init__(self, limit: int, group: Group) -> None:
        self.limit, self.used, self.closed, self._group = limit, 0, False, group

    def error(self) -> ApiError | None:
        """Why nothing is admitted now."""
        if self.closed:
            return unavailable("the server shuts down: send the request again", "shutting_down")
        return self._group.error()

    def take(self, count: int) -> None:
        """Raises ApiError."""
        if error := self.error():
            raise error
        if self.used + count > self.limit:
            raise unavailable(f"all {self.limit} places are taken: send the request again", "queue_full")
        self.give(-count)

    def give(self, count: int) -> None:
        was_busy = self.used > 0
        self.used -= count
        if was_busy != (self.used > 0):
            self._group.hold(busy=self.used > 0)
        metrics.in_flight.set(self.used)


class Frontend:
    """`app` is the ASGI application, with at most `max_sequences` in it. `state` is the launcher's state.json."""

    def __init__(
        self, model: Model, keys: Keys, max_sequences: int, state: Path | None = None, tracing: Tracing | None = None
    ) -> None:
        self._tracing = tracing or Tracing()
        self._model, self._keys, self._created, self._state = model, keys, int(time.time()), state
        self.group = Group(state, model.engine.ready)
        self._admission = Admission(max_sequences, self.group)
        self._responses: set[CompletionResponse] = set()
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._one_model),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._text, methods=["POST"]),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
                Route("/openapi.json", self._openapi),
                Route("/status", self._status),
                *page.routes(),
            ],
            exception_handlers={ApiError: _on_api_error, HTTPException: _on_http_error, Exception: _on_bug},
        )

    async def drain(self, seconds: float) -> None:
        """Refuse new requests and let the others end; tell those that cannot in time. Returns when none is left."""
        self._admission.closed = True
        end = time.monotonic() + seconds
        while self._admission.used and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for response in self._responses:
            response.cut_off()
        while self._admission.used and time.monotonic() < end + LAST_WORD_SECONDS:
            await asyncio.sleep(0.02)

    async def _chat(self, request: Request) -> Any:
        return await self._complete(request, ChatRequest, ChatFormat)

    async def _text(self, request: Request) -> Any:
        return await self._complete(request, CompletionRequest, TextFormat)

    async def _complete(self, http: Request, kind: type[AnyRequest], form: type[Format]) -> Any:
        trace = self._tracing.start(http)
        try:
            return await self._admit(http, kind, form, trace)
        except BaseException as error:
            trace.end(error.status if isinstance(error, ApiError) else 500)
            raise

    async def _admit(self, http: Request, kind: type[AnyRequest], form: type[Format], trace: Trace) -> Any:
        caller = self._caller(http)
        self._admission.take(1)
        taken = 1
        try:
            caller.take_request()
            request = decoded(await _body(http), kind)
            if request.model != self._model.name:
                raise _no_model(request.model)
            prompts = await prompts_of(self._model, request)
            sequences = sequences_of(self._model, request, prompts, trace.metadata)
            if len(sequences) > self._admission.limit:
                raise ApiError(400, f"{len(sequences)} answers at once; {self._admission.limit} are served", param="n")
            prompt_tokens = sum(len(ids) for ids, _ in prompts)
            caller.take_prompt(prompt_tokens)
            # Also for a single one: its body may have taken long enough for the group to drain meanwhile.
            self._admission.take(len(sequences) - 1)
            taken = len(sequences)
        except BaseException:
            self._admission.give(taken)
            raise
        metrics.prompt_tokens.inc(prompt_tokens)
        trace.asked(request, prompt_tokens)
        usage = bool(request.stream_options and request.stream_options.include_usage)

        def ended(status: int, tokens: int) -> None:
            self._admission.give(taken)
            self._responses.discard(response)
            caller.tokens.take(tokens)
            trace.end(status, sequences)
            _count(http, status)

        response = CompletionResponse(
            sequences,
            form(self._model.name, request.log_probs, usage),
            prompt_tokens=prompt_tokens,
            stream=bool(request.stream),
            ended=ended,
        )
        self._responses.add(response)
        return response

    def _caller(self, http: Request) -> Caller:
        caller = self._keys.caller(http.headers.get("authorization"))
        http.state.key = caller.key.name
        return caller

    async def _models(self, http: Request) -> Response:
        self._caller(http)
        return _json({"object": "list", "data": [self._card()]})

    async def _one_model(self, http: Request) -> Response:
        self._caller(http)
        if http.path_params["name"] != self._model.name:
            raise _no_model(http.path_params["name"])
        return _json(self._card())

    def _card(self) -> dict[str, Any]:
        card = {"id": self._model.name, "object": "model", "created": self._created, "owned_by": "tritonfleet"}
        return {**card, "max_model_len": self._model.max_seq_len}

    async def _healthz(self, http: Request) -> Response:
        """This process works; what it serves may not."""
        del http
        return _json({"status": "ok"})

    async def _readyz(self, http: Request) -> Response:
        del http
        if error := self._admission.error():
            raise error
        if not await self._model.engine.ready():
            raise unavailable("the engine is not ready", "engine_unavailable")
        return _json({"status": "ready"})

    async def _status(self, http: Request) -> Response:
        """For the page. Hosts are named, so the key is asked for."""
        self._caller(http)
        ready = self._admission.error() is None and await self._model.engine.ready()
        return _json({"model": self._model.name, **page.status(self._state, ready=ready)})

    async def _metrics(self, http: Request) -> Response:
        del http
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def _openapi(self, http: Request) -> Response:
        del http
        return _json(document())


async def _body(http: Request) -> bytes:
    """Raises ApiError for a body that is too large, too slow, or never comes whole."""
    parts, size = list[bytes](), 0
    too_large = ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", code="request_too_large")
    length = http.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise too_large
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in http.stream():
                parts.append(part)
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    except ClientDisconnect:
        raise ApiError(400, "the client left before its request was whole") from None
    return b"".join(parts)


def _no_model(name: str) -> ApiError:
    return ApiError(404, f"The model `{name}` does not exist: see /v1/models", param="model", code="model_not_found")


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def _count(http: Request, status: int) -> None:
    path = getattr(http.scope.get("route"), "path", "")
    metrics.requests.labels(path, status, getattr(http.state, "key", "")).inc()


async def _on_api_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    _count(http, error.status)
    return Response(error.body(), error.status, error.headers())


async def _on_http_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{http.method} {http.url.path}: {error.detail}"
    response = await _on_api_error(http, ApiError(error.status_code, what, code="unknown_url"))
    response.headers.update(error.headers or {})
    return response


async def _on_bug(http: Request, error: Exception) -> Response:
    """The server has printed the traceback; the client is told no more than that."""
    del error
    return await _on_api_error(http, ApiError(500, "internal error", kind="server_error", code="internal_error"))
