"""Makes docs/page.png: the page of a running `fleet serve`, with an answer on it and another one coming.

.venv/bin/python -m tests.frontend.screenshot [http://localhost:9000]
"""

import re
import shutil
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

OUT = Path(__file__).parents[2] / "docs" / "page.png"
QUESTIONS = ("What is Kubernetes, in two sentences?", "And what is a pod?")
ANSWER_MS = 120_000


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:9000"
    with sync_playwright() as playwright:
        # Its own sandbox wants a user that is not root.
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 640})
        page.goto(url)
        expect(page.locator("#phase")).to_have_text("ready")
        page.fill("#max-tokens", "96")
        for question in QUESTIONS:
            expect(page.locator("#send")).to_be_enabled(timeout=ANSWER_MS)
            page.fill("#question", question)
            page.keyboard.press("Enter")
        expect(page.locator("li.assistant").last).to_contain_text(re.compile(".{80}"), timeout=ANSWER_MS)
        expect(page.locator("#rate")).not_to_have_text("0.0")
        page.screenshot(path=OUT)
        browser.close()


if __name__ == "__main__":
    main()
