"""`fleet ask`: one question to the model that `fleet serve` runs on this machine, its answer streamed."""

import argparse
import json
import queue
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tritonclient.utils import InferenceServerException

from fleet.local import STATE, read_state
from runtime.errors import Refusal

MODEL = "tensorrt_llm_bls"
TRITON_TYPES = {
    np.object_: "BYTES",
    np.bool_: "BOOL",
    np.int32: "INT32",
    np.uint64: "UINT64",
    np.float32: "FP32",
}
SILENCE_SECONDS = 300.0
triton: Any = tritonclient.grpc  # its methods have no annotations


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer and what it took; times in seconds, the rate over the tokens after the first."""

    model: str
    text: str
    prompt_tokens: int
    output_tokens: int
    first_token_s: float
    tokens_per_s: float


def add_parser(subparsers: Any) -> None:
    """Add the `ask` command."""
    parser = subparsers.add_parser("ask", help="ask the model that `serve` runs here; the answer is streamed")
    parser.add_argument("question", help="the question, or - to read it from standard input")
    parser.add_argument("--model", metavar="NAME", help="which one, where several are served")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the question")
    parser.add_argument("--raw", action="store_true", help="send the question as it is, without the chat template")
    parser.add_argument("--max-tokens", type=_int32, default=256, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--temperature", type=float, help="with --top-k or --top-p; without those the answer is greedy")
    parser.add_argument("--top-k", type=_int32, metavar="K")
    parser.add_argument("--top-p", type=float, metavar="P")
    parser.add_argument("--repetition-penalty", type=float, metavar="X")
    parser.add_argument("--seed", type=_uint64, metavar="N")
    parser.add_argument("--state-dir", type=Path, default=STATE, help="as given to `serve` (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON object when the answer is complete")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: answered. 1: refused, or no server."""
    run_dir, state = served(args.state_dir, args.model)
    question = sys.stdin.read() if args.question == "-" else args.question
    tokenizer = args.state_dir / "store" / "engines" / state["engine"] / "tokenizer"
    prompt = question if args.raw else chat_prompt(tokenizer, question, args.system)
    show: Callable[[str], None] = (lambda _: None) if args.json else _print_piece
    answer = ask(run_dir.name, state["grpc"], prompt, vars(args), show)
    if args.json:
        print(json.dumps(asdict(answer), ensure_ascii=False))
    else:
        rate = f"{answer.tokens_per_s:.1f} tokens/s, first after {answer.first_token_s:.2f} s"
        print(f"\n\n[{answer.prompt_tokens} + {answer.output_tokens} tokens; {rate}]", file=sys.stderr)
    return 0


def served(state_dir: Path, name: str | None) -> tuple[Path, dict[str, Any]]:
    """The run directory and state of the model of that name, or of the only one served. Raises Refusal."""
    states = {path.parent: read_state(path.parent) for path in sorted((state_dir / "run").glob("*/state.json"))}
    living = {path: state for path, state in states.items() if state and name in (None, path.name)}
    if len(living) != 1:
        names = ", ".join(path.name for path in living)
        raise Refusal(
            f"{len(living)} models are served here: {names}" if living else "no such model is served here",
            "there is nobody to ask" if not living else "there is no telling which one is meant",
            "give --model with one of them" if living else "start it in another terminal: python -m fleet serve",
        )
    path, state = next(iter(living.items()))
    if state["phase"] != "ready":
        raise Refusal(f"{path.name} is {state['phase']}", "it cannot answer yet", "ask again when `serve` says ready")
    return path, state


def chat_prompt(tokenizer: Path, question: str, system: str | None) -> str:
    """The question in the model's own chat template, which is untrusted input and runs sandboxed."""
    config = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    if not config.get("chat_template"):
        return question
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    special = {name: config.get(name) for name in ("bos_token", "eos_token")}
    try:
        template = environment.from_string(config["chat_template"])
        return template.render(messages=messages, add_generation_prompt=True, **special)
    except TemplateError as error:
        raise Refusal(
            f"the model's chat template cannot be used: {error}",
            "the question could not be put in the form that the model was trained on",
            "ask with --raw, in that form yourself",
        ) from error


