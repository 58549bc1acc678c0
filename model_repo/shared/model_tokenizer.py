"""The model's tokenizer, from the files in the engine directory. Copied beside every Triton model that needs it."""

import json
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"


class TokenizerError(Exception):
    """A tokenizer that cannot serve this engine; the message says what, the consequence and the fix, in one line."""


class ModelTokenizer:
    """Reads `<tokenizer_dir>/tokenizer.json` and tokenizer_config.json; raises TokenizerError."""

    def __init__(self, tokenizer_dir: str, engine_dir: str) -> None:
        path, engine_config = Path(tokenizer_dir) / "tokenizer.json", Path(engine_dir) / "config.json"
        engine = _read_json(engine_config)["pretrained_config"]
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            # tokenizers raises plain Exception for a missing, unreadable or malformed file.
            raise _refusal(f"{path} cannot be read: {error}") from None
        # A tokenizer.json saved during training can carry these; they would cut or lengthen prompts in silence.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        largest, vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()), engine["vocab_size"]
        if largest >= vocab_size:
            raise _refusal(f"{path} has token ids up to {largest}, the engine in {engine_dir} only {vocab_size} tokens")
        special = _read_json(path.with_name("tokenizer_config.json"))
        self._bos_id = self._id(special.get("bos_token"))
        end_id = self._id(special.get("eos_token"))
        end_id = engine.get("eos_token_id") if end_id is None else end_id
        if not isinstance(end_id, int):
            raise _refusal(f"{path.with_name('tokenizer_config.json')} names no eos_token that {path} has")
        self.end_id = end_id
        pad_id = self._id(special.get("pad_token"))
        self.pad_id = end_id if pad_id is None else pad_id

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; special tokens written in the text are parsed as such. A leading BOS is never doubled."""
        ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        if add_special_tokens and self._bos_id is not None and ids[:2] == [self._bos_id] * 2:
            return ids[1:]
        return ids

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text; bytes that are not (yet) a whole character come out as U+FFFD."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def _id(self, token: Any) -> int | None:
        # transformers writes a special token as its text, or as an object with its text in `content`.
        text: Any = cast(dict[str, Any], token).get("content") if isinstance(token, dict) else token
        return self._tokenizer.token_to_id(text) if isinstance(text, str) else None


def parameters_of(args: dict[str, str]) -> dict[str, str]:
    """The string parameters of config.pbtxt, from what Triton gives to `initialize`."""
    return {name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refusal(f"{path} cannot be read: {error}") from None


def _refusal(what: str) -> TokenizerError:
    return TokenizerError(
        f"{what}; prompts would become other tokens than the model was trained on, so it is not served; "
        "build the engine again from a checkpoint that has the tokenizer files published with its weights"
    )
