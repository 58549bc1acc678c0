"""`fleet plan` of several models: on MIG slices of as few GPUs as hold them, against a machine for each."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fleet.plan_choices import document
from fleet.plan_search import OK, REFUSED, Question, refuse
from planner.errors import Problem
from planner.explain import target_words
from planner.mig_packing import Packed, packed
from planner.relaxing import nearest
from planner.search import Result, search


def run(args: argparse.Namespace, questions: Sequence[Question]) -> int:
    """Print the packings by cost. 1 where a model meets its target nowhere, or on no slice."""
    results: dict[str, Result] = {}
    for number, question in enumerate(questions, start=1):
        name = question.model.name if question.path else f"{number} {question.model.source}"
        result = search(question.model, question.facts, question.target, storage=question.storage)
        if result.infeasible:
            near = nearest(question.model, question.facts, result, storage=question.storage)
            return refuse(
                args,
                replace(result, infeasible=replace(result.infeasible, what=f"{name}: {result.infeasible.what}")),
                near,
            )
        results[name] = result
    fill = questions[0].target.output_tokens_per_s is None
    found = packed({name: result.ranked for name, result in results.items()}, fill=fill)
    if not found:
        return _unpacked(args, results)
    if args.json:
        print(json.dumps([_document(each) for each in found], indent=2))
    else:
        console = Console(highlight=False)
        console.print(f"\n{target_words(questions[0].target)}, for each model", soft_wrap=True)
        _print(found, results, args.rows, fill, console)
    return OK


def _print(found: list[Packed], results: dict[str, Result], rows: int, fill: bool, console: Console) -> None:
    table = Table(
        title=f"{len(found)} ways to pack {len(results)} models onto MIG slices; the cheapest, latencies estimates",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
    )
    for column in ("", "nodes", "slices"):
        table.add_column(column, overflow="fold")
    for column in ("GPUs", "next ms\nat most", "USD/\nmonth"):
        table.add_column(column, justify="right", no_wrap=True)
    for place, each in enumerate(found[: max(1, rows)], start=1):
        table.add_row(
            str(place),
            f"{sum(each.nodes.values())} {each.offer.instance.name} {each.offer.capacity[0]}",
            "\n".join(
                f"{name}: {each.replicas[name]} x {choice.shape.model.mig_profile} {choice.shape.format}"
                for name, choice in each.choices.items()
            ),
            str(each.gpus),
            f"{max(1000 * choice.estimate.inter_token_latency_s for choice in each.choices.values()):,.1f}",
            f"{each.usd_per_month:,.0f}",
            style="bold" if place == 1 else None,
        )
    console.print(table)
    best = found[0]
    apart = {name: _cheapest(result, fill) for name, result in results.items()}
    total = sum(apart.values())
    console.print(
        f"a machine for each model costs {total:,.0f} USD per month (GPU nodes alone); packed, "
        f"{best.usd_per_month:,.0f}",
        soft_wrap=True,
    )
    if best.mixed_gpus < best.gpus:
        console.print(
            f"divided as it comes, {best.mixed_gpus} of its GPUs would do: a pool divides all its GPUs alike",
            soft_wrap=True,
        )


def _cheapest(result: Result, fill: bool) -> float:
    """USD per month of the nodes of the cheapest choice with whole GPUs; without a rate, of one node or group."""
    whole = [each for each in result.ranked if each.shape.model.mig_profile is None]
    if fill:
        return min((each.offer.usd_h * each.shape.nodes * 730 for each in whole), default=0.0)
    return min((each.cost.nodes for each in whole), default=0.0)


def _document(each: Packed) -> dict[str, Any]:
    return {
        "instance_type": each.offer.instance.name,
        "cloud": each.offer.instance.cloud,
        "region": each.offer.region,
        "capacity": each.offer.capacity,
        "nodes_by_profile": each.nodes,
        "gpus": each.gpus,
        "gpus_if_divided_unevenly": each.mixed_gpus,
        "usd_per_month_of_nodes": round(each.usd_per_month, 2),
        "replicas": each.replicas,
        "models": {name: document(choice) for name, choice in each.choices.items()},
    }


def _unpacked(args: argparse.Namespace, results: dict[str, Result]) -> int:
    none = [name for name, result in results.items() if not any(each.shape.model.mig_profile for each in result.ranked)]
    what = (
        f"no MIG slice holds {', '.join(none)} and answers in time" if none else "no instance type has slices for all"
    )
    best = {name: str(result.ranked[0]) for name, result in results.items()}
    fix = f"nearest feasible, a machine for each: {'; '.join(f'{name}: {each}' for name, each in best.items())}"
    problem = Problem(key="--model", what=what, consequence="the models cannot share GPUs", fix=fix)
    if args.json:
        print(json.dumps({"problems": [asdict(problem)]}, indent=2))
    else:
        print(f"nothing meets the target\n\n{problem}", file=sys.stderr)
    return REFUSED