def ask(model: str, server: str, prompt: str, options: dict[str, Any], show: Callable[[str], None]) -> Answer:
    """Send `prompt`, pass on each piece of text to `show`. Raises Refusal; interrupted, it frees the engine's slot."""
    inputs = list(tensors(prompt, options))
    started, first, last = time.monotonic(), 0.0, 0.0
    pieces: list[str] = []
    counts = {"num_input_tokens": 0, "num_output_tokens": 0}
    try:
        for result in stream(server, inputs):
            last = time.monotonic()
            first = first or last
            piece = b"".join(result.as_numpy("text_output").reshape(-1).tolist()).decode("utf-8", errors="replace")
            pieces.append(piece)
            show(piece)
            for name in counts:
                values = result.as_numpy(name)
                if values is not None and values.size:
                    counts[name] = int(values.reshape(-1)[0])
    except InferenceServerException as error:
        raise Refusal(
            f"{server} did not answer: {error.message()}",
            "the answer is missing or incomplete",
            "correct the request if the message says so; else see whether `serve` still runs",
        ) from None
    except queue.Empty:
        raise Refusal(
            f"{server} is silent",
            "the answer is missing or incomplete",
            "see whether `serve` still runs, and its logs",
        ) from None
    output_tokens = counts["num_output_tokens"]
    return Answer(
        model=model,
        text="".join(pieces),
        prompt_tokens=counts["num_input_tokens"],
        output_tokens=output_tokens,
        first_token_s=round(first - started, 4),
        tokens_per_s=round((output_tokens - 1) / (last - first), 2) if output_tokens > 1 and last > first else 0.0,
    )


def stream(server: str, inputs: list[Any], model: str = MODEL) -> Iterator[Any]:
    """The responses that carry text, of one streamed request; leaving early cancels it."""
    responses: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = triton.InferenceServerClient(server)
    finished = False

    def callback(result: Any, error: Any) -> None:
        responses.put((result, error))

    try:
        client.start_stream(callback)
        client.async_stream_infer(model, inputs, enable_empty_final_response=True)
        while True:
            result, error = responses.get(timeout=SILENCE_SECONDS)
            finished = error is not None or result.get_response().parameters["triton_final_response"].bool_param
            if error is not None:
                raise error
            if result.as_numpy("text_output") is not None:
                yield result
            if finished:
                return
    finally:
        client.stop_stream(cancel_requests=not finished)
        client.close()


def tensors(prompt: str, options: dict[str, Any]) -> Iterator[Any]:
    """The request's input tensors; `options` holds max_tokens, and what is not None of the sampling parameters."""
    # Bytes that are no UTF-8 go out as they came in: the server refuses them with the reason.
    yield _tensor("text_input", np.array([[prompt.encode(errors="surrogateescape")]], np.object_))
    yield _tensor("max_tokens", np.array([[options["max_tokens"]]], np.int32))
    for name in ("stream", "return_num_input_tokens", "return_num_output_tokens"):
        yield _tensor(name, np.array([[True]]))
    floats, whole = ("temperature", "top_p", "repetition_penalty"), {"top_k": np.int32, "seed": np.uint64}
    for name, dtype in {**dict.fromkeys(floats, np.float32), **whole}.items():
        if options.get(name) is not None:
            yield _tensor(name, np.array([[options[name]]], dtype))


def _tensor(name: str, values: npt.NDArray[Any]) -> Any:
    tensor = triton.InferInput(name, values.shape, TRITON_TYPES[values.dtype.type])
    tensor.set_data_from_numpy(values)
    return tensor


def _int32(text: str) -> int:
    return _within(text, -(2**31), 2**31 - 1)


def _uint64(text: str) -> int:
    return _within(text, 0, 2**64 - 1)


def _within(text: str, least: int, most: int) -> int:
    number = int(text)
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
    return number


def _print_piece(piece: str) -> None:
    print(piece, end="", flush=True)
