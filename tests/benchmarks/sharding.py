"""Tokens/s of the CPU engine sharded in several ways, beside one plain numpy process over the same weights.

    .venv/bin/python -m tests.benchmarks.sharding [--rounds 5] [--json]

Every round runs all contenders one after another, so that a slow minute of the machine hits all of them; the table
gives medians, and the ratio to the plain process of the same round.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType] - untyped arrays

from fleet.local import checkpoint_path
from planner.plan import plan_file
from runtime import cpu_engine
from runtime.rank import blas_environment, cpu_flags
from tests.cpu_world import ROOT, decode

PROMPT = [1, 4093, 198, 1780, 314, 17012, 593, 37491, 28, 281, 827, 8545, 47, 2, 198, 1, 520, 9531, 198]
STEPS = 48
CONTENDERS = [
    ("TP1", 1, 1, 1),
    ("TP3", 3, 1, 1),
    ("PP3", 1, 3, 1),
    ("TP1, 8 streams", 1, 1, 8),
    ("TP3, 8 streams", 3, 1, 8),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rates: dict[str, list[float]] = {"plain numpy": [], **{name: [] for name, *_ in CONTENDERS}}
    with tempfile.TemporaryDirectory() as scratch:
        engines = {(tp, pp): build(Path(scratch), tp, pp) for tp, pp in {(tp, pp) for _, tp, pp, _ in CONTENDERS}}
        for _ in range(args.rounds):
            rates["plain numpy"].append(plain_process(engines[1, 1]))
            for name, tp, pp, streams in CONTENDERS:
                seconds = decode(engines[tp, pp], [PROMPT] * streams, STEPS).seconds
                rates[name].append(streams * (STEPS - 1) / seconds)
    report(rates, args.json)


def report(rates: dict[str, list[float]], as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for name, values in rates.items():
        ratios = [value / plain for value, plain in zip(values, rates["plain numpy"], strict=True)]
        spread = {"min": min(values), "median": statistics.median(values), "max": max(values)}
        rows.append({"contender": name, "tokens_per_s": spread, "ratio_to_plain": statistics.median(ratios)})
    if as_json:
        print(json.dumps({"cores": len(os.sched_getaffinity(0)), "steps": STEPS, "rows": rows}, indent=2))
        return
    table = Table("", "tokens/s (median)", "min - max", "ratio to plain", box=None, header_style="bold")
    for row in rows:
        rate = row["tokens_per_s"]
        spread = f"{rate['min']:.1f} - {rate['max']:.1f}"
        table.add_row(row["contender"], f"{rate['median']:.1f}", spread, f"{row['ratio_to_plain']:.2f}")
    Console().print(table)


def build(scratch: Path, tp: int, pp: int) -> Path:
    model = plan_file(ROOT / "stacks" / "Pulumi.local.yaml").models[0]
    out = scratch / f"tp{tp}pp{pp}"
    out.mkdir()
    mapping = {"tensor_parallel": tp, "pipeline_parallel": pp}
    cpu_engine.build(checkpoint_path(model.config, ROOT / "stacks"), {"key": {"mapping": mapping}}, out, lambda _: None)
    return out


def plain_process(engine: Path) -> float:
    """Tokens/s of a fresh process that runs `plain` and nothing else, with every core and the same BLAS kernels."""
    environment = {**os.environ, **blas_environment(len(os.sched_getaffinity(0)), 1, cpu_flags())}
    command = [sys.executable, "-m", "tests.benchmarks.sharding_plain", str(engine)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True)
    return float(done.stdout)


def plain(engine: Path) -> float:
    """The shortest honest numpy decoder: no ranks, no batching, no scheduler. Returns tokens/s after the prompt."""
    c = json.loads((engine / "config.json").read_text())["pretrained_config"]
    w: dict[str, Any] = cast("dict[str, Any]", load_file(engine / "rank0.safetensors"))
    d, heads, kv = c["head_size"], c["num_attention_heads"], c["num_key_value_heads"]
    embedding, layers = w["transformer.vocab_embedding.weight"], c["num_hidden_layers"]
    names = ("attention.qkv", "attention.dense", "mlp.gate_up", "mlp.proj", "input_layernorm", "post_layernorm")
    weights = [[w[f"transformer.layers.{i}.{name}.weight"] for name in names] for i in range(layers)]
    cache = np.zeros((layers, 2, kv, len(PROMPT) + STEPS, d), np.float32)
    frequencies = float(c["rotary_base"]) ** (-np.arange(0, int(d), 2) / int(d))
    angles = np.outer(np.arange(len(PROMPT) + STEPS), frequencies)
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def norm(x: Any, weight: Any) -> Any:
        return x / math.sqrt(float(np.dot(x, x)) / len(x) + c["norm_epsilon"]) * weight

    def forward(token: int, position: int) -> Any:
        cos, sin = cosines[position], sines[position]
        x = embedding[token]
        for i, (qkv, dense, gate_up, proj, norm_in, norm_post) in enumerate(weights):
            rows = (qkv @ norm(x, norm_in)).reshape(-1, d)
            low, high = rows[: heads + kv, : d // 2], rows[: heads + kv, d // 2 :]
            turned = np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
            cache[i, 0, :, position], cache[i, 1, :, position] = turned[heads:], rows[heads + kv :]
            keys, values = cache[i, :, :, : position + 1]
            scores = turned[:heads].reshape(kv, -1, d) @ keys.swapaxes(1, 2) / np.float32(d**0.5)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ values
            x = x + dense @ mixed.reshape(-1)
            gate, up = np.split(gate_up @ norm(x, norm_post), 2)
            x = x + proj @ (gate / (1 + np.exp(-gate)) * up)
        return embedding @ norm(x, w["transformer.ln_f.weight"])

    logits: Any = None
    for position, token in enumerate(PROMPT):
        logits = forward(token, position)
    started = time.perf_counter()
    for position in range(len(PROMPT), len(PROMPT) + STEPS - 1):
        logits = forward(int(np.argmax(logits)), position)
    return (STEPS - 1) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
