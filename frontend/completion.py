"""From a valid request to its answer: prompts, sequences of the engine, pieces of text."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import NamedTuple

from frontend import metrics
from frontend.detokenizer import StopStrings
from frontend.engine import Engine, Metadata
from frontend.errors import ApiError
from frontend.formats import LogProb, Piece
from frontend.messages import Generation
from frontend.requests import ChatRequest, CompletionRequest
from frontend.tokenizer import ModelTokenizer

LONG_TEXT = 4096
"""Characters from which tokenising would hold up the other streams, and moves to a thread."""


@dataclass(frozen=True)
class Model:
    """What is served: its public name, its tokenizer, its engine and the most tokens of prompt and answer."""

    name: str
    tokenizer: ModelTokenizer
    engine: Engine
    max_seq_len: int


class Prompt(NamedTuple):
    """Token ids, and the text that they were made of; None: the client sent ids."""

    ids: list[int]
    text: str | None


class Sequence:
    """One choice of an answer."""

    def __init__(self, model: Model, generation: Generation, stops: list[str], metadata: Metadata) -> None:
        self._model, self._generation, self._stops = model, generation, stops
        self._answer = model.engine.answer(generation, metadata)
        self.tokens = 0
        self.first_token_ns: int | None = None
        self.finish: str | None = None
        self.stop = self._answer.stop

    @property
    def finished(self) -> bool:
        """Whether it ended by itself, and not because it was stopped."""
        return self.finish is not None

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The text as it comes; the last piece says why it ends, where it was not stopped. Raises ApiError."""
        model, asked = self._model, self._generation
        text_of, stops = self._answer.text_of(model.tokenizer.decode), StopStrings(self._stops)
        observe, counted = metrics.inter_token.observe, metrics.completion_tokens.inc
        last = started = time.perf_counter()
        metrics.waiting.inc()
        try:
            async with aclosing(self._answer.tokens()) as answer:
                async for ids, log_probs, final in answer:
                    now = time.perf_counter()
                    if last == started:
                        metrics.waiting.dec()
                        metrics.first_token.observe(now - started)
                        self.first_token_ns = time.time_ns()
                    elif ids:
                        observe(now - last)
                    last = now
                    ended = ids[-1:] == [asked.end_id]
                    if ended:
                        ids.pop()
                    self.tokens += len(ids)
                    counted(len(ids))
                    piece = text_of(ids)
                    if self._stops:
                        piece = stops.push(piece)
                    finish = None
                    if stops.found:
                        finish, ids = "stop", []
                    elif final:
                        finish = "stop" if ended or self.tokens < asked.max_tokens else "length"
                        piece += stops.flush()
                    drawn = list[LogProb]()
                    if log_probs:
                        drawn = [LogProb(model.tokenizer.token(i), p) for i, p in zip(ids, log_probs, strict=False)]
                    self.finish = finish
                    if piece or drawn or finish:
                        yield Piece(piece, drawn, finish)
                    if finish:
                        return
        finally:
            if last == started:
                metrics.waiting.dec()


async def prompts_of(model: Model, request: ChatRequest | CompletionRequest) -> list[Prompt]:
    """Each prompt; too long or empty ones are refused. Raises ApiError."""
    if isinstance(request, ChatRequest):
        text = model.tokenizer.chat_prompt([message.for_template() for message in request.messages])
        prompts = [await _encode(model, text, "messages", add_special_tokens=False)]
    else:
        prompts = [
            await _encode(model, each, "prompt", add_special_tokens=True)
            if isinstance(each, str)
            else Prompt(each, None)
            for each in request.prompts()
        ]
    param = "messages" if isinstance(request, ChatRequest) else "prompt"
    if not prompts or not all(ids for ids, _ in prompts):
        raise ApiError(400, "the prompt is empty: send at least one token of text", param=param)
    for ids, _ in prompts:
        if len(ids) >= model.max_seq_len:
            raise _too_long(model, f"{len(ids)}", param)
        if max(ids) > model.tokenizer.largest_id:
            raise ApiError(400, f"token ids reach to {model.tokenizer.largest_id}", param=param)
    return prompts


def sequences_of(
    model: Model,
    request: ChatRequest | CompletionRequest,
    prompts: list[Prompt],
    metadata: Metadata,
) -> list[Sequence]:
    """n sequences of each prompt, with seeds in a row so that the choices differ and come again."""
    choices = request.n or 1
    seed = secrets.randbits(63) if request.seed is None else request.seed
    base = Generation(
        prompt=[],
        max_tokens=0,
        end_id=model.tokenizer.end_id,
        pad_id=model.tokenizer.pad_id,
        seed=0,
        temperature=1.0 if request.temperature is None else request.temperature or 1.0,
        top_k=1 if request.temperature == 0 else request.top_k or 0,
        top_p=1.0 if request.top_p is None else request.top_p,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        min_tokens=request.min_tokens or 0,
        log_probs=request.log_probs,
    )
    sequences: list[Sequence] = []
    for number, (ids, text) in enumerate(prompt for prompt in prompts for _ in range(choices)):
        room = model.max_seq_len - len(ids)
        limit = min(request.limit or room, room)
        asked = replace(base, prompt=ids, text=text, max_tokens=limit, seed=(seed + number) % 2**64)
        sequences.append(Sequence(model, asked, request.stops(), metadata))
    return sequences


async def _encode(model: Model, text: str, param: str, *, add_special_tokens: bool) -> Prompt:
    if len(text) > model.max_seq_len * model.tokenizer.longest_token:
        # No tokenizer could make it fit, and tokenising megabytes to say so takes seconds.
        raise _too_long(model, f"more than {model.max_seq_len}", param)
    try:
        if len(text) < LONG_TEXT:
            ids = model.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        else:
            ids = await asyncio.to_thread(model.tokenizer.encode, text, add_special_tokens=add_special_tokens)
    except UnicodeEncodeError:
        # JSON can carry half of a surrogate pair, which is no character.
        raise ApiError(400, "the text has an unpaired surrogate: send valid Unicode", param=param) from None
    return Prompt(ids, text)


def _too_long(model: Model, tokens: str, param: str) -> ApiError:
    return ApiError(
        400,
        f"This model's maximum context length is {model.max_seq_len} tokens, and the prompt has {tokens}, which leaves "
        "no room for an answer: shorten it",
        param=param,
        code="context_length_exceeded",
    )
