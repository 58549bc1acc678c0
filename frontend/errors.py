"""Errors as OpenAI's clients expect them, and the one that a person meets who starts the frontend."""

from typing import Any

import msgspec

RETRY_SECONDS = 1
ELSEWHERE = ("shutting_down", "engine_unavailable")
"""Codes of what another replica could serve now."""


class Refusal(Exception):
    """Why the process does not start: what is wrong, what it would have cost, how to fix it."""

    def __init__(self, what: str, consequence: str, fix: str) -> None:
        super().__init__(f"{what}\n  consequence: {consequence}\n  fix: {fix}")


class ApiError(Exception):
    """What a client is told. `retry_after` is in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.retry_after = retry_after

    def body(self) -> bytes:
        error: dict[str, Any] = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json"}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, round(self.retry_after)))
        if self.code in ELSEWHERE:
            # The next request may then come to another replica, which load balancers choose by connection.
            headers["connection"] = "close"
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def unavailable(message: str, code: str) -> ApiError:
    """503: the same request may succeed in a moment, here or at another replica."""
    return ApiError(503, message, kind="server_error", code=code, retry_after=RETRY_SECONDS)
