"""The real `openai` client, unmodified, against the frontend over a stub engine that repeats the prompt."""

# pyright: basic
import asyncio
import time
from itertools import islice

import openai
import pytest

from tests.frontend.serving import ended_requests

WORDS = " one two three four five six seven eight"
CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "naïve 🙂 漢字 👩‍👩‍👧"}]}


def last_request(triton, before: int) -> dict:
    """What the engine wrote down of the request that ended since."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if new := ended_requests(triton)[before:]:
            return new[-1]
        time.sleep(0.02)
    raise AssertionError("the engine still runs the request")


def test_models(client):
    (model,) = client.models.list()
    assert client.models.retrieve("smollm2") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_streamed_pieces_are_the_whole_answer(client):
    whole = client.chat.completions.create(**CHAT, max_tokens=60)
    chunks = list(client.chat.completions.create(**CHAT, max_tokens=60, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]

    assert "naïve 🙂 漢字 👩‍👩‍👧" in whole.choices[0].message.content
    assert "".join(pieces) == whole.choices[0].message.content
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 30
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_async_client_streams_sixteen_at_once(frontend):
    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        stream = await client.completions.create(
            model="smollm2", prompt=f"{WORDS} {number}", max_tokens=40, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{frontend.url}/v1", api_key="any") as client:
            return await asyncio.gather(*(ask(client, number) for number in range(16)))

    for number, text in enumerate(asyncio.run(all_of_them())):
        assert text.startswith(f"{WORDS} {number}{WORDS}"), text


def test_usage_is_told_where_asked(client):
    asked = {"model": "smollm2", "prompt": WORDS, "max_tokens": 20, "stream": True}
    *chunks, last = client.completions.create(**asked, stream_options={"include_usage": True})

    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (8, 20, 28)
    assert last.choices == []
    assert all(chunk.usage is None for chunk in chunks)
    assert all(chunk.usage is None and chunk.choices for chunk in client.completions.create(**asked))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["ee fo", [" six", "four"], ["never", "three four"]])
def test_no_part_of_a_stop_string_is_sent_and_the_engine_stops(client, triton, stop, stream):
    before = len(ended_requests(triton))
    asked = {"model": "smollm2", "prompt": WORDS, "max_tokens": 2000, "stop": stop, "stream": stream}
    answer = client.completions.create(**asked, extra_body={"min_tokens": 5})
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]

    ends = min(WORDS.find(string) for string in ([stop] if isinstance(stop, str) else stop) if string in WORDS)
    assert "".join(choice.text for choice in choices) == WORDS[:ends]
    assert choices[-1].finish_reason == "stop"
    assert last_request(triton, before)["how"] == "stopped"


def test_several_choices_and_prompts_have_their_own_seeds(client, triton):
    before = len(ended_requests(triton))
    answer = client.completions.create(model="smollm2", prompt=[WORDS, " nine"], max_tokens=8, n=2, seed=7)

    assert [choice.text for choice in answer.choices] == [WORDS, WORDS, " nine" * 8, " nine" * 8]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.completion_tokens == 32
    assert sorted(line["given"]["seed"] for line in ended_requests(triton)[before:]) == [[7], [8], [9], [10]]
    streamed = list(client.completions.create(model="smollm2", prompt=WORDS, max_tokens=8, n=3, stream=True))
    for index in range(3):
        pieces = [chunk.choices[0].text for chunk in streamed if chunk.choices[0].index == index]
        assert "".join(pieces) == WORDS


def test_token_ids_are_taken_as_a_prompt(client):
    assert (
        client.completions.create(model="smollm2", prompt=[28120, 905], max_tokens=2).choices[0].text == "hello world"
    )


def test_sampling_reaches_the_engine(client, triton):
    before = len(ended_requests(triton))
    client.chat.completions.create(
        **CHAT,
        max_completion_tokens=3,
        temperature=0.5,
        top_p=0.25,
        presence_penalty=1,
        frequency_penalty=-1,
        seed=2**40,
    )
    client.chat.completions.create(**CHAT, max_tokens=3, temperature=0)
    client.chat.completions.create(**CHAT, max_tokens=3)
    drawn, greedy, default = (line["given"] for line in ended_requests(triton)[before:])

    assert {
        "temperature": [0.5],
        "runtime_top_p": [0.25],
        "runtime_top_k": [0],
        "seed": [2**40],
    }.items() <= drawn.items()
    assert {"presence_penalty": [1], "frequency_penalty": [-1], "request_output_len": [3]}.items() <= drawn.items()
    assert greedy["runtime_top_k"] == [1]
    assert {"temperature": [1], "runtime_top_p": [1], "runtime_top_k": [0]}.items() <= default.items()
    assert default["seed"] != greedy["seed"], "without a seed answers would be the same every time"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request_in_the_engine(frontend, triton, stream):
    before = len(ended_requests(triton))
    client = openai.OpenAI(base_url=f"{frontend.url}/v1", api_key="any", max_retries=0, timeout=0.5)
    asked = {"model": "smollm2", "prompt": WORDS, "max_tokens": 2000, "extra_body": {"min_tokens": 50}}
    if stream:
        with client.completions.create(**asked, stream=True) as answer:
            assert len(list(islice(answer, 3))) == 3
    else:
        with pytest.raises(openai.APITimeoutError):
            client.completions.create(**asked)
    ended = last_request(triton, before)

    assert ended["how"] == "stopped"
    assert ended["sent"] < 100


def test_four_hundred_clients_that_leave_do_no_harm(client, triton):
    """A gRPC stream cancelled in mid-request now and then crashed this Triton; the frontend's way does not."""
    for _ in range(400):
        with client.completions.create(model="smollm2", prompt=WORDS, max_tokens=500, stream=True) as answer:
            next(iter(answer))

    assert client.completions.create(model="smollm2", prompt=WORDS, max_tokens=8).choices[0].text == WORDS
    assert triton.process.poll() is None
