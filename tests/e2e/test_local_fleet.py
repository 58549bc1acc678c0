"""The whole path for real: stack file, engine, model repository, launcher, Triton, MPI, and the command line."""

import json
import os
import re
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc

from fleet.ask import ask, chat_prompt, stream, tensors
from tests.e2e.conftest import Served, fleet

grpc: Any = tritonclient.grpc

QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("What is Kubernetes, in two sentences?", {"max_tokens": 48}),
    ("Hi", {"max_tokens": 5}),
    ("Tell me a long story about a fox. " * 12, {"max_tokens": 24}),
    ("Write a haiku about rain.", {"max_tokens": 32, "top_k": 40, "top_p": 0.9, "temperature": 0.8, "seed": 7}),
    ("Write a haiku about rain.", {"max_tokens": 32, "top_k": 40, "top_p": 0.9, "temperature": 0.8, "seed": 8}),
    ("List ten animals.", {"max_tokens": 40, "repetition_penalty": 1.2}),
    ("Count from one to twenty.", {"max_tokens": 64}),
]


def prompt(served: Served, question: str) -> str:
    engine = served.state_dir / "store" / "engines" / served.state()["engine"]
    return chat_prompt(engine / "tokenizer", question, None)


def answer(served: Served, question: str, options: dict[str, Any]) -> str:
    return ask("smollm2", served.state()["grpc"], prompt(served, question), options, lambda _: None).text


def metric(served: Served, name: str, **labels: str) -> float:
    with urllib.request.urlopen(f"http://{served.state()['metrics']}/metrics", timeout=10) as response:
        text = response.read().decode()
    for line in text.splitlines():
        if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no metric {name} with {labels}")


def test_a_question_gets_a_sensible_answer_from_three_ranks(served: Served) -> None:
    done = fleet("ask", "What is Kubernetes, in two sentences?", f"--state-dir={served.state_dir}", "--json")

    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert reply["text"].startswith("Kubernetes is a")
    assert 10 < reply["output_tokens"] <= 256
    state = served.state()
    servers = [psutil.Process(rank["server"]) for rank in state["ranks"]]
    assert [rank["rank"] for rank in state["ranks"]] == [0, 1, 2]
    assert {server.name() for server in servers} == {"tritonserver"}


def test_eight_streams_at_once_each_get_what_they_get_alone(served: Served) -> None:
    """Seven of different lengths and sampling run beside an eighth that is cancelled midway."""
    alone = [answer(served, question, options) for question, options in QUESTIONS]
    victim = prompt(served, "Write a very long essay about the history of Rome.")

    def cancelled_midway() -> int:
        address = served.state()["grpc"]
        pieces = list(islice(stream(address, list(tensors(victim, {"max_tokens": 1500}))), 6))
        return len(pieces)

    with ThreadPoolExecutor(8) as pool:
        cancelled = pool.submit(cancelled_midway)
        running = [pool.submit(answer, served, question, options) for question, options in QUESTIONS]
        together = [future.result() for future in running]
        assert cancelled.result() == 6
    assert together == alone
    assert len(set(alone)) == len(alone), "different seeds and prompts gave the same text: sampling is not real"
    deadline = time.monotonic() + 10
    while metric(served, "nv_trt_llm_request_metrics", request_type="active") > 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert metric(served, "nv_trt_llm_request_metrics", request_type="active") == 0, "the cancelled one still runs"
    assert metric(served, "nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="used") == 0


def test_requests_are_batched_in_flight(served: Served) -> None:
    seen = 0.0
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(answer, served, "Count to a hundred.", {"max_tokens": 100}) for _ in range(4)]
        while not all(future.done() for future in running):
            seen = max(seen, metric(served, "nv_trt_llm_request_metrics", request_type="scheduled"))
            time.sleep(0.05)
        assert len({future.result() for future in running}) == 1
    assert seen == 4


