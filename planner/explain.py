"""A search's result in words: why the best wins, what was refused, and what the figures rest on."""

from collections.abc import Sequence

from planner.candidate import Candidate
from planner.limits import BUSY
from planner.memory import GIB
from planner.running_cost import EGRESS_BYTES_PER_TOKEN, ENGINE_MONTHS, egress_usd_per_gb, interruptions
from planner.search import SAME, SCALED, Result
from planner.target import Target

LIMITS = {
    "format": "number formats that a GPU or backend lacks",
    "network": "groups over nodes without a network for all-reduce",
    "sharding": "shardings that TensorRT-LLM refuses",
    "memory": "shardings that do not fit with a margin",
    "latency": "shapes that answer too slowly",
    "spot_tolerance": "choices that lose too much time to interruptions",
    "replicas": "choices of too many replicas",
    "budget": "choices over the budget",
}


def target_words(target: Target) -> str:
    """The target on one line, with units."""
    parts = [f"prompts of {target.prompt_tokens:,} and answers of {target.output_tokens:,} tokens"]
    parts.append(f"context {target.context_tokens:,}")
    rate = target.output_tokens_per_s
    parts.append(f"{rate:,.4g} output tokens/s" if rate else "no rate given: whole nodes, all of them busy")
    if target.time_to_first_token_s is not None:
        parts.append(f"first token within {1000 * target.time_to_first_token_s:,.4g} ms (p95)")
    if target.inter_token_latency_s is not None:
        parts.append(f"then one each {1000 * target.inter_token_latency_s:,.4g} ms")
    if target.usd_per_month is not None:
        parts.append(f"at most {target.usd_per_month:,.0f} USD per month")
    parts.append(f"spot may cost {target.spot_tolerance:.3g} of the time" if target.spot_tolerance else "no spot")
    return "; ".join(parts)


def why(ranked: Sequence[Candidate]) -> tuple[str, ...]:
    """What the first costs and why that is less than the next."""
    best, second = ranked[0], next(iter(ranked[1:2]), None)
    cost, model = best.cost, best.shape.model
    fullest = min(best.shape.memory, key=lambda rank: rank.kv_tokens)
    margin = (fullest.margin_bytes or 0) / GIB
    device = " ".join(filter(None, (model.gpu, model.mig_profile)))
    found = [
        f"{best}: {best.usd_per_million:.3f} USD per million output tokens",
        f"a month: nodes {_usd(cost.nodes)} (of it idle {_usd(cost.idle)}), expected interruptions "
        f"{_usd(cost.interruptions)}, egress {_usd(cost.egress)}; once {_usd(cost.build_once)} for the engine's build",
        f"fits {device} with {margin:.1f} GiB more than one request needs (estimate); KV cache of a replica "
        f"{best.shape.kv_tokens:,} tokens",
        f"a group starts in about {best.start.restart_seconds:,.0f} s, {best.start.load_seconds:,.0f} s of them to "
        f"load from {best.start.storage}; interruptions cost {best.lost_share:.4%} of the time",
    ]
    if second is None:
        return (*found, "nothing else meets the target")
    less = 1 - best.usd_per_million / second.usd_per_million
    # Below that, the quicker one is first.
    words = f"{less:.1%} less" if less > SAME else f"the same within {SAME:.0%}{_quicker(best, second)}"
    found.append(
        f"against the next, {second}: {words}; its nodes cost {_rate(second)} and the best's {_rate(best)}"
        + _difference(best, second)
    )
    return tuple(found)


def refused_words(result: Result) -> str:
    """What each limit refused, counted."""
    counts = [f"{count:,} {LIMITS.get(name, name)}" for name, count in result.refused.items()]
    return f"refused: {'; '.join(counts)}" if counts else "nothing was refused"


def basis(result: Result) -> tuple[str, ...]:
    """What the figures of the ranked choices rest on; every one is an estimate."""
    best = result.ranked[0]
    cloud = best.offer.instance.cloud
    sources = dict.fromkeys(each.estimate.source.partition(SCALED)[0] for each in result.ranked)
    scaled = any(SCALED in each.estimate.source for each in result.ranked)
    how = "; rooflines of a GPU are scaled by what its measured shapes reach of theirs"
    dates = sorted({each.offer.price_as_of for each in result.ranked} - {""})
    found = [
        f"latency and throughput, estimates: {'; '.join(sources)}{how if scaled else ''}",
        f"prices of GPU nodes alone, as of {dates[0]} to {dates[-1]}, in the catalogue's regions; spot prices move",
        f"replicas are planned {BUSY:.0%} busy; an engine's build is borne over {ENGINE_MONTHS} months (assumptions)",
        f"egress: {EGRESS_BYTES_PER_TOKEN} bytes for each streamed token (assumption) at "
        f"{egress_usd_per_gb(cloud):g} USD/GB on {cloud}",
    ]
    if best.offer.capacity[0] == "spot":
        found.append(f"interruptions of {best.offer.instance.name}: {interruptions(best.offer.instance).source}")
    found.append(f"loading: {best.start.source}")
    if result.unpriced:
        found.append(f"without a known price, so not ranked: {', '.join(result.unpriced)}")
    return tuple(found)


def _difference(best: Candidate, second: Candidate) -> str:
    """Where the money goes, when it is not the price of a node's work."""
    if 1 - best.usd_per_million / second.usd_per_million <= SAME:
        return ""
    parts = {
        "idle nodes": second.cost.idle - best.cost.idle,
        "egress": second.cost.egress - best.cost.egress,
        "interruptions": second.cost.interruptions - best.cost.interruptions,
    }
    same_rate = abs(best.output_tokens_per_s - second.output_tokens_per_s) < 1
    name, most = max(parts.items(), key=lambda part: part[1])
    return f"; {name} make {_usd(most)} of the difference" if same_rate and most > 1 else ""


def _quicker(best: Candidate, second: Candidate) -> str:
    if best.shape.nodes < second.shape.nodes:
        return f", and a group lies on {best.shape.nodes} nodes against {second.shape.nodes}"
    mine, other = (1000 * each.estimate.inter_token_latency_s for each in (best, second))
    return f", and {mine:,.1f} ms a token against {other:,.1f}" if mine < other else ""


def _rate(each: Candidate) -> str:
    return f"{each.nodes * each.offer.usd_h:,.2f} USD/h for {each.output_tokens_per_s:,.0f} tokens/s"


def _usd(value: float) -> str:
    return f"{value:,.0f} USD"
