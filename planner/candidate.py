"""One choice that serves a model: shape, offer, replicas, with its estimate and its cost."""

from dataclasses import dataclass

from planner.offers import Offer
from planner.running_cost import MonthlyCost, Starting
from planner.shapes import Shape
from planner.throughput import Throughput


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One choice that meets the target. `estimate` is of one replica at the batch it is held to, and names its source.

    `limited` says that a larger batch would fit, and be too slow. `output_tokens_per_s` is the target's rate, or else
    what the replicas give; `usd_per_million` output tokens is at that rate.
    """

    shape: Shape
    offer: Offer
    estimate: Throughput
    limited: bool
    replicas: int
    nodes: int
    start: Starting
    lost_share: float
    output_tokens_per_s: float
    cost: MonthlyCost
    usd_per_million: float

    def __str__(self) -> str:
        model, offer = self.shape.model, self.offer
        mig = f" {model.mig_profile}" if model.mig_profile else ""
        times = f"{self.replicas} x " if self.replicas > 1 else ""
        return f"{times}{self.shape.name} on {offer.instance.name}{mig} {offer.capacity[0]} ({offer.region})"
