"""Answers in OpenAI's two forms, whole and as server-sent events."""

import secrets
import time
from typing import Any, NamedTuple

import msgspec

DONE = b"data: [DONE]\n\n"
encode = msgspec.json.encode


class LogProb(NamedTuple):
    token: str
    log_prob: float


class Piece(NamedTuple):
    """Text that may be sent, the tokens that it ends with, and at the end why the answer ends there."""

    text: str
    log_probs: list[LogProb]
    finish: str | None


class Usage(NamedTuple):
    prompt_tokens: int
    completion_tokens: int

    def document(self) -> dict[str, int]:
        return {**self._asdict(), "total_tokens": sum(self)}


class Format:
    """What the two forms share. `log_probs`: choices carry them; `usage`: a stream ends with the token counts."""

    prefix, whole, part = "", "", ""

    def __init__(self, model: str, log_probs: bool, usage: bool) -> None:
        self._log_probs, self._usage = log_probs, usage
        base = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._base = base
        # Of almost every event only the text differs, so the rest is made once.
        head = encode({"object": self.part, **base, "choices": []})[:-2]
        self._head = b"data: " + head
        self._tail = (b'],"usage":null}\n\n') if usage else b"]}\n\n"

    def opening(self, index: int) -> bytes:
        """The event before a choice's first."""
        del index
        return b""

    def event(self, index: int, piece: Piece) -> bytes:
        """One event of a choice."""
        if piece.finish is None and not self._log_probs:
            return b"%b%b%b" % (self._head, self._text(index, encode(piece.text)), self._tail)
        choice = {"index": index, **self._delta(piece.text), "logprobs": None, "finish_reason": piece.finish}
        if self._log_probs:
            choice["logprobs"] = self._log_prob_document(piece.log_probs)
        return self._head + encode(choice) + self._tail

    def closing(self, usage: Usage) -> bytes:
        """What follows the last choice's end."""
        if not self._usage:
            return DONE
        return self._head + b'],"usage":' + encode(usage.document()) + b"}\n\n" + DONE

    def body(self, choices: list[list[Piece]], usage: Usage) -> bytes:
        """The whole answer."""
        documents: list[dict[str, Any]] = []
        for index, pieces in enumerate(choices):
            log_probs = [log_prob for piece in pieces for log_prob in piece.log_probs]
            choice = {"index": index, **self._content("".join(piece.text for piece in pieces))}
            choice["logprobs"] = self._log_prob_document(log_probs) if self._log_probs else None
            documents.append({**choice, "finish_reason": pieces[-1].finish})
        return encode({"object": self.whole, **self._base, "choices": documents, "usage": usage.document()})

    def _text(self, index: int, text: bytes) -> bytes:
        raise NotImplementedError

    def _delta(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _content(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _log_prob_document(self, log_probs: list[LogProb]) -> dict[str, Any]:
        raise NotImplementedError


class ChatFormat(Format):
    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> bytes:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._head + encode(choice) + self._tail

    def _text(self, index: int, text: bytes) -> bytes:
        return b'{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}' % (index, text)

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _log_prob_document(self, log_probs: list[LogProb]) -> dict[str, Any]:
        return {
            "content": [
                {"token": token, "logprob": value, "bytes": list(token.encode()), "top_logprobs": []}
                for token, value in log_probs
            ],
            "refusal": None,
        }


class TextFormat(Format):
    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def _text(self, index: int, text: bytes) -> bytes:
        return b'{"index":%d,"text":%b,"logprobs":null,"finish_reason":null}' % (index, text)

    def _delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _log_prob_document(self, log_probs: list[LogProb]) -> dict[str, Any]:
        return {
            "tokens": [token for token, _ in log_probs],
            "token_logprobs": [value for _, value in log_probs],
            "top_logprobs": None,
            "text_offset": [],
        }
