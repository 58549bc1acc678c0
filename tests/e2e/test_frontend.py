"""The real `openai` client against the real model over three ranks, as `fleet serve` starts them."""

import os
import signal
import time

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.conftest import Served
from tests.e2e.test_local_fleet import answer, metric
from tests.frontend.serving import FrontendProcess

QUESTION = "What is Kubernetes, in two sentences?"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{served.frontend}/v1", api_key="-", max_retries=0)


def chat(client: openai.OpenAI, **options: float) -> str:
    reply = client.chat.completions.create(model="smollm2", messages=MESSAGES, max_tokens=48, extra_body=options)
    return reply.choices[0].message.content or ""


def test_the_answer_is_that_of_the_bls_model(served: Served, client: openai.OpenAI) -> None:
    assert chat(client, temperature=0) == answer(served, QUESTION, {"max_tokens": 48})


def test_text_mode_gives_the_answer_of_token_mode(served: Served, client: openai.OpenAI) -> None:
    """What the pytorch backend is served by, over the tensors that are the same on every backend."""
    state = served.state()
    port = int(state["grpc"].rpartition(":")[2])
    tokenizer = served.state_dir / "store" / "engines" / state["engine"] / "tokenizer"
    frontend = FrontendProcess(port, tokenizer, "--engine-model=tensorrt_llm_bls", "--text")
    try:
        over_text = openai.OpenAI(base_url=f"{frontend.url}/v1", api_key="-", max_retries=0)
        replies = [
            each.chat.completions.create(model="smollm2", messages=MESSAGES, max_tokens=48, temperature=0)
            for each in (client, over_text)
        ]
    finally:
        output = frontend.stop()
    assert replies[0].choices[0].message.content == replies[1].choices[0].message.content
    assert replies[0].usage == replies[1].usage
    assert "Traceback" not in output


def test_a_seed_repeats_an_answer_and_another_changes_it(client: openai.OpenAI) -> None:
    first, again, other = (chat(client, seed=seed) for seed in (7, 7, 8))

    assert first == again != other


def test_an_answer_that_ends_by_itself_says_so(client: openai.OpenAI) -> None:
    hello: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hi."}]
    stream = client.chat.completions.create(model="smollm2", messages=hello, stream=True, temperature=0)
    chunks = list(stream)

    assert chunks[-1].choices[0].finish_reason == "stop"
    assert "<|im_end|>" not in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_log_probabilities_are_the_engines(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="smollm2", messages=MESSAGES, max_tokens=8, temperature=0, logprobs=True
    )
    log_probs = reply.choices[0].logprobs
    assert log_probs is not None
    assert log_probs.content is not None
    assert "".join(token.token for token in log_probs.content) == reply.choices[0].message.content
    assert all(-10 < token.logprob < 0 for token in log_probs.content)


def test_a_client_that_leaves_frees_the_engine(served: Served, client: openai.OpenAI) -> None:
    with client.completions.create(model="smollm2", prompt="Once", max_tokens=1500, stream=True) as stream:
        next(iter(stream))
    deadline = time.monotonic() + 10
    while metric(served, "nv_trt_llm_request_metrics", request_type="active") > 0 and time.monotonic() < deadline:
        time.sleep(0.1)

    assert metric(served, "nv_trt_llm_request_metrics", request_type="active") == 0


def test_the_frontend_lives_through_the_loss_of_a_rank(served: Served, client: openai.OpenAI) -> None:
    state = served.state()
    os.kill(state["ranks"][2]["server"], signal.SIGKILL)
    while served.state()["phase"] == "ready":
        time.sleep(0.02)
    ready = f"http://127.0.0.1:{served.frontend}/readyz"
    refused = httpx2.get(ready, timeout=10)
    served.wait_ready(state["generation"] + 1)
    while httpx2.get(ready, timeout=10).status_code != 200:
        time.sleep(0.1)

    assert refused.status_code == 503
    assert chat(client, temperature=0).startswith("Kubernetes is a")
