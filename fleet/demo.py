"""`fleet demo`, the first thing a newcomer sees: serve the local stack, ask a question, say what ran where, stop."""

import argparse
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from fleet.ask import ask, chat_prompt
from fleet.local import STATE, read_state
from fleet.plan import stack_path
from fleet.serve import choose, rank_table
from planner.plan import plan_file
from runtime.errors import Refusal
from runtime.process_tree import die_with_parent

QUESTION = "What is Kubernetes, in two sentences?"
STACK = "local"


def add_parser(subparsers: Any) -> None:
    """Add the `demo` command."""
    parser = subparsers.add_parser("demo", help="serve a real model, ask it a question, show what ran where, stop")
    parser.add_argument("--question", default=QUESTION, help="(default: %(default)s)")
    parser.add_argument("--state-dir", type=Path, default=STATE, help="(default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: a real answer was streamed. 1: refused, or the group could not start."""
    console = Console(highlight=False)
    model = choose(plan_file(stack_path(STACK)), None)
    run_dir = args.state_dir / "run" / model.name
    if read_state(run_dir) is not None:
        raise Refusal(
            f"{model.name} is served here already",
            "a second group would overwrite its state and logs",
            f'ask that one: python -m fleet ask "{args.question}"',
        )
    # With --json its progress goes to standard error, and the table is printed here, after the answer.
    command = [sys.executable, "-m", "fleet", "serve", STACK, "--state-dir", str(args.state_dir), "--json", *_ports()]
    server = subprocess.Popen(command, process_group=0, preexec_fn=die_with_parent, stdout=subprocess.DEVNULL)
    try:
        while (state := read_state(run_dir)) is None or state["phase"] != "ready":
            if server.poll() is not None:
                return 1
            time.sleep(0.1)
        tokenizer = args.state_dir / "store" / "engines" / state["engine"] / "tokenizer"
        console.rule(f"[bold]{args.question}")
        answer = ask(
            model.name,
            state["grpc"],
            chat_prompt(tokenizer, args.question, None),
            {"max_tokens": 128},
            lambda piece: console.print(piece, end="", markup=False, soft_wrap=True),
        )
        console.print()
        console.rule("[bold]what ran where")
        console.print(rank_table(state))
        config = model.config
        console.print(
            f"\n{config.source}, TP {config.tensor_parallel} x PP {config.pipeline_parallel}: "
            f"{model.world_size} tritonservers in one Open MPI world\n"
            f"{answer.prompt_tokens} prompt tokens, {answer.output_tokens} generated at {answer.tokens_per_s:.1f} "
            f"tokens/s, the first after {answer.first_token_s:.2f} s"
        )
        console.print("\nkeep it running:  [bold].venv/bin/python -m fleet serve")
        console.print('and ask it:       [bold].venv/bin/python -m fleet ask "Why is the sky blue?"\n')
    finally:
        server.terminate()
        server.wait()
    return 0


def _ports() -> list[str]:
    """Flags with ports that are free now: a newcomer's 8000 is often taken."""
    with socket.socket() as http, socket.socket() as grpc, socket.socket() as metrics, socket.socket() as frontend:
        flags: list[str] = []
        for name, probe in (("http", http), ("grpc", grpc), ("metrics", metrics), ("frontend", frontend)):
            probe.bind(("127.0.0.1", 0))
            flags.append(f"--{name}-port={probe.getsockname()[1]}")
        return flags
