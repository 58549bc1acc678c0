"""The web page, and the status of the fleet that it shows."""

import json
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).with_name("static")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class _Page(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def routes() -> list[BaseRoute]:
    """The page's, which are anybody's: what it shows is asked for with the key."""
    return [
        Route("/", RedirectResponse("ui/")),
        Mount("/ui", _Page(directory=STATIC, html=True)),
    ]


def status(state: Path | None, *, ready: bool) -> dict[str, Any]:
    """The group as its launcher tells it in `state`, and what the frontend counts."""
    group: dict[str, Any] = {}
    if state is not None and state.is_file():
        group = json.loads(state.read_text(encoding="utf-8"))
    # A launcher that was killed leaves the file as it was.
    phase = "ready" if ready else "not ready" if group.get("phase") == "ready" else group.get("phase", "not ready")
    ranks = [{key: rank.get(key) for key in ("rank", "host", "server")} for rank in group.get("ranks", [])]
    return {
        "ready": ready,
        "phase": phase,
        "reason": None if ready else group.get("reason"),
        "generation": group.get("generation"),
        "ranks": ranks,
        "in_flight": _value("frontend_sequences_in_flight"),
        "waiting": _value("frontend_sequences_waiting"),
        "completion_tokens": _value("frontend_tokens_total", kind="completion"),
    }


def _value(name: str, **labels: str) -> int:
    return int(REGISTRY.get_sample_value(name, labels) or 0)
