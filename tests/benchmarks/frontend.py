"""Streams through the frontend, beside upstream's `ensemble` and `tensorrt_llm_bls`, on one tritonserver.

    .venv/bin/python -m tests.benchmarks.frontend [--rounds 5] [--own] [--json]

The engine is a stub: 128 tokens for each of 16 concurrent streams. First as fast as they come: tokens/s as the clients
see them, and the processor time that each process takes for a token. Then one token each 25 ms in every stream, the
streams out of step: the time from the moment the engine gives a token to the moment a client has its text; "added" is
what that is above the engine's own stream, which has no text. Every round runs all contenders one after another, and
ratios are of one round, to each of upstream's two ways: Triton's HTTP, and gRPC with NVIDIA's client; that of the added
time is to the quicker one.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from fleet.local import checkpoint_path
from planner.plan import plan_file
from runtime import cpu_engine
from tests.benchmarks.streams import Stream, engine_stream, generate_stream, grpc, grpc_stream, openai_stream
from tests.frontend.serving import ROOT, FrontendProcess, ended_requests, stub_repository
from tests.model_repo.triton_process import TritonProcess

STREAMS, PACE_MS, WAVES, STARTS = 16, 25, 3, 3
MODELS = ("ensemble", "tensorrt_llm_bls", "preprocessing", "postprocessing", "tensorrt_llm")
ENGINE = "engine alone, gRPC"
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--own", action="store_true", help="this repository's ensemble and BLS in place of upstream's")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        engine = build(Path(scratch) / "engine")
        repository = stub_repository(engine, Path(scratch) / "repository", models=MODELS)
        if not args.own:
            for path in Path(__file__).with_name("upstream").glob("*.py"):
                (repository / path.stem / "1" / "model.py").write_bytes(path.read_bytes())
        triton = start(repository, Path(scratch) / "cache")
        try:
            frontend = FrontendProcess(triton.ports[1], engine / "tokenizer")
            try:
                rounds = uvloop.run(measure(triton, frontend, args.rounds))
            finally:
                frontend.stop()
        finally:
            triton.stop()
    report(rounds, args.json)


def build(out: Path) -> Path:
    model = plan_file(ROOT / "stacks" / "Pulumi.local.yaml").models[0]
    out.mkdir()
    key = {"mapping": {"tensor_parallel": 1, "pipeline_parallel": 1}}
    cpu_engine.build(checkpoint_path(model.config, ROOT / "stacks"), {"key": key}, out, lambda _: None)
    return out


def start(repository: Path, cache: Path) -> TritonProcess:
    """On a busy machine Triton 2.51 now and then aborts while it starts the 16 processes of BLS."""
    for left in reversed(range(STARTS)):
        triton = TritonProcess(repository, cache)
        try:
            return triton.wait_ready(120)
        except BaseException as error:
            triton.stop()
            if not left or not isinstance(error, RuntimeError):
                raise
    raise AssertionError


async def measure(triton: TritonProcess, frontend: FrontendProcess, rounds: int) -> list[dict[str, Figures]]:
    """Of each round and contender: tokens/s, processor microseconds and milliseconds (p50, p99) of a token."""
    http, rpc, _ = triton.ports
    client = grpc.InferenceServerClient(f"127.0.0.1:{rpc}")
    contenders = {
        ENGINE: engine_stream(client),
        "ensemble, HTTP": generate_stream(http, "ensemble"),
        "ensemble, gRPC": grpc_stream(client, "ensemble"),
        "BLS, HTTP": generate_stream(http, "tensorrt_llm_bls"),
        "BLS, gRPC": grpc_stream(client, "tensorrt_llm_bls"),
        "frontend, HTTP": openai_stream(frontend.port),
    }
    for stream in contenders.values():
        await asyncio.gather(*(stream(0, 0) for _ in range(STREAMS)))
    processes = of_a_token(triton, frontend)
    seeds, results = iter(range(1, 1_000_000)), list[dict[str, Figures]]()
    for number in range(rounds):
        results.append({})
        order = list(contenders)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            figures = await rate(contenders[name], processes)
            paced = {next(seeds): number * PACE_MS / STREAMS for number in range(STREAMS)}
            arrived = await asyncio.gather(*(late(contenders[name], seed, wait) for seed, wait in paced.items()))
            added = added_ms(triton, dict(zip(paced, arrived, strict=True)))
            figures |= {f"p{part}_ms": float(np.percentile(added, part)) for part in (50, 99)}
            results[-1][name] = figures
    await client.close()
    return results


def of_a_token(triton: TritonProcess, frontend: FrontendProcess) -> dict[str, list[psutil.Process]]:
    """Every process that has to do with a token."""
    server = psutil.Process(triton.process.pid)
    models = server.children(recursive=True)
    engine = [process for process in models if any("/tensorrt_llm/" in word for word in process.cmdline())]
    others = [process for process in models if process not in engine]
    served = {"Triton": [server], "engine": engine, "models": others}
    return served | {"frontend": [psutil.Process(frontend.process.pid)], "client": [psutil.Process()]}


async def rate(stream: Stream, processes: dict[str, list[psutil.Process]]) -> Figures:
    async def client() -> int:
        return sum([len(await stream(0, 0)) for _ in range(WAVES)])

    def used() -> dict[str, float]:
        return {name: sum(sum(one.cpu_times()[:2]) for one in those) for name, those in processes.items()}

    started, before = time.perf_counter(), used()
    tokens = sum(await asyncio.gather(*(client() for _ in range(STREAMS))))
    seconds, after = time.perf_counter() - started, used()
    spent = {f"{name}_us": (after[name] - before[name]) / tokens * 1e6 for name in processes}
    return {"tokens_per_s": tokens / seconds, "processor_us": sum(spent.values()), **spent}


async def late(stream: Stream, seed: int, wait_ms: float) -> list[float]:
    """A paced stream that begins a part of a step after the one before it."""
    await asyncio.sleep(wait_ms / 1000)
    return await stream(seed, PACE_MS)


def added_ms(triton: TritonProcess, arrived: dict[int, list[float]]) -> list[float]:
    given = {line["given"]["seed"][0]: line["times"] for line in ended_requests(triton) if line["times"]}
    return [
        (there - left) * 1000 for seed, times in arrived.items() for left, there in zip(given[seed], times, strict=True)
    ]


def report(rounds: list[dict[str, Figures]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rounds, indent=2))
        return
    parts = [key for key in rounds[0][ENGINE] if key.endswith("_us")]
    base_lines = ("ensemble, HTTP", "ensemble, gRPC", "BLS, HTTP", "BLS, gRPC")
    ratios_to = [f"to {line.replace(', ', ' ')}" for line in base_lines]
    heads = ("", "tokens/s", *ratios_to, "p50", "p99", "added p50", "ensemble's to it")
    rates, times = Table(*heads, box=None), Table("µs a token", *(part.removesuffix("_us") for part in parts), box=None)

    def median(of: list[float], form: str) -> str:
        return format(statistics.median(of), form)

    def quickest_ensemble(each: dict[str, Figures]) -> float:
        return min(figures["p50_ms"] for name, figures in each.items() if name.startswith("ensemble"))

    for name in rounds[0]:
        of = {key: [each[name][key] for each in rounds] for key in rounds[0][name]}
        ratios = (
            median([each[name]["tokens_per_s"] / each[line]["tokens_per_s"] for each in rounds], ".2f")
            for line in base_lines
        )
        base = [each[ENGINE]["p50_ms"] for each in rounds]
        added = [mine - engine for mine, engine in zip(of["p50_ms"], base, strict=True)]
        theirs = [quickest_ensemble(each) - engine for each, engine in zip(rounds, base, strict=True)]
        latencies = [median(of["p50_ms"], ".2f"), median(of["p99_ms"], ".2f")]
        if name != ENGINE:
            # Less than 10 µs is no figure.
            times_lower = [other / max(mine, 0.01) for other, mine in zip(theirs, added, strict=True)]
            latencies += [median(added, ".2f"), median(times_lower, ".1f")]
        rates.add_row(name, median(of["tokens_per_s"], ",.0f"), *ratios, *latencies)
        times.add_row(name, *(median(of[part], ".0f") for part in parts))
    Console(width=120).print(rates, "", times, "", f"milliseconds; load {psutil.getloadavg()[0]:.1f}", sep="\n")


if __name__ == "__main__":
    main()
