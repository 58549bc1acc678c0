"""The frontend's process.

    python -m frontend --grpc 127.0.0.1:8001 --model smollm2 --tokenizer ENGINE/tokenizer --max-seq-len 2048

On SIGTERM it is unready at once, answers new requests with 503, lets those in flight end within --drain-seconds, tells
the others, and exits with 0. Exit status 2: refused before anything started.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import uvicorn
import uvloop

from frontend.app import Frontend
from frontend.completion import Model
from frontend.engine import Engine
from frontend.errors import Refusal
from frontend.keys import Keys
from frontend.text_engine import TextEngine
from frontend.tokenizer import ModelTokenizer
from frontend.tracing import Tracing, from_environment

LAST_REQUESTS_SECONDS = 0.5
"""From the last connection that is accepted to the last request that is answered."""
SEND_SECONDS = 5
"""For clients that read slowly what is ready for them when the process ends."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        keys, tokenizer, tracing = Keys(options.api_keys), ModelTokenizer(options.tokenizer), from_environment()
        listener = _listener(options)
    except Refusal as refusal:
        print(f"refused: {refusal}", file=sys.stderr, flush=True)
        return 2
    uvloop.run(_serve(options, keys, tokenizer, tracing, listener))
    tracing.close()
    return 0


class _Server(uvicorn.Server):
    """Signals drain first; uvicorn alone would close its sockets at once, and cut every stream."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """First answers those who came just before: uvicorn alone would close connections without a request yet."""
        for listening in self.servers:
            listening.close()
        await asyncio.sleep(LAST_REQUESTS_SECONDS)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


async def _serve(
    options: argparse.Namespace, keys: Keys, tokenizer: ModelTokenizer, tracing: Tracing, listener: socket.socket
) -> None:
    address = (options.grpc, options.engine_model, options.silence_seconds)
    engine = TextEngine(*address, tokenizer) if options.text else Engine(*address)
    model = Model(options.model, tokenizer, engine, options.max_seq_len)
    frontend = Frontend(model, keys, options.max_sequences, options.state, tracing)
    config = uvicorn.Config(
        frontend.app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SEND_SECONDS,
    )
    server = _Server(config)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    serving = asyncio.create_task(server.serve([listener]))
    watching = [asyncio.create_task(each) for each in (engine.watch(), frontend.group.watch())]
    waiting = asyncio.create_task(stopping.wait())
    print(f"serving {options.model} at http://{options.host}:{options.port}/v1", flush=True)
    await asyncio.wait([serving, waiting], return_when=asyncio.FIRST_COMPLETED)
    await frontend.drain(options.drain_seconds)
    server.should_exit = True
    await serving
    for each in watching:
        each.cancel()
    await engine.close()


def _listener(options: argparse.Namespace) -> socket.socket:
    """Bound before anything else starts. Raises Refusal."""
    if options.api_keys is None and not options.no_auth and not ipaddress.ip_address(options.host).is_loopback:
        raise Refusal(
            f"{options.host} can be reached by others, and no API keys are given",
            "anybody could use the model",
            "give --api-keys FILE, or listen on 127.0.0.1; where something else lets only known callers in, --no-auth",
        )
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=1024)
    except OSError as error:
        raise Refusal(
            f"cannot listen on {options.host} port {options.port}: {error.strerror}",
            "no client could be served",
            "end the process that holds the port, or give another one with --port",
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m frontend", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--grpc", required=True, metavar="HOST:PORT", help="Triton's gRPC endpoint")
    parser.add_argument("--model", required=True, metavar="NAME", help="the name that clients ask for")
    parser.add_argument("--tokenizer", required=True, type=Path, metavar="DIR", help="the engine's tokenizer folder")
    parser.add_argument("--max-seq-len", required=True, type=int, metavar="N", help="tokens of prompt and answer")
    parser.add_argument("--engine-model", default="tensorrt_llm", help="Triton's name of it (default: %(default)s)")
    parser.add_argument("--text", action="store_true", help="it takes and gives text: --engine-model tensorrt_llm_bls")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9000, help="(default: %(default)s)")
    parser.add_argument("--api-keys", type=Path, metavar="FILE", help="see frontend/keys.py; re-read when it changes")
    parser.add_argument("--state", type=Path, metavar="FILE", help="the launcher's state.json, to follow")
    parser.add_argument("--no-auth", action="store_true", help="serve anybody who can reach the address")
    parser.add_argument(
        "--max-sequences", type=int, default=256, metavar="N", help="running and waiting; more is 503 (default: 256)"
    )
    parser.add_argument("--drain-seconds", type=float, default=30, help="for what is in flight (default: %(default)g)")
    parser.add_argument(
        "--silence-seconds", type=float, default=300, help="an engine silent for longer is stalled (default: 300)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
