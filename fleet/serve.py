"""`fleet serve`: build what is missing, then keep one model of a stack serving on this machine until interrupted."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from fleet.local import STATE, Prepared, prepare, read_state
from fleet.plan import stack_path
from planner.errors import PlanError, Problem, did_you_mean
from planner.plan import FleetPlan, ModelPlan, plan_file
from runtime import launch, process_tree
from runtime.errors import Refusal

POLL_SECONDS = 0.2


def add_parser(subparsers: Any) -> None:
    """Add the `serve` command."""
    parser = subparsers.add_parser("serve", help="serve a model of a stack on this machine, until Ctrl-C")
    parser.add_argument("stack", nargs="?", default="local", help="a stack file or name (default: %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="which model, where the stack has several")
    parser.add_argument("--state-dir", type=Path, default=STATE, help="engines, logs and state (default: %(default)s)")
    for name, default in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(f"--{name}-port", type=launch.tcp_port, default=default, help="(default: %(default)s)")
    parser.add_argument(
        "--frontend-port", type=launch.tcp_port, default=9000, help="OpenAI's API; 0: none (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the group's state as a line of JSON at each change")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM: 0. 1: refused, or the group could not start."""
    path = stack_path(args.stack)
    model = choose(plan_file(path), args.model)
    output = sys.stdout
    # Standard output is for the program that reads the JSON; people's progress goes where errors go.
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        prepared = prepare(model, path.parent, args.state_dir, lambda line: print(line, flush=True))
        with _frontend(model, args, prepared) if args.frontend_port else contextlib.nullcontext():
            threading.Thread(target=_announce, args=(model, prepared, output, args), daemon=True).start()
            return 1 if launch.main(launch_arguments(args, prepared)) else 0


def choose(fleet: FleetPlan, name: str | None) -> ModelPlan:
    """The model of that name, or the only one. Raises PlanError."""
    names = [model.name for model in fleet.models]
    if name is None and len(names) == 1:
        return fleet.models[0]
    if name in names:
        return fleet.models[names.index(name)]
    what = f"no model is named {name}" if name else f"the stack has {len(names)} models"
    fix = did_you_mean(name or "", names, f"give --model with one of: {', '.join(names)}")
    raise PlanError([Problem(key="--model", what=what, consequence="there is nothing to serve", fix=fix)])


def launch_arguments(args: argparse.Namespace, prepared: Prepared) -> list[str]:
    """The launcher's command line, the same one a pod has."""
    return [
        *("--model-repository", str(prepared.repository)),
        *("--engine", str(prepared.engine)),
        *("--run-dir", str(prepared.run_dir)),
        *(
            word
            for name in ("http", "grpc", "metrics")
            for word in (f"--{name}-port", str(getattr(args, f"{name}_port")))
        ),
    ]


def frontend_arguments(model: ModelPlan, args: argparse.Namespace, prepared: Prepared) -> list[str]:
    """The frontend's command line."""
    flags = {
        "grpc": f"127.0.0.1:{args.grpc_port}",
        "model": model.name,
        "tokenizer": prepared.engine.resolve() / "tokenizer",
        "max-seq-len": model.config.max_seq_len,
        "max-sequences": model.config.max_sequences,
        "port": args.frontend_port,
        "state": prepared.run_dir / "state.json",
    }
    # There tensorrt_llm itself takes text, and tensorrt_llm_bls gives it in pieces.
    text = ["--engine-model=tensorrt_llm_bls", "--text"] if model.config.backend == "pytorch" else []
    return [*(f"--{name}={value}" for name, value in flags.items()), *text]


@contextlib.contextmanager
def _frontend(model: ModelPlan, args: argparse.Namespace, prepared: Prepared) -> Generator[None]:
    """OpenAI's API beside rank 0, on this machine only; it outlives the ranks' restarts. Raises Refusal."""
    command = [sys.executable, "-m", "frontend", *frontend_arguments(model, args, prepared)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=process_tree.die_with_parent
    )
    process_tree.spared.add(process.pid)
    try:
        if not (process.stdout and process.stdout.readline()):
            raise Refusal(
                f"the frontend did not start on port {args.frontend_port}",
                "no OpenAI client could be served; nothing else was started",
                "mend what it says above, give another --frontend-port, or 0 to serve without it",
            )
        yield
    finally:
        process.terminate()
        process.wait()


def rank_table(state: dict[str, Any]) -> Table:
    """What runs where: one row for each rank of the group."""
    table = Table("rank", "host", "tritonserver pid", "serves", box=None, header_style="bold")
    for rank in state["ranks"]:
        serves = f"http {state['http']}, gRPC {state['grpc']}" if rank["rank"] == 0 else "its shard, over MPI"
        table.add_row(str(rank["rank"]), rank["host"], str(rank["server"]), serves)
    return table


def openai_example(model: str, port: int) -> str:
    """What to type to ask the frontend."""
    question = {"model": model, "messages": [{"role": "user", "content": "What is Kubernetes?"}]}
    return (
        f"OpenAI:  curl localhost:{port}/v1/chat/completions -d '{json.dumps(question)}'\n"
        f'         openai.OpenAI(base_url="http://localhost:{port}/v1", api_key="-")\n'
        f"page:    http://localhost:{port}/"
    )


def _announce(model: ModelPlan, prepared: Prepared, output: TextIO, args: argparse.Namespace) -> None:
    """Tell of the group when it becomes ready, or as JSON at every change of its state."""
    told: dict[str, Any] | None = None
    wait = threading.Event()
    while not wait.wait(POLL_SECONDS):
        state = read_state(prepared.run_dir)
        if state is None or state == told:
            continue
        became_ready = state["phase"] == "ready" and (told or {}).get("phase") != "ready"
        told = state
        if args.json:
            print(json.dumps({"model": model.name, **state}), file=output, flush=True)
        elif became_ready:
            console = Console(file=output, highlight=False)
            console.print(f"\n{model.name} is ready, generation {state['generation']}:")
            console.print(rank_table(state))
            console.print('\nask it:  python -m fleet ask "What is Kubernetes?"     metrics: ' + state["metrics"])
            if args.frontend_port:
                console.print(openai_example(model.name, args.frontend_port), markup=False, soft_wrap=True)
            console.print(f"logs:    {prepared.run_dir}/rank*.log     stop: Ctrl-C\n")
