"""The bodies of requests: every field that OpenAI's clients send is taken, ignored as harmless, or refused by name."""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from frontend.errors import ApiError

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Stops = Annotated[list[str], Meta(max_length=16)]
MAX_CHOICES = 128


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Common(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both kinds of completion take. top_k, min_tokens and repetition_penalty are the engine's own."""

    model: str
    max_tokens: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | Stops | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    # Said about a request, without a bearing on its answer.
    user: str | None = None
    # Refused by name unless left out or neutral.
    logit_bias: dict[str, float] | None = None

    def stops(self) -> list[str]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [string for string in given if string]


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class Message(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        """As templates expect it: plain text, and `system` for what newer clients call `developer`."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ResponseFormat(msgspec.Struct):
    type: str


class ChatRequest(Common, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    response_format: ResponseFormat | None = None
    parallel_tool_calls: bool | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    def unsupported(self) -> list[str]:
        refused = ("tools", "functions", "audio", "prediction", "reasoning_effort", "verbosity", "web_search_options")
        names = [name for name in refused if getattr(self, name)]
        names += [name for name in ("tool_choice", "function_call") if getattr(self, name) not in (None, "none")]
        names += ["modalities"] if self.modalities not in (None, ["text"]) else []
        names += ["response_format"] if self.response_format and self.response_format.type != "text" else []
        names += ["top_logprobs"] if self.top_logprobs else []
        return names + _unsupported(self)

    @property
    def log_probs(self) -> bool:
        return bool(self.logprobs)

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Common, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions."""

    prompt: str | list[str | Token | list[Token]]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: Count | None = None
    echo: bool | None = None
    suffix: str | None = None

    def prompts(self) -> list[str | list[int]]:
        """Texts or token ids, one for each prompt. Raises ApiError."""
        given = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        ids = [item for item in given if isinstance(item, int)]
        if not ids:
            return [item for item in given if not isinstance(item, int)]
        if len(ids) < len(given):
            raise ApiError(400, "token ids stand beside other prompts: send a list of one kind", param="prompt")
        return [ids]

    def unsupported(self) -> list[str]:
        names = [name for name in ("echo", "suffix") if getattr(self, name)]
        names += ["best_of"] if self.best_of not in (None, self.n or 1) else []
        # The engine gives the log probability of the token it drew, and of no other.
        names += ["logprobs"] if self.logprobs else []
        return names + _unsupported(self)

    @property
    def log_probs(self) -> bool:
        return self.logprobs is not None

    @property
    def limit(self) -> int:
        return self.max_tokens or 16


AnyRequest = ChatRequest | CompletionRequest
T = TypeVar("T", bound=AnyRequest)


def decoded(body: bytes, kind: type[T]) -> T:
    """The request in `body`. Raises ApiError that names the field."""
    try:
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise ApiError(400, str(error), param=_field(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON in UTF-8: {error}", code="invalid_json") from None
    if unsupported := request.unsupported():
        what = f"{unsupported[0]} is not supported by this server as it is given: leave it out"
        raise ApiError(400, what, param=unsupported[0], code="unsupported_parameter")
    return request


def _unsupported(request: Common) -> list[str]:
    return ["logit_bias"] if request.logit_bias else []


def _field(message: str) -> str | None:
    """msgspec ends its messages with the path, and names a field that is unknown or missing before it."""
    named = re.search(r"field `(\w+)`", message)
    path = re.search(r"- at `\$\.?(.*)`$", message)
    return ".".join(part for part in (path and path[1], named and named[1]) if part) or None
