"""What one model is on one GPU, as tables and as JSON: legal shardings, memory of each rank, engine key."""

from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from planner import sharding
from planner.config import ModelConfig
from planner.memory import GIB, RankMemory
from planner.model import ModelFacts
from planner.plan import ModelPlan
from planner.tensors import parameters

ROWS = 16
ESTIMATES = (
    "activations and runtime are estimates (planner/memory.py says from what); weights and KV cache are computed"
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """One model; `plan` is None when no sharding of it fits."""

    config: ModelConfig
    facts: ModelFacts
    plan: ModelPlan | None
    pinned: bool = True


def report_document(report: Report) -> dict[str, Any]:
    """Everything that is known of it."""
    config, facts, plan = report.config, report.facts, report.plan
    return {
        "name": config.name,
        "config": config.model_dump(),
        "architecture": facts.architecture,
        "parameters": parameters(facts),
        "world_size": plan.world_size if plan else None,
        "nodes": plan.nodes if plan else None,
        "ranks_per_node": plan.ranks_per_node if plan else None,
        "kv_tokens": plan.kv_tokens if plan else None,
        "memory": [asdict(rank) for rank in plan.memory] if plan else [],
        "engine": plan.engine.document() if plan and report.pinned else None,
        "warnings": list(plan.warnings) if plan else [],
        "shardings": [asdict(option) for option in sharding.options(config, facts)],
    }


def print_report(report: Report, console: Console) -> None:
    """Print it as tables with units."""
    config, facts, plan = report.config, report.facts, report.plan
    where = " ".join(filter(None, (config.gpu, config.mig_profile))) or "CPU"
    console.print(f"\n{config.name}: {facts.architecture}, {parameters(facts):,} parameters", markup=False)
    console.print(f"{config.source}, backend {config.backend} on {where}", markup=False, soft_wrap=True)
    options = sharding.options(config, facts)
    console.print(_sharding_table(options, config if plan else None))
    _print_refused(options, console)
    if plan is None:
        console.print(
            f"No sharding up to {sharding.MAX_WORLD_SIZE} ranks fits {where}: choose a larger GPU.", markup=False
        )
        return
    console.print(_memory_table(plan))
    console.print(
        f"{_nodes(plan)}; KV cache of a replica {plan.kv_tokens:,} tokens, requests up to {config.max_seq_len:,}"
    )
    console.print(
        f"engine key {plan.engine.id}" if report.pinned else "engine key: only of a stack, which pins a revision"
    )
    for warning in plan.warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    console.print(f"* {ESTIMATES}", soft_wrap=True)


def _nodes(plan: ModelPlan) -> str:
    ranks = f"{plan.ranks_per_node} rank{'s' if plan.ranks_per_node > 1 else ''}"
    return f"{plan.nodes} nodes with {ranks} each" if plan.nodes > 1 else f"1 node with {ranks}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _sharding_table(options: tuple[sharding.Option, ...], chosen: ModelConfig | None) -> Table:
    table = _table(
        "Legal shardings, per rank of the fullest stage",
        *(
            "TP",
            "PP",
            "ranks",
            "weights\nGiB",
            "estimated*\nGiB",
            "KV cache\nKiB/token",
            "KV cache\ntokens",
            "fits\nby GiB",
        ),
    )
    legal = [option for option in options if option.memory]
    for index, option in enumerate(legal):
        degrees = (option.tensor_parallel, option.pipeline_parallel)
        mine = chosen is not None and degrees == (chosen.tensor_parallel, chosen.pipeline_parallel)
        if option.memory and (index < ROWS or mine):
            cells = map(str, (*degrees, option.world_size))
            table.add_row(*cells, *_memory_cells(option.memory), style="bold" if mine else None)
    if len(legal) > ROWS:
        table.caption = f"{len(legal)} in all, up to {sharding.MAX_WORLD_SIZE} ranks; --json lists every one"
    return table


def _memory_cells(memory: RankMemory) -> tuple[str, ...]:
    return (
        f"{memory.weights_bytes / GIB:.2f}",
        f"{(memory.activation_bytes + memory.runtime_bytes) / GIB:.2f}",
        f"{memory.kv_bytes_per_token / 1024:.1f}",
        f"{memory.kv_tokens:,}",
        ("yes" if memory.fits else "no")
        + (f" {memory.margin_bytes / GIB:+.1f}" if memory.margin_bytes is not None else ""),
    )


def _memory_table(plan: ModelPlan) -> Table:
    config = plan.config
    table = _table(
        f"Memory of each rank, TP {config.tensor_parallel} x PP {config.pipeline_parallel}, in GiB",
        *("rank", "layers", "weights", "activations*", "runtime*", "KV cache", "total", "of"),
    )
    for rank in plan.memory:
        kv_bytes = rank.kv_tokens * rank.kv_bytes_per_token
        sizes = (rank.weights_bytes, rank.activation_bytes, rank.runtime_bytes, kv_bytes, rank.total_bytes)
        table.add_row(
            str(rank.rank),
            f"{rank.first_layer}-{rank.first_layer + rank.layer_count - 1}",
            *(f"{size / GIB:.2f}" for size in sizes),
            f"{rank.capacity_bytes / GIB:.1f}" if rank.capacity_bytes else "host",
        )
    return table


def _print_refused(options: tuple[sharding.Option, ...], console: Console) -> None:
    by_rule: dict[str, list[str]] = {}
    for option in options:
        for refused in option.refused:
            degree = f"TP {option.tensor_parallel}"
            if refused.field != "tensor_parallel":
                degree += f" x PP {option.pipeline_parallel}"
            by_rule.setdefault(refused.rule, []).append(degree)
    for rule, degrees in by_rule.items():
        more = f" and {len(degrees) - 4} more" if len(degrees) > 4 else ""
        console.print(f'refused by "{rule}": {", ".join(degrees[:4])}{more}', markup=False, soft_wrap=True)
