"""aiperf, NVIDIA's load generator, as the instrument of `fleet bench`: asked the same, its report in the same words."""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fleet.local import STATE, read_state
from runtime.errors import Refusal

BOX = " │╭╮╰╯─"
"""What it draws around its messages."""
LATENCIES = ("time_to_first_token", "inter_token_latency", "request_latency")


def installed() -> str | None:
    """Where it is on PATH."""
    return shutil.which("aiperf")


def load(args: argparse.Namespace) -> tuple[dict[str, Any], list[float]]:
    """What `bench.summary` gives, and the seconds to each request's first token. Raises Refusal."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [installed() or "aiperf", *arguments(args, folder)], capture_output=True, text=True, check=False
        )
        export = Path(folder) / "profile_export_aiperf.json"
        if done.returncode or not export.exists():
            said = [line.strip(BOX) for line in (done.stdout + done.stderr).splitlines() if line.strip(BOX)]
            last = [line for line in said if "ERROR" in line][-1:] or said[-3:]
            raise Refusal(
                f"aiperf did not measure (exit status {done.returncode}): {' '.join(last)[:400]}",
                "there is no report",
                "give the model's --tokenizer where that is what it lacks, or use --tool own",
            )
        lines = (Path(folder) / "profile_export.jsonl").read_text(encoding="utf-8").splitlines()
        return report(json.loads(export.read_text(encoding="utf-8")), [json.loads(line) for line in lines])


def arguments(args: argparse.Namespace, folder: str) -> list[str]:
    """aiperf's command line."""
    url = urlsplit(str(args.url))
    flags = {
        "model": args.model,
        "url": f"{url.scheme}://{url.netloc}",
        "custom-endpoint": f"{url.path}/chat/completions",
        "endpoint-type": "chat",
        "api-key": args.api_key,
        "tokenizer": args.tokenizer or _tokenizer(args.model),
        "concurrency": args.concurrency,
        "request-count": args.requests,
        "warmup-request-count": 1,
        "isl": args.input_tokens,
        "osl": args.output_tokens,
        "extra-inputs": json.dumps({"min_tokens": args.output_tokens, "temperature": 0}),
        "random-seed": args.seed,
        "request-timeout-seconds": args.timeout,
        "artifact-dir": folder,
        "ui": "none",
    }
    switches = ("--streaming", "--no-gpu-telemetry", "--no-server-metrics")
    return ["profile", *switches, *(f"--{name}={value}" for name, value in flags.items())]


def report(export: dict[str, Any], records: list[dict[str, Any]]) -> tuple[dict[str, Any], list[float]]:
    """From aiperf's aggregated and per-request files. Tokens are those that the endpoint bills."""

    def number(name: str) -> float:
        return export.get(name, {}).get("avg") or 0.0

    seconds, tokens = number("benchmark_duration"), number("total_usage_completion_tokens")
    records = [record for record in records if record["metadata"]["benchmark_phase"] != "warmup"]
    errors = [record["error"] for record in records if record.get("error")]
    found: dict[str, Any] = {
        "requests": len(records),
        "failed": len(errors),
        "errors": sorted({str(error.get("message") or error) for error in errors}),
        "seconds": round(seconds, 3),
        "prompt_tokens": int(number("total_usage_prompt_tokens")),
        "output_tokens": int(tokens),
        "output_tokens_per_s": round(tokens / seconds, 2) if seconds else 0.0,
        "requests_per_s": round(number("request_throughput"), 3),
    }
    for name in LATENCIES:
        given = {"mean": "avg", "p50": "p50", "p90": "p90", "p99": "p99"}
        found[f"{name}_ms"] = {ours: round(export.get(name, {}).get(its, 0.0), 3) for ours, its in given.items()}
    firsts = [record.get("metrics", {}).get("time_to_first_token") for record in records]
    return found, [first["value"] / 1000 for first in firsts if first]


def _tokenizer(model: str) -> str:
    """Of the engine that `fleet serve` runs here under that name; else aiperf may know the model by its name."""
    state = read_state(STATE / "run" / model)
    return str(STATE.resolve() / "store" / "engines" / state["engine"] / "tokenizer") if state else model
