"""The model's tokenizer and chat template, from the tokenizer folder of its engine."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from frontend.errors import ApiError, Refusal

REPLACEMENT = "\ufffd"
CACHED_TOKENS = 1 << 16


class ModelTokenizer:
    """Reads tokenizer.json and tokenizer_config.json; raises Refusal."""

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            self._template = _compiled(config.get("chat_template"))
        except Exception as error:
            # tokenizers raises plain Exception for a missing, unreadable or malformed file.
            raise Refusal(
                f"the tokenizer in {folder} cannot be used: {error}",
                "prompts could not become the tokens that the model was trained on",
                "give the `tokenizer` folder of the engine that Triton serves",
            ) from None
        # A tokenizer.json saved during training can carry these; they would cut or lengthen prompts in silence.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.largest_id = max(vocabulary.values())
        self.longest_token = max(len(token.encode()) for token in vocabulary)
        self._special = {name: _text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
        bos, end, pad = (self._tokenizer.token_to_id(text) if text else None for text in self._special.values())
        if end is None:
            raise Refusal(
                f"tokenizer_config.json in {folder} names no eos_token that tokenizer.json has",
                "no answer would end before max_tokens",
                "build the engine again from a checkpoint that has the tokenizer files published with its weights",
            )
        self._bos_id, self.end_id, self.pad_id = bos, end, end if pad is None else pad
        self._adds_bos = bos is not None and self._tokenizer.encode("").ids[:1] == [bos]
        # Every token of an answer is decoded with the one before it, and then by itself.
        self._one = lru_cache(CACHED_TOKENS)(self._decoded)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; special tokens written in the text are parsed as such. A leading BOS is never doubled."""
        ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids[1:] if self._bos_id is not None and ids[:2] == [self._bos_id] * 2 else ids

    def without_bos(self, prompt: str) -> str:
        """The prompt for an engine that tokenises it itself: a BOS that the tokenizer adds would stand there twice."""
        return prompt.removeprefix(self._special["bos_token"] or "") if self._adds_bos else prompt

    def decode(self, ids: list[int]) -> str:
        """Text; bytes that are not (yet) a whole character come out as U+FFFD."""
        return self._one(ids[0]) if len(ids) == 1 else self._decoded(*ids)

    def _decoded(self, *ids: int) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def token(self, token_id: int) -> str:
        """One token as text by itself; U+FFFD where it is no whole character."""
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def chat_prompt(self, messages: list[dict[str, Any]]) -> str:
        """The messages in the model's chat template, which is untrusted input and runs sandboxed. Raises ApiError."""
        if self._template is None:
            raise ApiError(400, "the model has no chat template: use /v1/completions", param="messages")
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._special)
        except (TemplateError, TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
            raise ApiError(400, f"the chat template refuses these messages: {error}", param="messages") from None


def _compiled(template: Any) -> Template | None:
    # transformers writes several templates as a list of {name, template}.
    if isinstance(template, list):
        named = {item["name"]: item["template"] for item in cast(list[dict[str, str]], template)}
        template = named.get("default")
    if not template:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    return environment.from_string(template, globals={"raise_exception": _raise_exception})


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _text(token: Any) -> str | None:
    # transformers writes a special token as its text, or as an object with its text in `content`.
    return cast(dict[str, Any], token).get("content") if isinstance(token, dict) else token
