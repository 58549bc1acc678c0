"""A frontend that follows its launcher's state.json: refused are new requests, and only while the group takes none."""

# pyright: basic
import json

import httpx2
import pytest

from tests.frontend.serving import FrontendProcess, launcher_lock
from tests.frontend.test_serving import TEXT, in_background, post, slow, wait_for, wait_for_first_tokens


@pytest.fixture
def tell(tmp_path):
    """A function of the phase that the launcher tells."""

    def write(phase: str) -> None:
        staging = tmp_path / ".state.json"
        staging.write_text(json.dumps({"phase": phase, "generation": 1, "ranks": [], "reason": None}))
        staging.replace(tmp_path / "state.json")

    return write


@pytest.fixture
def following(start_frontend, tmp_path):
    """A frontend that is not ready yet, unlike its engine."""
    frontend = start_frontend(f"--state={tmp_path / 'state.json'}", wait=False)
    wait_for(lambda: frontend.answers("/healthz"))
    return frontend


def refusal(frontend: FrontendProcess) -> str | None:
    """The code of what a new request is told, None when it is answered."""
    response = post(frontend)
    if response.status_code == 200:
        return None
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.headers["connection"] == "close", "a Service chooses another replica by connection"
    return response.json()["error"]["code"]


def test_requests_are_served_in_the_phase_ready_alone(following, tell, tmp_path):
    assert refusal(following) == "engine_unavailable", "no launcher has said anything"
    with launcher_lock(tmp_path):
        for phase, code in [
            ("starting", "engine_unavailable"),
            ("ready", None),
            ("draining", "engine_unavailable"),
            ("restarting", "engine_unavailable"),
            ("ready", None),
            ("stopping", "shutting_down"),
        ]:
            tell(phase)
            wait_for(lambda wanted=code: refusal(following) == wanted)
            assert refusal(following) == code
            assert following.answers("/readyz") is (code is None)


def test_streams_in_flight_outlive_the_phase_ready(following, tell, tmp_path):
    tell("ready")
    with launcher_lock(tmp_path):
        following.wait_ready()
        threads, responses = in_background(following, slow(40, 50, stream=True), 4)
        wait_for_first_tokens(following, 4)
        tell("draining")
        wait_for(lambda: refusal(following) is not None)
        assert not responses
        for thread in threads:
            thread.join()
    assert [(response.status_code, response.text.count('"text"')) for response in responses] == [(200, 40)] * 4
    assert all(response.text.endswith("data: [DONE]\n\n") for response in responses)


def test_a_request_whose_body_comes_after_the_drain_began_is_refused(following, tell, tmp_path):
    tell("ready")
    with launcher_lock(tmp_path):
        following.wait_ready()

        def body():
            tell("draining")
            wait_for(lambda: not following.answers("/readyz"))
            yield json.dumps(TEXT).encode()

        response = httpx2.post(f"{following.url}/v1/completions", content=body(), timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")


def test_a_launcher_that_is_gone_left_its_last_word_behind(following, tell, tmp_path):
    tell("ready")
    with launcher_lock(tmp_path):
        following.wait_ready()
    wait_for(lambda: refusal(following) is not None)
    assert "launcher is gone" in post(following).json()["error"]["message"]
    with launcher_lock(tmp_path):
        wait_for(lambda: refusal(following) is None)
