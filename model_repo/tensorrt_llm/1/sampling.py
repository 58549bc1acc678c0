"""Sampling of the next token, with TensorRT-LLM's parameter names and defaults."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SamplingParameters:
    """Greedy unless top_k > 1 or top_p > 0, as in TensorRT-LLM; temperature 0 is greedy too.

    top_k 0 keeps all tokens; top_p in (0, 1]; repetition_penalty 1 and the other penalties 0 change nothing. The end
    token is not drawn before `min_tokens` others, the last token of a bad word never after its first ones.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    end_id: int | None = None
    min_tokens: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()

    def problem(self) -> str | None:
        """What is wrong with these values, or None."""
        checks = [
            (0 <= self.temperature < float("inf"), f"temperature {self.temperature} is not a number of at least 0"),
            (self.top_k >= 0, f"runtime_top_k {self.top_k} is negative"),
            (0 <= self.top_p <= 1, f"runtime_top_p {self.top_p} is not between 0 and 1"),
            (
                0 < self.repetition_penalty < float("inf"),
                f"repetition_penalty {self.repetition_penalty} not above 0",
            ),
            (abs(self.presence_penalty) < float("inf"), f"presence_penalty {self.presence_penalty} is not finite"),
            (abs(self.frequency_penalty) < float("inf"), f"frequency_penalty {self.frequency_penalty} is not finite"),
        ]
        return next((text for holds, text in checks if not holds), None)


class Sampler:
    """Draws one request's tokens: its own random stream, and the counts its penalties need."""

    def __init__(self, parameters: SamplingParameters, prompt: npt.NDArray[np.int32]) -> None:
        self.parameters = parameters
        self.seen = set(prompt.tolist())
        self.drawn: list[int] = []
        self.counts: dict[int, int] = {}
        self.random = np.random.Generator(np.random.PCG64(parameters.seed))

    def draw(self, logits: Array) -> int:
        """The next token id, from logits [vocab]."""
        p = self.parameters
        logits = self._penalise(logits.copy())
        if p.temperature == 0 or p.top_k == 1 or (p.top_k == 0 and p.top_p == 0):
            token = int(np.argmax(logits))
        else:
            token = self._draw_from_tops(logits / np.float32(p.temperature))
        self.seen.add(token)
        self.drawn.append(token)
        self.counts[token] = self.counts.get(token, 0) + 1
        return token

    def _penalise(self, logits: Array) -> Array:
        p = self.parameters
        if p.repetition_penalty != 1:
            ids = np.fromiter(self.seen, np.int64)
            penalty = np.float32(p.repetition_penalty)
            logits[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
        if self.counts and (p.presence_penalty or p.frequency_penalty):
            ids, counts = np.fromiter(self.counts, np.int64), np.fromiter(self.counts.values(), np.float32)
            logits[ids] -= np.float32(p.presence_penalty) + np.float32(p.frequency_penalty) * counts
        if p.end_id is not None and len(self.drawn) < p.min_tokens:
            logits[p.end_id] = -np.inf
        for *first, last in p.bad_words:
            if not first or self.drawn[-len(first) :] == first:
                logits[last] = -np.inf
        return logits

    def _draw_from_tops(self, logits: Array) -> int:
        p = self.parameters
        order = np.argsort(-logits, kind="stable")[: p.top_k or None]
        weights = np.exp((logits[order] - logits[order[0]]).astype(np.float64))
        cumulative = np.cumsum(weights / weights.sum())
        if 0 < p.top_p < 1:  # the smallest set of tokens that reaches top_p
            cumulative = cumulative[: int(np.searchsorted(cumulative, p.top_p)) + 1]
        return int(order[np.searchsorted(cumulative, self.random.random() * cumulative[-1], side="right")])


def log_probability(logits: Array, token: int) -> float:
    """Natural log of the token's probability under the model itself, before penalties and temperature."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return float(shifted[token] - np.log(np.exp(shifted).sum()))
