"""`fleet bench`: load an OpenAI-compatible endpoint and say how fast it answered, as its clients see it.

aiperf does it where it is on PATH: an instrument that others made, and read. The report is the same.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import plotext
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fleet import aiperf
from runtime.errors import Refusal

plot: Any = plotext  # its functions have no annotations
PERCENTILES = (50, 90, 99)
WORDS = ("the", "of", "to", "and", "in", "is", "it", "that", "was", "for", "on", "are", "as", "with", "his", "they")
"""A token each in every vocabulary that was looked at, with the space before it."""


@dataclass
class Answer:
    """One request: when it was sent, when each piece with text came (seconds, monotonic), and what it was billed."""

    sent: float
    pieces: list[float] = field(default_factory=list[float])
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None


def add_parser(subparsers: Any) -> None:
    """Add the `bench` command."""
    parser = subparsers.add_parser("bench", help="load an OpenAI-compatible endpoint, and measure what clients see")
    parser.add_argument("--url", default="http://localhost:9000/v1", help="(default: %(default)s)")
    parser.add_argument("--model", help="as the endpoint names it (default: the only one there)")
    parser.add_argument("--api-key", default="-", metavar="KEY")
    parser.add_argument("--concurrency", type=_positive, default=16, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--requests", type=_positive, default=64, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--input-tokens",
        type=_positive,
        default=128,
        metavar="N",
        help="about; the template's come on top (default: 128)",
    )
    parser.add_argument("--output-tokens", type=_positive, default=128, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="of one answer (default: 300)")
    parser.add_argument(
        "--tool", choices=("aiperf", "own"), help="what asks (default: aiperf where it is on PATH, else own)"
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="aiperf's (default: the local fleet's, or named as the model)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: every request was answered. 1: refused, or some failed."""
    args.tool = args.tool or ("aiperf" if aiperf.installed() else "own")
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"asking ({args.tool})", total=args.requests)
        asyncio.run(_name_model(args))
        if args.tool == "aiperf":
            found, firsts = aiperf.load(args)
        else:
            answers, seconds = asyncio.run(load(args, lambda: progress.advance(task)))
            found, firsts = summary(answers, seconds), [each.pieces[0] - each.sent for each in answers if each.pieces]
    report = found | {name: getattr(args, name) for name in ("model", "url", "concurrency", "tool")}
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report, sorted(1000 * first for first in firsts), Console(highlight=False))
    return 1 if report["failed"] else 0


async def load(args: argparse.Namespace, advance: Callable[[], None]) -> tuple[list[Answer], float]:
    """Every answer in the order of the prompts, and the seconds from the first request to the last answer."""
    chosen = random.Random(args.seed)
    prompts = [" ".join(chosen.choices(WORDS, k=args.input_tokens)) for _ in range(args.requests + 1)]
    connections = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=args.timeout)
    headers = {"Authorization": f"Bearer {args.api_key}"}
    async with aiohttp.ClientSession(connector=connections, timeout=timeout, headers=headers) as session:
        # The first request pays for what is made on first use.
        warm = await _ask(session, args, prompts.pop())
        if warm.error:
            raise Refusal(
                f"{args.url} does not answer: {warm.error}", "there is nothing to measure", "mend that and ask again"
            )
        free = asyncio.Semaphore(args.concurrency)

        async def one(prompt: str) -> Answer:
            async with free:
                answer = await _ask(session, args, prompt)
            advance()
            return answer

        begun = time.perf_counter()
        answers = await asyncio.gather(*map(one, prompts))
        return answers, time.perf_counter() - begun