def test_the_ensemble_answers_as_the_bls_model_does(served: Served) -> None:
    text = prompt(served, "What is a compiler?")
    through_bls = ask("smollm2", served.state()["grpc"], text, {"max_tokens": 24}, lambda _: None).text
    through_ensemble = b""
    for response in stream(served.state()["grpc"], list(tensors(text, {"max_tokens": 24})), model="ensemble"):
        through_ensemble += b"".join(response.as_numpy("text_output").reshape(-1).tolist())

    assert through_ensemble.decode() == through_bls


def test_stop_words_end_the_answer(served: Served) -> None:
    words = grpc.InferInput("stop_words", [1, 1], "BYTES")
    words.set_data_from_numpy(np.array([[b"5"]], np.object_))
    text = prompt(served, "Count from one to ten.")
    unbounded = "".join(_texts(served, [*tensors(text, {"max_tokens": 60})]))
    stopped = "".join(_texts(served, [*tensors(text, {"max_tokens": 60}), words]))

    assert "5" in unbounded
    assert stopped == unbounded[: unbounded.index("5") + 1]


def _texts(served: Served, inputs: list[Any]) -> list[str]:
    responses = stream(served.state()["grpc"], inputs)
    return [b"".join(response.as_numpy("text_output").reshape(-1).tolist()).decode() for response in responses]


def test_a_prompt_over_the_context_is_refused_and_the_next_one_answered(served: Served) -> None:
    refused = fleet("ask", "word " * 3000, f"--state-dir={served.state_dir}")
    answered = fleet("ask", "Hi", "--max-tokens=3", f"--state-dir={served.state_dir}")

    assert refused.returncode == 1
    assert "max_seq_len" in refused.stderr
    assert "2048" in refused.stderr
    assert "fix:" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert answered.returncode == 0


def test_bytes_that_are_no_text_are_refused(served: Served) -> None:
    refused = fleet("ask", b"caf\xe9".decode(errors="surrogateescape"), f"--state-dir={served.state_dir}", "--raw")

    assert refused.returncode == 1
    assert "UTF-8" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_wrong_sampling_values_are_refused_by_name(served: Served) -> None:
    for flags, named in [
        (["--temperature=-1", "--top-k=5"], "temperature"),
        (["--top-p=2"], "top_p"),
        (["--max-tokens=0"], "max_tokens|request_output_len|REQUEST_OUTPUT_LEN"),
    ]:
        refused = fleet("ask", "Hi", *flags, f"--state-dir={served.state_dir}")
        assert refused.returncode == 1, flags
        assert re.search(named, refused.stderr), refused.stderr
        assert "Traceback" not in refused.stderr


def test_the_engine_is_listed_as_in_use_and_survives_gc(served: Served) -> None:
    store = served.state_dir / "store"
    collected = fleet("engines", "gc", f"--store={store}", "--older-than-days=0", "--json")
    listed = fleet("engines", "list", f"--store={store}", "--json")

    assert json.loads(collected.stdout) == []
    (engine,) = json.loads(listed.stdout)
    assert engine["in_use"]
    assert engine["id"] == served.state()["engine"]
    assert fleet("engines", "verify", f"--store={store}").returncode == 0


def test_an_idle_fleet_leaves_the_processor_alone(served: Served) -> None:
    """MPI's own waiting would spin: a core for each rank, day and night."""
    ranks = [psutil.Process(rank["pid"]) for rank in served.state()["ranks"]]
    processes = [process for rank in ranks for process in [rank, *rank.children(recursive=True)]]
    time.sleep(1)

    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    before = used()
    time.sleep(3)
    assert (used() - before) / 3 < 0.5, "cores that an idle group of three ranks keeps busy"


def test_a_killed_rank_ends_the_group_which_comes_back_and_answers_the_same(served: Served) -> None:
    before = answer(served, *QUESTIONS[0])
    state = served.state()
    os.kill(state["ranks"][1]["server"], signal.SIGKILL)
    again = served.wait_ready(state["generation"] + 1)

    assert not {rank["server"] for rank in state["ranks"]} & {rank["server"] for rank in again["ranks"]}
    assert not any(psutil.pid_exists(rank["server"]) for rank in state["ranks"])
    assert answer(served, *QUESTIONS[0]) == before
