"""What a model is to achieve: traffic, latency, where it may run and what it may cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from planner.clouds import CLOUDS
from planner.config import WeightQuantization
from planner.errors import PlanError, Problem, did_you_mean, shown
from planner.gpus import gpus
from planner.instances import regions

FORMATS = ("none", "fp8")
"""Weight formats that are tried unless others are asked for: those of fewer bits change answers more."""

DEFAULT_PROMPT_TOKENS, DEFAULT_OUTPUT_TOKENS, DEFAULT_CONTEXT_TOKENS = 1024, 256, 4096

SPOT_TOLERANCE = 0.01
"""Default of `spot_tolerance`: 1 % of the time, or seven hours a month."""

TTFT_MS, ITL_MS = 2000.0, 100.0
"""Default latency limits: an answer begins within two seconds, and goes on faster than people read."""

_LARGEST_TOKENS = 1 << 30
_COST = "nothing was planned"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Lengths in tokens, latencies in seconds, rates per second over all replicas, the budget in USD per month.

    Without `output_tokens_per_s` a group is planned, or the groups that fill a node, with as much to do as they can.
    `spot_tolerance` is the largest expected share of the time that a replica may lose to interruptions; 0 means no
    spot. An empty `clouds`, `regions`, `zones` or `gpus` allows all. `time_to_first_token_s` is a 95th percentile;
    `inter_token_latency_s` is the mean over an answer, which in a steady state is every answer's, so its 95th
    percentile over answers too.
    """

    prompt_tokens: int = DEFAULT_PROMPT_TOKENS
    output_tokens: int = DEFAULT_OUTPUT_TOKENS
    context_tokens: int = DEFAULT_CONTEXT_TOKENS
    output_tokens_per_s: float | None = None
    time_to_first_token_s: float | None = TTFT_MS / 1000
    inter_token_latency_s: float | None = ITL_MS / 1000
    clouds: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    formats: tuple[str, ...] = FORMATS
    spot_tolerance: float = SPOT_TOLERANCE
    usd_per_month: float | None = None


FLAGS = {
    "prompt_tokens": "--prompt-tokens",
    "output_tokens": "--output-tokens",
    "context": "--context",
    "tokens_per_second": "--tokens-per-second",
    "requests_per_second": "--requests-per-second",
    "ttft": "--ttft",
    "itl": "--itl",
    "cloud": "--cloud",
    "region": "--region",
    "gpu": "--gpu",
    "quantization": "--quantization",
    "spot_tolerance": "--spot-tolerance",
    "budget": "--budget",
}
"""The words of a target as people type it: milliseconds for latencies, lists parted by commas."""


def target_of(given: Mapping[str, str], *, context_tokens: int | None = None) -> Target:
    """The target that texts by the keys of FLAGS name; `context_tokens` is the default's. Raises PlanError with all."""
    return _Reader(given).target(context_tokens)


class _Reader:
    def __init__(self, given: Mapping[str, str]) -> None:
        self.given = given
        self.problems: list[Problem] = []

    def target(self, context_tokens: int | None) -> Target:
        prompt = self.integer("prompt_tokens", DEFAULT_PROMPT_TOKENS)
        output = self.integer("output_tokens", DEFAULT_OUTPUT_TOKENS)
        context = self.integer("context", context_tokens or max(DEFAULT_CONTEXT_TOKENS, prompt + output))
        if not self.problems and context < prompt + output:
            name = "context" if "context" in self.given or context_tokens is None else "prompt_tokens"
            what = f"a context of {context:,} tokens, and prompt and answer have {prompt:,} and {output:,}"
            self.refuse(name, what, f"give --context {prompt + output}, or shorter lengths")
        tokens, requests = self.number("tokens_per_second"), self.number("requests_per_second")
        if tokens is not None and requests is not None:
            self.refuse("requests_per_second", "given beside --tokens-per-second", "give one of the two")
        ttft, itl = self.latency("ttft", TTFT_MS), self.latency("itl", ITL_MS)
        clouds = self.names("cloud", tuple(CLOUDS))
        target = Target(
            prompt_tokens=prompt,
            output_tokens=output,
            context_tokens=context,
            output_tokens_per_s=tokens if requests is None else requests * output,
            time_to_first_token_s=ttft,
            inter_token_latency_s=itl,
            clouds=clouds,
            regions=self.names("region", tuple(name for cloud in clouds or CLOUDS for name in regions(cloud))),
            gpus=self.names("gpu", tuple(gpus())),
            formats=self.names("quantization", get_args(WeightQuantization)) or FORMATS,
            spot_tolerance=self.share("spot_tolerance", SPOT_TOLERANCE),
            usd_per_month=self.number("budget"),
        )
        if self.problems:
            raise PlanError(self.problems)
        return target

    def integer(self, name: str, default: int) -> int:
        text = self.given.get(name)
        if text is None:
            return default
        try:
            number = int(text) if len(text) < 20 else -1
        except ValueError:
            number = -1
        if 1 <= number <= _LARGEST_TOKENS:
            return number
        self.refuse(name, f"{shown(text)} is not a whole number from 1 to {_LARGEST_TOKENS}", f"for example {default}")
        return default

    def number(self, name: str) -> float | None:
        text = self.given.get(name)
        if text is None:
            return None
        number = _float(text)
        if number is None or not 0 < number <= 1e12:
            self.refuse(name, f"{shown(text)} is not a number above 0", f"for example {FLAGS[name]} 100")
            return None
        return number

    def latency(self, name: str, default: float) -> float | None:
        """Seconds; None for the word `none`."""
        text = self.given.get(name)
        if text == "none":
            return None
        return ((self.number(name) if text is not None else None) or default) / 1000

    def share(self, name: str, default: float) -> float:
        text = self.given.get(name)
        number = default if text is None else _float(text)
        if number is not None and 0 <= number <= 1:
            return number
        self.refuse(name, f"{shown(text)} is not a share from 0 to 1", "0.01 allows 1 % of the time, 0 no spot")
        return default

    def names(self, name: str, known: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(word.strip() for word in self.given.get(name, "").split(",") if word.strip())
        for word in (word for word in found if word not in known):
            begun = [each for each in known if each.lower().startswith(word.lower())]
            listed = f"give one of {', '.join(begun or known[:12])}{', …' if len(known) > 12 and not begun else ''}"
            self.refuse(name, f"{shown(word)} is not known", listed if begun else did_you_mean(word, known, listed))
        if name in self.given and not found:
            self.refuse(name, "names nothing", f"give one or more of {', '.join(known[:12])}, or leave it out")
        return found

    def refuse(self, name: str, what: str, fix: str) -> None:
        self.problems.append(Problem(key=FLAGS[name], what=what, consequence=_COST, fix=fix))


def _float(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
