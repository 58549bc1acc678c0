"""Whatever a client sends gets the right status and an error in OpenAI's form, and the next request is answered."""

# pyright: basic
import collections
import contextlib
import http.client
import json
import os
import socket
import time
from contextlib import closing
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from tests.frontend.serving import ended_requests

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
BUSY_TRIES, HANG_SECONDS = 5, 60
FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
GOOD = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
TEXT = {"model": "smollm2", "prompt": "Hi there", "max_tokens": 3}


def user(*parts: dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def error(response: httpx2.Response) -> dict[str, Any]:
    (body,) = response.json().values()
    assert set(body) == {"message", "type", "param", "code"}
    assert body["message"]
    return body


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "3"}, "max_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "half \ud83d"}]}, None),
        ({"temperature": 3}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"presence_penalty": 5}, "presence_penalty"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"stop": 5}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokenz": 5}, "max_tokenz"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs"),
        ({"modalities": ["audio"]}, "modalities"),
    ],
)
def test_a_wrong_field_is_refused_by_name(frontend, change, param):
    response = httpx2.post(f"{frontend.url}/v1/chat/completions", content=json.dumps(GOOD | change))

    assert response.status_code == 400, response.text
    assert error(response)["param"] == param
    assert error(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "harmless",
    [
        {"tools": None, "stop": None, "n": None, "logit_bias": {}},
        {
            "user": "me",
            "metadata": {"a": "b"},
            "store": False,
            "service_tier": "auto",
            "tools": [],
            "tool_choice": "none",
        },
        {"response_format": {"type": "text"}, "modalities": ["text"], "stop": "", "logprobs": False},
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "!"}]}
            ]
        },
    ],
)
def test_what_changes_nothing_is_taken(frontend, harmless):
    assert httpx2.post(f"{frontend.url}/v1/chat/completions", json=GOOD | harmless).status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [5, "mixed"]}, "prompt"),
        ({"prompt": [49152]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": ["x"] * 300}, "n"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 2}, "logprobs"),
    ],
)
def test_a_wrong_prompt_is_refused(frontend, change, param):
    response = httpx2.post(f"{frontend.url}/v1/completions", json=TEXT | change)

    assert (response.status_code, error(response)["param"]) == (400, param), response.text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"model": "smollm2", "prompt": "caf\xe9"}', "invalid_json"),
        (b"[" * 100_000, None),
        (b"null", None),
        (b"\xff\xfe\x00", "invalid_json"),
    ],
)
def test_a_body_that_is_no_request_is_refused(frontend, body, code):
    response = httpx2.post(f"{frontend.url}/v1/completions", content=body)

    assert response.status_code == 400, response.text
    assert code in (None, error(response)["code"])


def test_an_unknown_model_and_an_unknown_path(frontend):
    response = httpx2.post(f"{frontend.url}/v1/chat/completions", json=GOOD | {"model": "gpt-9"})
    assert (response.status_code, error(response)["code"]) == (404, "model_not_found")
    assert httpx2.get(f"{frontend.url}/v2/everything").status_code == 404
    wrong_method = httpx2.get(f"{frontend.url}/v1/chat/completions")
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")
    assert error(wrong_method)["message"]


@pytest.mark.parametrize("words", [2040, 5_000, 1_500_000])
def test_a_prompt_over_the_context_never_reaches_the_engine(frontend, triton, words):
    before = len(ended_requests(triton))
    response = httpx2.post(f"{frontend.url}/v1/completions", json=TEXT | {"prompt": " word" * words}, timeout=30)

    if words < 2048:
        assert response.json()["usage"]["completion_tokens"] == 3
    else:
        assert (response.status_code, error(response)["code"]) == (400, "context_length_exceeded")
        assert error(response)["param"] == "prompt"
        assert len(ended_requests(triton)) == before


def test_an_answer_ends_where_the_context_does(frontend):
    choice = httpx2.post(
        f"{frontend.url}/v1/completions", json=TEXT | {"prompt": " word" * 2040, "max_tokens": 99}
    ).json()

    assert choice["usage"]["completion_tokens"] == 8
    assert choice["choices"][0]["finish_reason"] == "length"


def test_a_body_over_ten_megabytes_is_refused_before_it_is_read(frontend):
    with closing(http.client.HTTPConnection("127.0.0.1", frontend.port, timeout=10)) as connection:
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("content-length", str(11_000_000))
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["error"]["code"] == "request_too_large"


def test_a_body_that_hides_its_size_is_refused_too(frontend):
    def endless():
        for _ in range(200):
            yield b" " * 100_000

    # It may be refused while it is still being sent.
    with contextlib.suppress(httpx2.WriteError):
        assert httpx2.post(f"{frontend.url}/v1/completions", content=endless()).status_code == 413


def test_garbage_on_the_wire_harms_nobody(frontend):
    for garbage in (b"\x00\x01\x02\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", frontend.port), timeout=5) as raw:
            raw.sendall(garbage)
            assert b"400" in raw.recv(100)
    assert httpx2.post(f"{frontend.url}/v1/completions", json=TEXT).status_code == 200


def test_fuzz_from_its_own_description(frontend):
    """Every operation with generated requests, valid and not: no 5xx, nothing undocumented, no hang.

    Back-pressure alone is no fault: on a busy machine a queue may fill, or Triton say late that it is ready. Who comes
    again after Retry-After, as clients do, must get another answer.
    """
    schema = schemathesis.openapi.from_url(f"{frontend.url}/openapi.json")
    statuses = collections.Counter[int]()

    def once(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):
            # To get past the model's name; and the stub makes long answers of many, and pauses of min_tokens.
            case.body |= {"model": "smollm2", "max_tokens": 3, "min_tokens": 0}
        for _ in range(BUSY_TRIES):
            response = case.call(base_url=frontend.url, timeout=HANG_SECONDS)
            statuses[response.status_code] += 1
            if response.status_code != 503:
                break
            time.sleep(int(response.headers["retry-after"][0]))
        assert response.status_code < 500, (case.as_curl_command(), response.text)
        case.validate_response(response, checks=[status_code_conformance, content_type_conformance])

    bounded = settings(max_examples=FUZZ_EXAMPLES, deadline=None, suppress_health_check=SLOW)
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    for operation in operations:
        for mode in GenerationMode:
            strategy = operation.as_strategy(generation_mode=mode)
            with contextlib.suppress(Unsatisfiable):  # nothing can be wrong about a request without parameters
                bounded(given(case=strategy)(once))()
    print(f"\n{sum(statuses.values())} requests to {len(operations)} operations: {dict(statuses)}")
    assert statuses[200] > 0 < statuses[400]
