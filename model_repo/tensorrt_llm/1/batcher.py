"""In-flight batching on rank 0: requests join and leave the running batch between two steps of the model."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from llama import Segment, ShardedLlama, Step
from sampling import Sampler, SamplingParameters, log_probability

PREFILL_CHUNK = 64  # prompt tokens of one request in one step: bounds how long a long prompt holds up the others
TOKENS_PER_BLOCK = 32  # trtllm-build's default, so that the block metrics read alike
CANCEL_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Output:
    """Tokens just generated with their log probabilities (empty unless asked for); an error is one sentence.

    `generated` and `cum_log_prob` count all tokens so far, these included.
    """

    tokens: list[int] = field(default_factory=list[int])
    log_probs: list[float] = field(default_factory=list[float])
    generated: int = 0
    cum_log_prob: float = 0.0
    final: bool = False
    error: str | None = None


@dataclass(eq=False, kw_only=True)
class Request:
    """One generation. `emit` is called from the batcher's thread.

    Streaming requests emit each token as it comes, the others all at the end; the end token itself is not emitted,
    a stop word is.
    """

    id: str
    prompt: npt.NDArray[np.int32]
    max_tokens: int
    sampling: SamplingParameters
    emit: Callable[[Output], None]
    is_cancelled: Callable[[], bool]
    streaming: bool = False
    wants_log_probs: bool = False
    stop_words: list[list[int]] = field(default_factory=list[list[int]])

    @property
    def capacity(self) -> int:
        """KV tokens to reserve: all it can ever need, so that nothing is evicted (guaranteed_no_evict)."""
        return -(-(len(self.prompt) + self.max_tokens) // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK


class _Active:
    def __init__(self, request: Request, slot: int) -> None:
        self.request, self.slot = request, slot
        self.sampler = Sampler(request.sampling, request.prompt)
        self.position = 0
        self.generated: list[int] = []
        self.log_probs: list[float] = []

    def segment(self) -> Segment:
        prompt = self.request.prompt
        if self.position < len(prompt):
            tokens = prompt[self.position : self.position + PREFILL_CHUNK]
            return Segment(self.slot, tokens, self.position, self.position + len(tokens) == len(prompt))
        return Segment(self.slot, np.array(self.generated[-1:], np.int32), self.position, True)

    def accept(self, logits: npt.NDArray[np.float32]) -> bool:
        """Draw the next token, emit it, and tell whether the request is finished."""
        request = self.request
        token = self.sampler.draw(logits)
        ended = token == request.sampling.end_id
        if not ended:
            self.generated.append(token)
            self.log_probs += [log_probability(logits, token)] if request.wants_log_probs else []
        stopped = any(self.generated[-len(word) :] == word for word in request.stop_words if word)
        final = ended or stopped or len(self.generated) >= request.max_tokens
        if request.streaming or final:
            # What was not emitted before: everything, or in a stream the token just drawn.
            since = len(self.generated) - (not ended) if request.streaming else 0
            request.emit(
                Output(
                    tokens=self.generated[since:],
                    log_probs=self.log_probs[since:],
                    generated=len(self.generated),
                    cum_log_prob=sum(self.log_probs),
                    final=final,
                )
            )
        return final


class Batcher:
    """Runs requests on `model` in one thread; `on_failure` is called once if a step fails, after which it is dead."""

    def __init__(
        self,
        model: ShardedLlama,
        *,
        max_batch_size: int,
        max_queue_size: int,
        kv_cache_tokens: int,
        max_seq_len: int,
        on_failure: Callable[[Exception], None],
    ) -> None:
        self.model = model
        self.max_batch_size, self.max_queue_size = max_batch_size, max_queue_size
        self.max_seq_len = min(max_seq_len, model.max_positions)
        self.kv_blocks = kv_cache_tokens // TOKENS_PER_BLOCK
        self._on_failure = on_failure
        self._queue: deque[Request] = deque()
        self._active: list[_Active] = []
        self._closed: list[int] = []
        self._cancelled: set[str] = set()
        self._changed = threading.Condition()
        self._stopping = False
        self._last_cancel_poll = 0.0
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> str | None:
        """Queue `request`; or return, in one sentence, why it is refused."""
        needed, length = request.capacity // TOKENS_PER_BLOCK, len(request.prompt) + request.max_tokens
        if not len(request.prompt):
            return "the prompt is empty: send at least one token"
        if request.max_tokens < 1:
            return f"request_output_len is {request.max_tokens}: ask for at least one token"
        if length > self.max_seq_len:
            return (
                f"prompt ({len(request.prompt)} tokens) plus request_output_len ({request.max_tokens}) exceed "
                f"max_seq_len ({self.max_seq_len}): shorten the prompt or ask for fewer tokens"
            )
        if request.prompt.min() < 0 or request.prompt.max() >= self.model.vocab_size:
            return f"the prompt has a token id outside 0..{self.model.vocab_size - 1}: it was made by another tokenizer"
        if needed > self.kv_blocks:
            return (
                f"the request needs {needed} KV cache blocks of {TOKENS_PER_BLOCK} tokens, the pool has "
                f"{self.kv_blocks}: raise kv_cache_tokens or ask for fewer tokens"
            )
        if problem := request.sampling.problem():
            return problem
        with self._changed:
            if self._stopping:
                return "the server is stopping: send the request again in a moment"
            if len(self._queue) >= self.max_queue_size:
                return f"the queue is full ({self.max_queue_size} requests): send the request again in a moment"
            self._queue.append(request)
            self._changed.notify()
        return None

    def cancel(self, request_id: str) -> None:
        """End the request of that id, queued or running; nothing happens when there is none."""
        with self._changed:
            self._cancelled.add(request_id)
            self._changed.notify()

    def stop(self) -> None:
        """Finish nothing more: end the thread and release the other ranks."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def gauges(self) -> dict[tuple[str, str], float]:
        """Values of the nv_trt_llm_*_metrics families, by (family, type label)."""
        with self._changed:
            active, waiting = list(self._active), len(self._queue)
        used = sum(a.request.capacity for a in active) // TOKENS_PER_BLOCK
        context = sum(a.position < len(a.request.prompt) for a in active)
        return {
            ("request", "active"): len(active) + waiting,
            ("request", "max"): self.max_batch_size,
            ("request", "scheduled"): len(active),
            ("request", "context"): context,
            ("request", "waiting"): waiting,
            ("kv_cache_block", "max"): self.kv_blocks,
            ("kv_cache_block", "free"): self.kv_blocks - used,
            ("kv_cache_block", "used"): used,
            ("kv_cache_block", "tokens_per"): TOKENS_PER_BLOCK,
            ("kv_cache_block", "fraction"): used / self.kv_blocks,
            ("inflight_batcher", "generation_requests"): len(active) - context,
        }

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._drop_cancelled()
                self._step()
            self.model.stop()
        except Exception as error:
            for request in [*(a.request for a in self._active), *self._queue]:
                failure = f"the engine failed ({error}) and restarts: send the request again"
                request.emit(Output(final=True, error=failure))
            self._on_failure(error)

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._stopping or self._queue or self._active):
                self._cancelled.clear()
                self._changed.wait()
            return not self._stopping

    def _drop_cancelled(self) -> None:
        polls = time.monotonic() - self._last_cancel_poll > CANCEL_POLL_SECONDS
        if polls:
            self._last_cancel_poll = time.monotonic()
        with self._changed:
            stop_ids, self._cancelled = self._cancelled, set()
            queued = list(self._queue)
        gone = [
            request
            for request in [*(a.request for a in self._active), *queued]
            if request.id in stop_ids or (polls and request.is_cancelled())
        ]
        for request in gone:
            request.emit(Output(final=True))
        for active in [a for a in self._active if a.request in gone]:
            self._close(active)
        with self._changed:
            self._queue = deque(request for request in self._queue if request not in gone)

    def _step(self) -> None:
        opened: list[tuple[int, int]] = []
        with self._changed:
            while self._queue and len(self._active) < self.max_batch_size and self._fits(self._queue[0]):
                taken = {a.slot for a in self._active}
                slot = next(i for i in range(self.max_batch_size) if i not in taken)
                request = self._queue.popleft()
                self._active.append(_Active(request, slot))
                opened.append((slot, request.capacity))
        closed, self._closed = self._closed, []
        segments = [active.segment() for active in self._active]
        logits = iter(self.model.run(Step(opened, closed, segments)))
        for active, segment in zip(list(self._active), segments, strict=True):
            active.position += len(segment.tokens)
            if segment.wants_logits and active.accept(next(logits)):
                self._close(active)

    def _fits(self, request: Request) -> bool:
        used = sum(active.request.capacity for active in self._active)
        return used + request.capacity <= self.kv_blocks * TOKENS_PER_BLOCK

    def _close(self, active: _Active) -> None:
        with self._changed:
            self._active.remove(active)
        self._closed.append(active.slot)
