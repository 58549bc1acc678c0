"""Streams through the frontend, beside the `ensemble` and `tensorrt_llm_bls` models, on one tritonserver.

    .venv/bin/python -m tests.benchmarks.frontend [--rounds 5] [--json]

The engine is a stub: 128 tokens for each of 16 concurrent streams. First as fast as they come: tokens/s as the clients
see them, and the processor time that all processes together take for a token. Then one token each 25 ms in every
stream, the streams out of step: the time from the moment the engine gives a token to the moment a client has its text;
"added" is what that is above the engine's own stream, which has no text. Every round runs all contenders one after
another, and ratios are of one round.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import tritonclient.grpc.aio
import uvloop
from rich.console import Console
from rich.table import Table

from fleet.local import checkpoint_path
from planner.plan import plan_file
from runtime import cpu_engine
from tests.frontend.serving import ROOT, FrontendProcess, ended_requests, stub_repository
from tests.model_repo.triton_process import TritonProcess

STREAMS, TOKENS, PACE_MS = 16, 128, 25
MODELS = ("ensemble", "tensorrt_llm_bls", "preprocessing", "postprocessing", "tensorrt_llm")
# As many tokens as words, and none of them a part of a character: every token is a piece of text to every contender.
PROMPT = " one two three four five six seven eight nine ten eleven twelve"
ENGINE, BLS = "tensorrt_llm, no text", "tensorrt_llm_bls, upstream's way"
grpc: Any = tritonclient.grpc.aio
Stream = Callable[[int, int], Awaitable[list[float]]]


class Choice(msgspec.Struct):
    text: str


class Event(msgspec.Struct):
    choices: list[Choice]


EVENT = msgspec.json.Decoder(Event)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        engine = build(Path(scratch) / "engine")
        repository = stub_repository(engine, Path(scratch) / "repository", models=MODELS)
        add_upstream_bls(repository)
        triton = TritonProcess(repository, Path(scratch) / "cache")
        try:
            triton.wait_ready(180)
            frontend = FrontendProcess(triton.ports[1], engine / "tokenizer")
            try:
                rounds = uvloop.run(measure(triton, frontend, args.rounds))
            finally:
                frontend.stop()
        finally:
            triton.stop()
    report(rounds, args.json)


def add_upstream_bls(repository: Path) -> None:
    """Beside the repository's own, with the same tensors and as many instances."""
    model = repository / "upstream_bls"
    (model / "1").mkdir(parents=True)
    config = (repository / "tensorrt_llm_bls" / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(config.replace('"tensorrt_llm_bls"', '"upstream_bls"', 1))
    (model / "1" / "model.py").write_bytes(Path(__file__).with_name("upstream_bls.py").read_bytes())


def build(out: Path) -> Path:
    model = plan_file(ROOT / "stacks" / "Pulumi.local.yaml").models[0]
    out.mkdir()
    key = {"mapping": {"tensor_parallel": 1, "pipeline_parallel": 1}}
    cpu_engine.build(checkpoint_path(model.config, ROOT / "stacks"), {"key": key}, out, lambda _: None)
    return out


async def measure(triton: TritonProcess, frontend: FrontendProcess, rounds: int) -> list[dict[str, dict[str, float]]]:
    """Of each round and contender: tokens/s, and the added milliseconds of a token (p50, p99)."""
    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.ports[1]}")
    contenders: dict[str, Stream] = {
        ENGINE: lambda seed, pace: engine_stream(client, seed, pace),
        "ensemble": lambda seed, pace: triton_stream(client, "ensemble", seed, pace),
        BLS: lambda seed, pace: triton_stream(client, "upstream_bls", seed, pace),
        "tensorrt_llm_bls of model_repo": lambda seed, pace: triton_stream(client, "tensorrt_llm_bls", seed, pace),
        "frontend": lambda seed, pace: http_stream(frontend.port, seed, pace),
    }
    for stream in contenders.values():
        await asyncio.gather(*(stream(0, 0) for _ in range(STREAMS)))
    seed, results = 0, list[dict[str, dict[str, float]]]()
    for number in range(rounds):
        results.append({})
        order = list(contenders)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            seeds = range(seed + 1, seed + 2 * STREAMS + 1)
            seed = seeds[-1]
            fast, paced = seeds[:STREAMS], seeds[STREAMS:]
            started, used = time.perf_counter(), processor_seconds(triton, frontend)
            arrived = await asyncio.gather(*(contenders[name](one, 0) for one in fast))
            tokens, seconds = sum(map(len, arrived)), time.perf_counter() - started
            spent = (processor_seconds(triton, frontend) - used) / tokens * 1e6
            arrived = dict(
                zip(paced, await asyncio.gather(*(late(contenders[name], one) for one in paced)), strict=True)
            )
            added = added_ms(triton, arrived)
            p50, p99 = float(np.percentile(added, 50)), float(np.percentile(added, 99))
            results[-1][name] = {"tokens_per_s": tokens / seconds, "cpu_us": spent, "p50_ms": p50, "p99_ms": p99}
    await client.close()
    return results


def processor_seconds(triton: TritonProcess, frontend: FrontendProcess) -> float:
    """Of every process that has to do with a token: server, engine and other models, frontend, clients."""
    server = psutil.Process(triton.process.pid)
    processes = [server, *server.children(recursive=True), psutil.Process(frontend.process.pid), psutil.Process()]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


