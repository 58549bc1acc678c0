"""In-flight batching of equal requests that are all queued at once, as a fluid: how long the whole run takes."""

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass

STEPS_PER_REQUEST = 64
"""A request's life is cut into at most so many pieces: finer ones change the result by less than 1 %."""

Seconds = Callable[[float, float, float], float]
"""Seconds of one iteration: sequences that decode, their mean context in tokens, prompt tokens beside them."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """`requests` of `prompt_tokens` and `output_tokens`; at most `slots` decode at once, each iteration takes
    `max_num_tokens`, and the KV cache has room for `kv_sequences` of them to their last token."""

    requests: float
    prompt_tokens: int
    output_tokens: int
    slots: float
    max_num_tokens: int
    kv_sequences: float


def run_seconds(run: Run, seconds: Seconds) -> float:
    """Seconds from the first iteration to the last, with the ramp at both ends.

    A request starts where its whole KV cache has room (guaranteed_no_evict), its prompt is cut into chunks that share
    iterations with decoding (chunked context), and numbers of requests are fractions, as of a fluid.
    """
    piece = max(1, run.output_tokens // STEPS_PER_REQUEST)
    slots = min(run.slots, max(1.0, run.kv_sequences))
    waiting, running, elapsed, now = run.requests, 0.0, 0.0, 0
    finishing: list[tuple[int, float]] = []
    # Sum of requests times the step that they finish at, so that the mean context needs no walk over all of them.
    finish_sum = 0.0
    while waiting > 1e-6 or finishing:
        while finishing and finishing[0][0] <= now:
            end, count = finishing.pop(0)
            running -= count
            finish_sum -= count * end
        budget = max(run.max_num_tokens - running, 0.0) * piece
        started = min(waiting, max(slots - running, 0.0), budget / run.prompt_tokens)
        if not finishing:
            started = max(started, min(waiting, 1.0))
        if started > 1e-9:
            insort(finishing, (now + run.output_tokens, started))
            running += started
            finish_sum += started * (now + run.output_tokens)
            waiting -= started
        if not finishing:
            break
        held = running * (run.prompt_tokens + run.output_tokens + now) - finish_sum
        context = held / running + piece / 2
        elapsed += piece * seconds(running, context, started * run.prompt_tokens / piece)
        now += piece
    return elapsed
