"""Estimated against published latencies of online serving: at the batch whose rate is the published one.

python -m tests.benchmarks.latencies [--json]
"""

import argparse
import csv
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from planner.config import ModelConfig
from planner.memory import rank_memory
from planner.throughput import Interconnect, Throughput, Workload, largest_batch, throughput
from tests.benchmarks.estimates import GPUS, errors, facts

ROWS = Path(__file__).parent / "data" / "published_online.csv"

KEPT_UP = 0.85
"""Achieved over offered requests/s from which a run kept up; its tail of 500 requests is in what it achieved."""


@dataclass(frozen=True, kw_only=True)
class Online:
    """A published run at a rate of requests; latencies are means, in milliseconds."""

    model: ModelConfig
    name: str
    workload: Workload
    kept_up: bool
    tokens_per_s: float
    ttft_ms: float
    itl_ms: float


def read_runs() -> list[Online]:
    with ROWS.open(encoding="utf-8", newline="") as file:
        return [_run(row) for row in csv.DictReader(file)]


def estimate(run: Online) -> Throughput | None:
    """The roofline at the smallest batch that reaches the run's tokens/s; None where none does."""
    known = facts(run.name)
    memory = rank_memory(run.model, known)

    def at(batch: int) -> Throughput:
        found = Interconnect(nvlink=True)
        return throughput(run.model, known, memory, run.workload, interconnect=found, batch=batch)

    low, high = 0, largest_batch(run.model, memory, run.workload)
    if at(high).output_tokens_per_s < run.tokens_per_s:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle).output_tokens_per_s < run.tokens_per_s else (low, middle)
    return at(high)


def compare() -> dict[str, dict[str, float]]:
    """Errors of the inter-token latency in per cent, and the first token's p95 over the published mean, by model."""
    runs = [(run, found) for run in read_runs() if run.kept_up and (found := estimate(run))]
    table: dict[str, dict[str, float]] = {}
    for name in ("all", *dict.fromkeys(run.name for run, _ in runs)):
        group = [pair for pair in runs if name in ("all", pair[0].name)]
        between = errors([100 * (1000 * found.inter_token_latency_s / run.itl_ms - 1) for run, found in group])
        first = [1000 * found.time_to_first_token_s / run.ttft_ms for run, found in group]
        table[name] = {**vars(between), "ttft_p95_over_mean": statistics.median(first)}
    return table


def _run(row: dict[str, str]) -> Online:
    model = ModelConfig.model_validate(
        {
            "name": "published",
            "source": f"hf://published/{row['model']}",
            "backend": "tensorrt",
            "gpu": GPUS[row["gpu"]][0],
            "tensor_parallel": int(row["tensor_parallel"]),
        }
    )
    offered = float(row["offered_qps"])
    return Online(
        model=model,
        name=row["model"],
        workload=Workload(prompt_tokens=int(row["prompt_tokens"]), output_tokens=int(row["output_tokens"])),
        kept_up=float(row["achieved_qps"]) >= KEPT_UP * offered,
        tokens_per_s=float(row["tokens_per_s"]),
        ttft_ms=float(row["ttft_ms"]),
        itl_ms=float(row["itl_ms"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimated against published latencies of online serving.")
    parser.add_argument("--json", action="store_true")
    table = compare()
    if parser.parse_args().json:
        print(json.dumps(table, indent=1))
        return
    print("| | runs | inter-token latency: median error | bias | spread | first token: p95 over published mean |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, e in table.items():
        print(
            f"| {name} | {e['count']} | {e['median_absolute']:.1f} % | {e['bias']:+.1f} % | {e['spread']:.1f} "
            f"| {e['ttft_p95_over_mean']:.2f} |"
        )


if __name__ == "__main__":
    main()
