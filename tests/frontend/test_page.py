"""The web page in a real browser, before a real Triton with the stub engine."""

import hashlib
import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.frontend.serving import FrontendProcess, launcher_lock

STATE = {
    "phase": "ready",
    "generation": 3,
    "reason": None,
    "ranks": [{"rank": 0, "host": "leader-0", "server": 41}, {"rank": 1, "host": "<b>worker</b>", "server": 42}],
}


# Not for the session: until it ends, no other test of this process could run an event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium on PATH: install it to drive the page")
    with sync_playwright() as playwright:
        # Its own sandbox wants a user that is not root.
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda asked: None if "127.0.0.1" in asked.url or asked.url == "data:," else wrong.append(asked.url)
    )
    yield page
    context.close()
    assert wrong == [], "an error of the script, or an asset from outside"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A launcher's state.json, with this process as its launcher."""
    path = tmp_path / "state.json"
    path.write_text(json.dumps(STATE))
    with launcher_lock(tmp_path):
        yield path


@pytest.fixture
def served(start_frontend: Callable[..., FrontendProcess], state: Path) -> FrontendProcess:
    return start_frontend(f"--state={state}")


def test_a_question_is_answered_as_it_is_generated(served: FrontendProcess, page: Page) -> None:
    page.goto(served.url)
    expect(page.locator("#phase")).to_have_text("ready")
    page.fill("#max-tokens", "12")
    page.fill("#question", "<img src=x onerror=alert(1)> who are you?")
    page.keyboard.press("Enter")
    expect(page.locator("li.assistant")).not_to_be_empty()
    expect(page.locator("#send")).to_be_enabled()
    assert page.locator("li.user").inner_text() == "<img src=x onerror=alert(1)> who are you?"
    assert page.locator("li img").count() == 0, "text is text"
    page.fill("#question", "again")
    page.click("#send")
    expect(page.locator("li.assistant")).to_have_count(2)


def test_the_group_is_shown(served: FrontendProcess, page: Page) -> None:
    page.goto(served.url)
    rows = page.locator("#ranks tr")
    expect(rows).to_have_count(2)
    assert rows.all_inner_texts() == ["0\tleader-0\tpid 41", "1\t<b>worker</b>\tpid 42"]
    expect(page.locator("#model")).to_have_text("smollm2")
    expect(page.locator("#waiting")).to_have_text("0")
    expect(page.locator("#rate")).to_have_text("0.0")


def test_a_refusal_is_shown_and_the_next_question_answered(served: FrontendProcess, page: Page) -> None:
    page.goto(served.url)
    expect(page.locator("#phase")).to_have_text("ready")
    page.fill("#question", "word " * 5000)
    page.click("#send")
    expect(page.locator("li.error")).to_contain_text("maximum context length")
    page.click("#clear")
    page.fill("#question", "short")
    page.click("#send")
    expect(page.locator("li.assistant")).not_to_be_empty()


def test_an_answer_can_be_stopped(served: FrontendProcess, page: Page) -> None:
    def slowly(route: Route) -> None:
        # The stub engine waits so many milliseconds before each token.
        asked = json.loads(route.request.post_data or "") | {"min_tokens": 30}
        route.continue_(post_data=json.dumps(asked))

    page.route("**/v1/chat/completions", slowly)
    page.goto(served.url)
    expect(page.locator("#phase")).to_have_text("ready")
    page.fill("#max-tokens", "1800")
    page.fill("#question", "go on and on")
    page.click("#send")
    expect(page.locator("li.assistant")).not_to_be_empty()
    page.click("#stop")
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator("#running")).to_have_text("0")


def test_hosts_are_named_to_those_with_a_key(
    start_frontend: Callable[..., FrontendProcess], page: Page, tmp_path: Path, state: Path
) -> None:
    keys = tmp_path / "keys.json"
    key = {"name": "team-a", "sha256": hashlib.sha256(b"a key").hexdigest()}
    keys.write_text(json.dumps({"keys": [key]}))
    served = start_frontend(f"--state={state}", f"--api-keys={keys}")
    page.goto(served.url)
    expect(page.locator("#phase")).to_contain_text("key")
    expect(page.locator("#ranks tr")).to_have_count(0)
    page.fill("#key", "a key")
    page.keyboard.press("Tab")
    expect(page.locator("#ranks tr")).to_have_count(2)


def test_the_page_may_load_nothing_from_elsewhere(served: FrontendProcess) -> None:
    answer = urllib.request.urlopen(f"{served.url}/", timeout=5)
    assert answer.url == f"{served.url}/ui/"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