async def late(stream: Stream, seed: int) -> list[float]:
    """A paced stream that begins a part of a step after the one before it."""
    await asyncio.sleep(seed % STREAMS * PACE_MS / 1000 / STREAMS)
    return await stream(seed, PACE_MS)


def added_ms(triton: TritonProcess, arrived: dict[int, list[float]]) -> list[float]:
    given = {line["given"]["seed"][0]: line["times"] for line in ended_requests(triton) if line["times"]}
    return [
        (there - left) * 1000 for seed, times in arrived.items() for left, there in zip(given[seed], times, strict=True)
    ]


async def triton_stream(client: Any, model: str, seed: int, pace: int) -> list[float]:
    """When each token's text was there; the client and its message types are NVIDIA's own."""
    inputs = {"text_input": np.array([[PROMPT.encode()]], np.object_), "max_tokens": np.array([[TOKENS]], np.int32)}
    inputs["stream"] = np.array([[True]])
    arrived = await responses(client, model, "text_output", inputs, seed, pace)
    # A BYTES tensor of one element: its length in four bytes, then the text.
    return check([at for at, _ in arrived], b"".join(raw[4:] for _, raw in arrived).decode())


async def engine_stream(client: Any, seed: int, pace: int) -> list[float]:
    """When each token's id was there: what Triton takes for itself."""
    ids = list(range(300, 320))
    inputs = {"input_ids": np.array([ids], np.int32), "input_lengths": np.array([[len(ids)]], np.int32)}
    inputs |= {"request_output_len": np.array([[TOKENS]], np.int32), "streaming": np.array([[True]])}
    arrived = await responses(client, "tensorrt_llm", "output_ids", inputs, seed, pace)
    assert len(arrived) == TOKENS
    return [at for at, _ in arrived]


async def responses(
    client: Any, model: str, output: str, inputs: dict[str, Any], seed: int, pace: int
) -> list[tuple[float, bytes]]:
    inputs = inputs | {"seed": np.array([[seed]], np.uint64), "min_tokens": np.array([[pace]], np.int32)}
    types = {"O": "BYTES", "i": "INT32", "u": "UINT64", "b": "BOOL"}
    tensors = [grpc.InferInput(name, list(array.shape), types[array.dtype.kind]) for name, array in inputs.items()]
    for tensor, array in zip(tensors, inputs.values(), strict=True):
        tensor.set_data_from_numpy(array)
    request = {"model_name": model, "inputs": tensors, "outputs": [grpc.InferRequestedOutput(output)]}

    async def requests() -> Any:
        yield {**request, "enable_empty_final_response": True}

    arrived = list[tuple[float, bytes]]()
    async for result, error in client.stream_infer(requests()):
        if error is not None:
            raise error
        response = result.get_response()
        if response.raw_output_contents:
            arrived.append((time.monotonic(), response.raw_output_contents[0]))
        if response.parameters["triton_final_response"].bool_param:
            break
    return arrived


async def http_stream(port: int, seed: int, pace: int) -> list[float]:
    """The same over HTTP: every event is parsed."""
    body = {"model": "smollm2", "prompt": PROMPT, "max_tokens": TOKENS, "seed": seed, "stream": True}
    content = json.dumps(body | {"min_tokens": pace}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
    client = HttpClient()
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", port)
    transport.write(head.encode() + content)
    await client.done
    transport.close()
    return check(client.times, "".join(client.pieces))


class HttpClient(asyncio.Protocol):
    """Reads one answer's events."""

    def __init__(self) -> None:
        self.times, self.pieces, self.rest = list[float](), list[str](), b""
        self.done = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        at = time.monotonic()
        for line in lines:
            if line.startswith(b"data: {"):
                self.pieces.append(EVENT.decode(line[6:]).choices[0].text)
                self.times.append(at)
            elif line == b"data: [DONE]":
                self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the answer was cut"))


def check(times: list[float], text: str) -> list[float]:
    words = PROMPT.split()
    assert len(times) == TOKENS, len(times)
    assert text.split() == [words[i % len(words)] for i in range(TOKENS)], text
    return times


def report(rounds: list[dict[str, dict[str, float]]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rounds, indent=2))
        return
    table = Table(
        "", "tokens/s", "to ensemble", "to BLS", "processor", "p50", "p99", "added p50", "to ensemble", box=None
    )
    for name in rounds[0]:
        of = {key: [each[name][key] for each in rounds] for key in rounds[0][name]}
        added = [each[name]["p50_ms"] - each[ENGINE]["p50_ms"] for each in rounds]
        by_ensemble = [each["ensemble"]["p50_ms"] - each[ENGINE]["p50_ms"] for each in rounds]

        def ratio(other: str, name: str = name) -> str:
            return (
                f"{statistics.median(each[name]['tokens_per_s'] / each[other]['tokens_per_s'] for each in rounds):.2f}"
            )

        table.add_row(
            name,
            f"{statistics.median(of['tokens_per_s']):,.0f}",
            ratio("ensemble"),
            ratio(BLS),
            f"{statistics.median(of['cpu_us']):.0f} µs",
            f"{statistics.median(of['p50_ms']):.2f} ms",
            f"{statistics.median(of['p99_ms']):.2f} ms",
            f"{statistics.median(added):.2f} ms",
            f"{statistics.median(a / b for a, b in zip(added, by_ensemble, strict=True)):.2f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