def summary(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Rates over the whole run and percentiles in milliseconds; only of requests that were answered whole."""
    good = [answer for answer in answers if answer.error is None and answer.pieces]
    tokens = sum(answer.output_tokens for answer in good)
    errors = sorted({answer.error for answer in answers if answer.error})
    return {
        "requests": len(answers),
        "failed": len(answers) - len(good),
        "errors": errors,
        "seconds": round(seconds, 3),
        "prompt_tokens": sum(answer.prompt_tokens for answer in good),
        "output_tokens": tokens,
        "output_tokens_per_s": round(tokens / seconds, 2),
        "requests_per_s": round(len(good) / seconds, 3),
        "time_to_first_token_ms": _percentiles([answer.pieces[0] - answer.sent for answer in good]),
        "inter_token_latency_ms": _percentiles([_pace(answer) for answer in good]),
        "request_latency_ms": _percentiles([answer.pieces[-1] - answer.sent for answer in good]),
    }


def print_report(report: dict[str, Any], firsts: Sequence[float], console: Console) -> None:
    """The summary as a table, and the spread of times to first token (milliseconds, ascending) as a picture."""
    console.print(
        f"{report['model']} at {report['url']}: {report['requests']} requests, {report['concurrency']} at once, "
        f"{report['seconds']:.1f} s, asked by {report['tool']}\n"
        f"[bold]{report['output_tokens_per_s']:.1f} output tokens/s[/], {report['requests_per_s']:.2f} requests/s"
    )
    table = Table("milliseconds", "mean", *(f"p{each}" for each in PERCENTILES), box=None, header_style="bold")
    for name in ("time_to_first_token_ms", "inter_token_latency_ms", "request_latency_ms"):
        table.add_row(name.removesuffix("_ms").replace("_", " "), *(f"{each:.2f}" for each in report[name].values()))
    console.print(table)
    for error in report["errors"]:
        console.print(f"[red]failed:[/] {error}", markup=True)
    if len(firsts) > 1:
        plot.clear_figure()
        plot.theme("clear")
        plot.plot_size(min(console.width, 80), 14)
        plot.plot(firsts, [100 * (index + 1) / len(firsts) for index in range(len(firsts))])
        plot.title("requests (%) whose first token came within (ms)")
        print(plot.build())


async def _name_model(args: argparse.Namespace) -> None:
    if not args.model:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {args.api_key}"}) as session:
            args.model = await _only_model(session, args.url)


async def _only_model(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(f"{url}/models") as reply:
            names = [model["id"] for model in (await reply.json())["data"]]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        what = f"{url}/models does not answer as OpenAI's API: {error or type(error).__name__}"
        fix = "start one (`python -m fleet serve`), or correct --url and --api-key"
        raise Refusal(what, "there is nothing to load", fix) from None
    if len(names) != 1:
        raise Refusal(f"{url} has {len(names)} models", "one of them is to be loaded", f"give --model: {names}")
    return names[0]


async def _ask(session: aiohttp.ClientSession, args: argparse.Namespace, prompt: str) -> Answer:
    """Exactly --output-tokens where the endpoint knows `min_tokens`, as this project's and vLLM's do."""
    body = {
        "model": args.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": args.output_tokens,
        "min_tokens": args.output_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = Answer(time.perf_counter())
    try:
        async with session.post(f"{args.url}/chat/completions", json=body) as reply:
            if reply.status != 200:
                answer.error = f"HTTP {reply.status}: {(await reply.text())[:300]}"
                return answer
            whole = False
            async for line in reply.content:
                now = time.perf_counter()
                if line.startswith(b"data: [DONE]"):
                    whole = True
                elif line.startswith(b"data: "):
                    _take(answer, json.loads(line[6:]), now)
            if not whole and answer.error is None:
                answer.error = "the stream ended before [DONE]"
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        answer.error = str(error) or type(error).__name__
    return answer


def _take(answer: Answer, event: dict[str, Any], now: float) -> None:
    if "error" in event:
        answer.error = event["error"]["message"]
    if event.get("usage"):
        answer.prompt_tokens = event["usage"]["prompt_tokens"]
        answer.output_tokens = event["usage"]["completion_tokens"]
    if any(choice["delta"].get("content") for choice in event.get("choices", [])):
        answer.pieces.append(now)


def _pace(answer: Answer) -> float:
    """Seconds a token after the first piece, of which one may hold several tokens."""
    return (answer.pieces[-1] - answer.pieces[0]) / max(1, answer.output_tokens - 1)


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return dict.fromkeys(("mean", *(f"p{each}" for each in PERCENTILES)), 0.0)
    cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 99
    found = {f"p{each}": round(cuts[each - 1] * 1000, 3) for each in PERCENTILES}
    return {"mean": round(statistics.fmean(seconds) * 1000, 3), **found}


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
