"""How far a stack's pinned choice is from the best that the catalogue has today, for the same output."""

from collections.abc import Iterable
from dataclasses import dataclass

from planner.candidate import Candidate
from planner.fleet import CloudPlan
from planner.instances import InstanceType, instances
from planner.limits import BUSY
from planner.plan import ModelPlan
from planner.search import search
from planner.target import ITL_MS, TTFT_MS, Target
from planner.throughput import Throughput, Workload, interconnect, throughput

PROMPT_TOKENS, OUTPUT_TOKENS = 1024, 256
"""Of the requests that a stack is judged by, unless its max_seq_len is too short for them."""

NOTABLE = 0.05
"""A best that costs less than this share below the pinned choice is no reason to move: estimates differ by more."""


TIE = 0.005
"""Choices whose costs differ by less than this share are equally good."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The pinned choice beside today's best in the same cloud, region and number format, for the same output.

    Costs are estimates in USD per million output tokens: None for the pinned choice where the catalogue has no price of
    it or the search refuses it. `best` is "" where it costs no less, or where nothing is found. `why` says what
    was asked, or why there is no figure.
    """

    pinned_usd_per_million: float | None
    best: str
    best_usd_per_million: float | None
    why: str

    @property
    def saves(self) -> float | None:
        """Share of the pinned cost that the best saves; 0 where that is not worth a move."""
        if self.pinned_usd_per_million is None or self.best_usd_per_million is None:
            return None
        share = 1 - self.best_usd_per_million / self.pinned_usd_per_million
        return share if share >= NOTABLE else 0.0


def workload(model: ModelPlan) -> Workload:
    """The requests that the model is judged by, in tokens."""
    longest = model.config.max_seq_len
    if longest >= PROMPT_TOKENS + OUTPUT_TOKENS:
        return Workload(prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS)
    return Workload(prompt_tokens=max(1, longest * 3 // 4), output_tokens=max(1, longest // 4))


def pinned_throughput(model: ModelPlan, instance: InstanceType) -> Throughput:
    """The roofline of one replica of the model as it is pinned, with as many sequences as fit."""
    return throughput(model.config, model.facts, model.memory, workload(model), interconnect=interconnect(instance))


def drift(model: ModelPlan, cloud: CloudPlan, estimate: Throughput, nodes_usd: float | None) -> Drift:
    """What the search makes of the model where the stack is, with as much output as the stack's replicas can give.

    `nodes_usd` is what the model's share of its pool costs in a month: of a node that models share, the search would
    count the whole.
    """
    if model.serving is None:
        raise ValueError(f"the plan does not say how {model.name} is served")
    group, load = model.serving.pool.node_groups[0], workload(model)
    rate = BUSY * model.serving.replicas * estimate.output_tokens_per_s
    target = Target(
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        context_tokens=model.config.max_seq_len,
        # Less by rounding's share: as many replicas as are pinned must suffice.
        output_tokens_per_s=rate * (1 - 1e-9),
        # No slower than the pinned choice, or than what people take for prompt.
        time_to_first_token_s=max(TTFT_MS / 1000, estimate.time_to_first_token_s * (1 + 1e-9)),
        inter_token_latency_s=max(ITL_MS / 1000, estimate.inter_token_latency_s * (1 + 1e-9)),
        clouds=(cloud.name,),
        regions=(cloud.region,),
        zones=cloud.network.zones,
        formats=(model.config.quantization.weights,),
        spot_tolerance=1.0 if group.capacity == "spot" else 0.0,
    )
    # As the stack's plan has it, also where that is a default: the search has a smaller one of its own.
    config = model.config.model_copy(update={"max_batch_size": model.config.max_batch_size})
    result = search(config, model.facts, target)
    asked = f"for {rate:,.0f} output tokens/s in {cloud.region}, prompts of {load.prompt_tokens:,} and answers of "
    asked += f"{load.output_tokens:,} tokens"
    if not result.ranked:
        return Drift(pinned_usd_per_million=None, best="", best_usd_per_million=None, why=f"nothing found {asked}")
    best, mine = result.ranked[0], _pinned(model, result.ranked)
    if mine is None:
        instance = instances(cloud.name)[group.instance_types[0]]
        # What other capacity costs was agreed when it was bought.
        priced = {"spot": instance.spot_usd_h, "on-demand": instance.on_demand_usd_h}.get(group.capacity)
        why = "the search leaves the pinned choice out" if priced else f"no {group.capacity} price of {instance.name}"
        asked = f"{why}; asked {asked}"
    pinned = _usd_per_million(mine, nodes_usd) if mine else None
    return Drift(
        pinned_usd_per_million=pinned,
        best="" if pinned is not None and pinned <= best.usd_per_million * (1 + TIE) else str(best),
        best_usd_per_million=best.usd_per_million,
        why=asked,
    )


def _usd_per_million(mine: Candidate, nodes_usd: float | None) -> float:
    if nodes_usd is None or not mine.cost.nodes:
        return mine.usd_per_million
    rest = mine.cost.total - mine.cost.nodes - mine.cost.interruptions
    share = nodes_usd / mine.cost.nodes
    return mine.usd_per_million * (rest + share * (mine.cost.nodes + mine.cost.interruptions)) / mine.cost.total


def _pinned(model: ModelPlan, ranked: Iterable[Candidate]) -> Candidate | None:
    """The candidate that is what the stack says, the cheapest if there are several."""
    if model.serving is None:
        return None
    group, config = model.serving.pool.node_groups[0], model.config
    wanted = (config.tensor_parallel, config.pipeline_parallel, config.mig_profile, config.quantization.kv_cache)
    for each in ranked:
        found = each.shape.model
        shape = (found.tensor_parallel, found.pipeline_parallel, found.mig_profile, found.quantization.kv_cache)
        if shape != wanted or each.offer.capacity[0] != group.capacity:
            continue
        if each.offer.instance.name == group.instance_types[0]:
            return each
    return None
