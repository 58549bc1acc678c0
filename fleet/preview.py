"""The figures of a preview as text and as a stack output, for `pulumi preview`, `fleet synth` and pull requests."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pulumi

from planner.plan import FleetPlan
from planner.preview import LOAD, ModelPreview, MonthlyUsd, RankFit, previews, total


def show(plan: FleetPlan) -> None:
    """Tell the figures of the stack that runs: as a message of its preview, and as its output `estimate`."""
    found = previews(plan)
    # An update shows its preview first, and should not say it all once more.
    if pulumi.runtime.is_dry_run():
        pulumi.info(preview_text(plan, found))
    pulumi.export("estimate", preview_output(found))


def preview_text(plan: FleetPlan, found: Sequence[ModelPreview]) -> str:
    """A few lines for each model of the stack, then what holds for all; the same for the same stack file."""
    lines = [line for each in found for line in _model(each)]
    steps = {step.name: step.source for each in found for step in each.start if step.name != LOAD}
    lines.append(f"all starts: {'; '.join(f'{name}, {source}' for name, source in steps.items())}")
    if plan.infrastructure and (whole := total(plan)):
        lines.append(f"all GPU nodes: {_usd(whole)}. {plan.infrastructure.cost.note}")
    return "\n".join(lines)


def preview_output(found: Sequence[ModelPreview]) -> Mapping[str, Any]:
    """The same figures by model, for programs; each key names its unit, and all are rounded as they are shown."""
    return {each.name: _output(each) for each in found}


def _model(each: ModelPreview) -> Iterator[str]:
    yield f"{each.name}:"
    fits = "; ".join(map(_fit, each.fit))
    yield f"  fit         {fits} (activations and runtime are estimates)"
    steps = " + ".join(f"{step.name} {_time(step.seconds)}" for step in each.start)
    yield f"  cold start  about {_time(each.start_seconds)}: {steps}"
    yield f"  load from   {next(step.source for step in each.start if step.name == LOAD)}"
    if each.cost:
        yield f"  cost        {_usd(each.cost)}"
    yield f"  engine      {_engine(each)}"
    if each.throughput:
        most, milliseconds = each.throughput, each.throughput.inter_token_latency_s * 1000
        rate = (
            f"{most.output_tokens_per_s:,.0f} output tokens/s to {most.batch} sequences, {milliseconds:.0f} ms a token"
        )
        yield f"  throughput  a replica gives about {rate}: {most.source}"
    if each.drift:
        yield f"  drift       {_drift(each)}"


def _fit(fit: RankFit) -> str:
    if fit.capacity_gib is None or fit.margin_gib is None:
        return f"{_ranks(fit.first, fit.last)} {fit.needed_gib:.1f} GiB of the host's memory"
    of = f"{fit.needed_gib:.1f} of {fit.capacity_gib:.1f} GiB"
    return f"{_ranks(fit.first, fit.last)} {of}, margin {fit.margin_gib:+.1f}"


def _ranks(first: int, last: int) -> str:
    return f"rank {first}" if first == last else f"ranks {first}-{last}"


def _time(seconds: int) -> str:
    return (
        f"{seconds} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    )


def _usd(cost: MonthlyUsd) -> str:
    on_demand, spot = ("no known price" if usd is None else f"{usd:,.0f} USD" for usd in (cost.on_demand, cost.spot))
    return f"a month {on_demand} on demand, {spot} on spot (estimate)"


def _engine(each: ModelPreview) -> str:
    engine = each.engine
    if engine.shared_with:
        return f"{engine.key}: reused, that of {engine.shared_with}"
    work = f"in about {_time(engine.build_seconds)} (estimate)" if engine.build_seconds else "without compiling"
    return f"{engine.key}: built once {work}, if the store has no such key; reused if it has"


def _drift(each: ModelPreview) -> str:
    drift = each.drift
    assert drift is not None
    if drift.best_usd_per_million is None:
        return drift.why
    unit = "USD per million output tokens (estimate)"
    best = f"{drift.best} at {drift.best_usd_per_million:.2f}"
    if drift.pinned_usd_per_million is None:
        return f"unknown: {drift.why}; today's best: {best} {unit}"
    pinned = f"{drift.pinned_usd_per_million:.2f} {unit}"
    if not drift.best:
        return f"none: the choice is as good as today's best, at {pinned}, {drift.why}"
    if not drift.saves:
        return f"none worth a move: the choice costs {pinned}; today's best: {best}, {drift.why}"
    return f"today's best saves {drift.saves:.0%}: {best}, and the choice costs {pinned}, {drift.why}"


def _output(each: ModelPreview) -> dict[str, Any]:
    output: dict[str, Any] = {
        "fit": [
            {
                "ranks": f"{fit.first}-{fit.last}",
                "needed_gib": round(fit.needed_gib, 1),
                "capacity_gib": _rounded(fit.capacity_gib, 1),
                "margin_gib": _rounded(fit.margin_gib, 1),
            }
            for fit in each.fit
        ],
        "cold_start_seconds": {step.name.replace(" ", "_"): step.seconds for step in each.start},
        "engine": each.engine.key,
        "engine_build_seconds": each.engine.build_seconds,
    }
    if each.cost:
        output["usd_per_month_on_demand"] = _rounded(each.cost.on_demand, 0)
        output["usd_per_month_spot"] = _rounded(each.cost.spot, 0)
    if each.throughput:
        output["output_tokens_per_second_of_a_replica"] = round(each.throughput.output_tokens_per_s)
        output["throughput_source"] = each.throughput.source
    if each.drift:
        output["usd_per_million_output_tokens"] = _rounded(each.drift.pinned_usd_per_million, 2)
        output["best"] = each.drift.best
        output["best_usd_per_million_output_tokens"] = _rounded(each.drift.best_usd_per_million, 2)
    return output


def _rounded(figure: float | None, digits: int) -> float | None:
    return None if figure is None else round(figure, digits)
