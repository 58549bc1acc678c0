"""The API's own description, from the types that decode its requests."""

from functools import cache
from typing import Any

import msgspec

from frontend.requests import ChatRequest, CompletionRequest

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
FAILURES = {
    "400": "the request is not valid",
    "401": "the API key is missing or wrong",
    "404": "there is no such model",
    "408": "the body came too slowly",
    "413": "the body is too large",
    "429": "the key is over its limit; see Retry-After",
    "503": "the queue is full, the engine is not there, or the server shuts down; see Retry-After",
}


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    (chat, text), schemas = msgspec.json.schema_components(
        [ChatRequest, CompletionRequest], ref_template="#/components/schemas/{name}"
    )
    object_or_events = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}
    as_json = {"application/json": {"schema": {"type": "object"}}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "tritonfleet", "version": "1"},
        "paths": {
            "/v1/models": {"get": _operation("The models served", as_json, "401")},
            "/v1/models/{name}": {"get": _operation("One model", as_json, "401", "404", parameters=[name])},
            "/v1/chat/completions": {"post": _operation("Answer a chat", object_or_events, *FAILURES, body=chat)},
            "/v1/completions": {"post": _operation("Continue a text", object_or_events, *FAILURES, body=text)},
            "/healthz": {"get": _operation("Whether this process works", as_json, security=[])},
            "/readyz": {"get": _operation("Whether requests can be served", as_json, "503", security=[])},
            "/metrics": {"get": _operation("For Prometheus", {"text/plain": {}}, security=[])},
        },
        "components": {
            "schemas": {**schemas, "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _operation(summary: str, content: Any, *failures: str, body: Any = None, **more: Any) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses = {status: {"description": FAILURES[status], "content": error} for status in failures}
    request = {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}} if body else {}
    done = {"description": "done", "content": content}
    return {"summary": summary, **request, "responses": {"200": done, **responses}, **more}
