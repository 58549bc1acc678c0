"""Ranked choices as a table with a plot, and as JSON."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fleet import pareto
from planner.candidate import Candidate
from planner.explain import basis, refused_words, target_words, why
from planner.search import Result


def print_ranked(name: str, source: str, result: Result, rows: int, console: Console) -> None:
    """The table, the plot, why the best wins, and what the figures rest on."""
    console.print(f"\n{name}: {source}", markup=False, soft_wrap=True)
    console.print(target_words(result.target), markup=False, soft_wrap=True)
    console.print(_table(result, rows, console.width))
    console.print(pareto.draw(result, console.width), markup=False, soft_wrap=True, emoji=False)
    for line in why(result.ranked):
        console.print(f"- {line}", markup=False, soft_wrap=True)
    console.print(refused_words(result), markup=False, soft_wrap=True)
    for line in basis(result):
        console.print(f"* {line}", markup=False, soft_wrap=True)


def document(each: Candidate) -> dict[str, Any]:
    """One choice with units in its keys."""
    model, offer, estimate, cost = each.shape.model, each.offer, each.estimate, each.cost
    return {
        "cloud": offer.instance.cloud,
        "region": offer.region,
        "instance_type": offer.instance.name,
        "capacity": offer.capacity,
        "gpu": model.gpu,
        "gpus_per_node": offer.instance.gpu_count,
        "mig_profile": model.mig_profile,
        "backend": model.backend,
        "tensor_parallel": model.tensor_parallel,
        "pipeline_parallel": model.pipeline_parallel,
        "quantization": model.quantization.model_dump(),
        "weights": each.shape.weights,
        "replicas": each.replicas,
        "nodes": each.nodes,
        "nodes_per_group": each.shape.nodes,
        "batch": estimate.batch,
        "batch_limited_by_latency": each.limited,
        "kv_tokens": each.shape.kv_tokens,
        "margin_bytes": min(rank.margin_bytes or 0 for rank in each.shape.memory),
        "time_to_first_token_ms_p95": round(1000 * estimate.time_to_first_token_s, 2),
        "inter_token_latency_ms": round(1000 * estimate.inter_token_latency_s, 3),
        "output_tokens_per_s_of_a_replica": round(estimate.output_tokens_per_s, 1),
        "output_tokens_per_s": round(each.output_tokens_per_s, 1),
        "estimate": estimate.source,
        "usd_per_node_hour": offer.usd_h,
        "price_as_of": offer.price_as_of,
        "usd_per_month": {
            "nodes": round(cost.nodes, 2),
            "of_nodes_idle": round(cost.idle, 2),
            "interruptions": round(cost.interruptions, 2),
            "egress": round(cost.egress, 2),
            "total": round(cost.total, 2),
        },
        "engine_build_usd_once": round(cost.build_once, 2),
        "usd_per_million_output_tokens": round(each.usd_per_million, 4),
        "load_seconds": round(each.start.load_seconds, 1),
        "restart_seconds": round(each.start.restart_seconds, 1),
        "storage": each.start.storage,
        "time_lost_to_interruptions": round(each.lost_share, 7),
    }


def _table(result: Result, rows: int, width: int) -> Table:
    table = Table(
        title=f"{len(result.ranked):,} choices meet the target; the cheapest, all figures estimates",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    wide = width >= 100
    table.add_column("")
    # Where the line is too short, names break: half a name would be another machine.
    table.add_column("nodes", overflow="fold", min_width=16)
    table.add_column("groups", overflow="fold", min_width=8)
    for column in (
        *(("batch",) if wide else ()),
        "first\nms",
        "next\nms",
        "tokens/s",
        "USD/\nmonth",
        "USD/M\ntokens",
        "",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    measured = False
    for place, each in enumerate(result.ranked[: max(1, rows)], start=1):
        model, estimate = each.shape.model, each.estimate
        is_roofline = estimate.source.startswith("roofline")
        measured |= not is_roofline
        mig = f" {model.mig_profile}" if model.mig_profile else ""
        table.add_row(
            str(place),
            f"{each.nodes} {each.offer.instance.name}{mig} {each.offer.capacity[0]}",
            f"{each.replicas} x {each.shape.name}",
            *((f"{estimate.batch:,}",) if wide else ()),
            f"{1000 * estimate.time_to_first_token_s:,.0f}",
            f"{1000 * estimate.inter_token_latency_s:,.1f}",
            f"{each.output_tokens_per_s:,.0f}",
            f"{each.cost.total:,.0f}",
            f"{each.usd_per_million:,.3f}",
            "r" if is_roofline else "a",
            style="bold" if place == 1 else None,
        )
    table.caption = "r: by roofline" + (", a: by aiconfigurator" if measured else "") + "; --json lists every choice"
    return table
