"""How long a full plan takes: `python -m tests.benchmarks.plan [--model NAME] [--rounds N]`.

Each round is a process of its own, as a person starts it: imports, catalogue, every shape on three clouds, estimates
(from measured kernels too where aiconfigurator is installed), the ranking, both plots.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fleet import aiconfigurator
from planner import sources
from planner.clouds import CLOUDS
from planner.config import ModelConfig
from planner.instances import instances
from planner.shapes import shapes_of
from planner.target import Target

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llama-3.1-405b")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cores = os.sched_getaffinity(0)
    print(f"{args.model} on {len(cores)} cores, {args.rounds} rounds: median (least to most)")
    fits = [memory_fit_seconds(args.model) for _ in range(args.rounds)]
    print(f"legal shardings that fit, on every GPU of three clouds: {_words(fits)}")
    print(
        f"full plan by rooflines, wall: {_words([plan_seconds(args.model, '--roofline') for _ in range(args.rounds)])}"
    )
    if aiconfigurator.installed():
        print(f"full plan, wall: {_words([plan_seconds(args.model) for _ in range(args.rounds)])}")
    else:
        print("full plan with measured kernels: aiconfigurator is not installed")


def memory_fit_seconds(name: str) -> float:
    """From a model's facts to every shape that is legal and fits with a margin, none of it cached by a run before."""
    script = f"from tests.benchmarks.plan import fit; print(fit({name!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def fit(name: str) -> float:
    facts = sources.facts_of_file(sources.KNOWN_MODELS / f"{name}.json", "model")
    model = ModelConfig(name="m", source="hf://org/m", revision="r", backend="tensorrt", gpu="H100-80GB")
    types = [type_ for cloud in CLOUDS for type_ in instances(cloud).values()]
    begun = time.perf_counter()
    shapes_of(model, facts, Target(), types)
    return time.perf_counter() - begun


def plan_seconds(name: str, *flags: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fleet", "plan", "--model", name, "--png", f"{folder}/front.png", *flags]
        begun = time.perf_counter()
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        return time.perf_counter() - begun


def _words(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
