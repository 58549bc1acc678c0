"""The frontend over `tensorrt_llm_bls`, text in and text out, beside the same frontend over the engine's tokens."""

# pyright: basic
import json
import signal
from itertools import islice

import httpx2
import openai
import pytest

from tests.frontend.serving import FrontendProcess, ended_requests, stub_repository
from tests.frontend.test_openai_client import last_request
from tests.model_repo.triton_process import TritonProcess

WORDS = " one two three four five six seven eight"
EMOJI = "naïve 🙂 漢字 👩‍👩‍👧"
TEXT_MODE = ("--engine-model=tensorrt_llm_bls", "--text")


@pytest.fixture(scope="module")
def triton(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    models = ("tensorrt_llm", "tensorrt_llm_bls", "preprocessing")
    # Each of its instances is a process.
    repository = stub_repository(engine, folder / "repository", models=models, max_batch_size=4)
    process = TritonProcess(repository, folder / "cache")
    try:
        yield process.wait_ready(120)
    finally:
        process.stop()


@pytest.fixture(scope="module")
def text(triton, engine):
    process = FrontendProcess(triton.ports[1], engine / "tokenizer", *TEXT_MODE)
    yield process
    output = process.stop()
    assert "Traceback" not in output, output


@pytest.fixture
def client(text) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{text.url}/v1", api_key="any", max_retries=0)


@pytest.mark.parametrize("asked", [{"prompt": EMOJI, "max_tokens": 60}, {"prompt": [EMOJI, WORDS], "max_tokens": 7}])
def test_answers_and_usage_are_those_of_tokens(client, start_frontend, asked):
    tokens = openai.OpenAI(base_url=f"{start_frontend().url}/v1", api_key="any", max_retries=0)
    expected = tokens.completions.create(model="smollm2", temperature=0, **asked)
    answer = client.completions.create(model="smollm2", temperature=0, **asked)
    stream = client.completions.create(
        model="smollm2", temperature=0, stream=True, stream_options={"include_usage": True}, **asked
    )
    *chunks, last = stream
    first_choice = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == 0]

    assert [choice.text for choice in answer.choices] == [choice.text for choice in expected.choices]
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * len(answer.choices)
    assert answer.usage == expected.usage == last.usage
    pieces = [choice.text for choice in first_choice]
    assert "".join(pieces) == answer.choices[0].text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["ee fo", [" six", "four"]])
def test_no_part_of_a_stop_string_is_sent_and_the_engine_stops(client, triton, stop, stream):
    before = len(ended_requests(triton))
    asked = {"model": "smollm2", "prompt": WORDS, "max_tokens": 2000, "stop": stop, "stream": stream}
    answer = client.completions.create(**asked, extra_body={"min_tokens": 5})
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]

    assert "".join(choice.text for choice in choices) == WORDS[: WORDS.find("ee fo" if stop == "ee fo" else "four")]
    assert choices[-1].finish_reason == "stop"
    assert last_request(triton, before)["how"] == "stopped"


def test_sampling_reaches_the_engine(client, triton):
    before = len(ended_requests(triton))
    client.completions.create(
        model="smollm2",
        prompt=WORDS,
        max_tokens=3,
        temperature=0.5,
        top_p=0.25,
        presence_penalty=1,
        frequency_penalty=-1,
        seed=2**40,
        extra_body={"repetition_penalty": 1.5},
    )
    client.completions.create(model="smollm2", prompt=WORDS, max_tokens=3, temperature=0)
    drawn, greedy = (line["given"] for line in ended_requests(triton)[before:])

    assert {"temperature": [0.5], "runtime_top_p": [0.25], "runtime_top_k": [0]}.items() <= drawn.items()
    assert {"seed": [2**40], "presence_penalty": [1], "repetition_penalty": [1.5]}.items() <= drawn.items()
    assert {"frequency_penalty": [-1], "request_output_len": [3]}.items() <= drawn.items()
    assert greedy["runtime_top_k"] == [1]


def test_clients_that_leave_end_their_requests_and_harm_nobody(client, triton):
    before = len(ended_requests(triton))
    asked = {"model": "smollm2", "prompt": WORDS, "max_tokens": 2000, "stream": True}
    with client.completions.create(**asked, extra_body={"min_tokens": 50}) as answer:
        assert len(list(islice(answer, 3))) == 3
    ended = last_request(triton, before)
    for _ in range(100):
        with client.completions.create(**asked) as answer:
            next(iter(answer))

    assert ended["how"] == "stopped"
    assert ended["sent"] < 100
    assert client.completions.create(model="smollm2", prompt=WORDS, max_tokens=8).choices[0].text == WORDS
    assert triton.process.poll() is None


@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        ("completions", {"prompt": [28120, 905]}, "prompt"),
        ("completions", {"prompt": "Hi", "logprobs": 0}, "logprobs"),
        ("chat/completions", {"messages": [{"role": "user", "content": EMOJI}], "logprobs": True}, "logprobs"),
    ],
)
def test_what_text_cannot_carry_is_refused(text, path, asked, param):
    answer = httpx2.post(f"{text.url}/v1/{path}", json={"model": "smollm2", **asked})

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, "unsupported_parameter")


def test_what_cannot_end_in_time_is_told_in_band(triton, engine):
    frontend = FrontendProcess(triton.ports[1], engine / "tokenizer", *TEXT_MODE, "--drain-seconds=0.2")
    asked = {"model": "smollm2", "prompt": WORDS, "max_tokens": 2000, "min_tokens": 50, "stream": True}
    with httpx2.stream("POST", f"{frontend.url}/v1/completions", json=asked, timeout=30) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        frontend.process.send_signal(signal.SIGTERM)
        *_, event, done = lines

    assert json.loads(event[6:])["error"]["code"] == "shutting_down"
    assert done == "data: [DONE]"
    assert frontend.process.wait(10) == 0
