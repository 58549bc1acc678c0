"""Changes settings of a stack file and nothing else of its text: comments, order and layout stay as they are."""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import ReusedAnchorWarning

from planner.errors import shown
from runtime.errors import Refusal

Place = tuple[str | int, ...]
"""Keys and list positions from the document's top: ("config", "tritonfleet:models", 0, "pool")."""

REMOVE = object()
"""The value of a key that is to go."""


def edited(text: str, changes: Mapping[Place, object]) -> str:
    """The text with values set, added or removed, and with an item more where the place is a list's length.

    Raises Refusal where that cannot be done without touching more (YAML anchors, one value for several keys).
    """
    expected = _loaded(text)
    for place, value in changes.items():
        text = _changed(text, place, value)
        _apply(expected, place, value)
        # Whatever the layout was: what is written means what was meant, or it is not written.
        if not _means(text, expected):
            where = ".".join(map(str, place[1:]))
            raise Refusal(
                f"{where} cannot be set without changing other settings", "nothing was written", f"set {where} by hand"
            )
    return text


def write_atomically(path: Path, text: str) -> None:
    """Replace the file's content whole or not at all; its permissions stay."""
    target = path.resolve()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(target, name)
        os.replace(name, target)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise Refusal(f"{path}: {error.strerror}", "nothing was written", "make the file writable") from None
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _loaded(text: str) -> Any:
    with warnings.catch_warnings(action="ignore", category=ReusedAnchorWarning):
        return YAML(typ="safe", pure=True).load(text)  # pyright: ignore[reportUnknownMemberType]


def _means(text: str, expected: object) -> bool:
    try:
        return _loaded(text) == expected
    except Exception:  # ruamel raises many types for text that is no YAML
        return False


def _apply(document: Any, place: Place, value: object) -> None:
    *parents, last = place
    for key in parents:
        document = document[key]
    if value is REMOVE:
        document.pop(last, None)
    elif last == len(document):
        document.append(value)
    else:
        document[last] = value


def _changed(text: str, place: Place, value: object) -> str:
    # Any: ruamel's nodes carry no types.
    node: Any = YAML(typ="safe", pure=True).compose(text)  # pyright: ignore[reportUnknownMemberType]
    *parents, last = place
    for key in parents:
        node = _child(node, key)
        if node is None:
            raise Refusal(f"there is no {key} to change", "nothing was written", f"add {key} by hand")
    if isinstance(last, int):
        return _with_item(text, node, value)
    pair = next(((key, child) for key, child in node.value if key.value == last), None)
    if value is REMOVE:
        return text if pair is None else _without_pair(text, node, *pair)
    if pair is None:
        return _with_pair(text, node, last, value)
    return _with_value(text, *pair, value)


def _child(node: Any, key: str | int) -> Any:
    if isinstance(key, int):
        return node.value[key] if key < len(node.value) else None
    return next((child for name, child in node.value if name.value == key), None)


def _with_value(text: str, key: Any, old: Any, value: object) -> str:
    begin, end = key.end_mark.index, _end(old)
    inner = text[begin:end]
    # Lines of comment inside a list that gives way to another stay, above the key.
    comments = [line.strip() for line in inner.splitlines() if line.strip().startswith("#")]
    line_start = text.rfind("\n", 0, key.start_mark.index) + 1
    before = text[line_start : key.start_mark.index]
    kept = "".join(f"{' ' * key.start_mark.column}{comment}{_newline(text)}" for comment in comments)
    if kept and before.strip() in ("", "-"):
        dash = before if before.strip() else ""
        kept = dash + kept.lstrip() if dash else kept
        lead = kept + (" " * key.start_mark.column if dash else before)
        text = text[:line_start] + lead + text[key.start_mark.index :]
        begin, end = begin + len(lead) - len(before), end + len(lead) - len(before)
    return f"{text[:begin]}: {_flow(value)}{text[end:]}"


def _with_pair(text: str, mapping: Any, key: str, value: object) -> str:
    pair = f"{_flow(key)}: {_flow(value)}"
    if mapping.flow_style:
        place = mapping.end_mark.index - 1
        return f"{text[:place].rstrip()}{', ' if mapping.value else ''}{pair}{text[place:]}"
    column = mapping.value[0][0].start_mark.column
    return _after_line(text, _end(mapping), f"{' ' * column}{pair}")


def _without_pair(text: str, mapping: Any, key: Any, value: Any) -> str:
    begin, end = key.start_mark.index, _end(value)
    if mapping.flow_style:
        after = text[end:].lstrip()
        if after.startswith(","):
            return text[:begin] + after[1:].lstrip()
        return text[:begin].rstrip().removesuffix(",").rstrip() + text[end:]
    line_start = text.rfind("\n", 0, begin) + 1
    if text[line_start:begin].strip():
        # The first key after the dash of a list's item: the next one takes its place.
        following = next((name for name, _ in mapping.value if name.start_mark.index > begin), None)
        return text if following is None else text[:begin] + text[following.start_mark.index :]
    line_end = text.find("\n", end)
    return text[:line_start] + (text[line_end + 1 :] if line_end >= 0 else "")


def _with_item(text: str, sequence: Any, value: object) -> str:
    if sequence.flow_style or not sequence.value or not isinstance(value, Mapping):
        raise Refusal("the list is written on one line", "nothing was written", "write one item per line, with `-`")
    column = sequence.start_mark.column
    pairs: Sequence[tuple[str, object]] = list(value.items())  # pyright: ignore[reportUnknownArgumentType]
    lines = [f"{name}: {_flow(item)}" for name, item in pairs]
    indent = f"{_newline(text)}{' ' * (column + 2)}"
    return _after_line(text, _end(sequence), f"{' ' * column}- {indent.join(lines)}")


def _after_line(text: str, place: int, line: str) -> str:
    """The text with a line after the one that `place` is in, whose comment stays where it is."""
    newline, end = _newline(text), text.find("\n", place)
    if end < 0:
        return f"{text}{newline}{line}{newline}"
    return f"{text[: end + 1]}{line}{newline}{text[end + 1 :]}"


def _end(node: Any) -> int:
    """Where a value ends. Of a block, ruamel's own mark is where the next one begins, after what comments follow."""
    if isinstance(node.value, str) or node.flow_style or not node.value:
        return node.end_mark.index
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)  # pyright: ignore[reportUnknownArgumentType]


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _flow(value: object) -> str:
    """A value on one line, plain where YAML reads it back the same."""
    if isinstance(value, Mapping):
        pairs: Sequence[tuple[object, object]] = list(value.items())  # pyright: ignore[reportUnknownArgumentType]
        return "{" + ", ".join(f"{_flow(name)}: {_flow(item)}" for name, item in pairs) + "}"
    if isinstance(value, list | tuple):
        items: Sequence[object] = list(value)  # pyright: ignore[reportUnknownArgumentType]
        return "[" + ", ".join(map(_flow, items)) + "]"
    if isinstance(value, bool | int | float) or value is None:
        return json.dumps(value)
    text = str(value)
    plain = text.replace("-", "").replace(".", "").replace("_", "").replace(":", "")
    if plain.isalnum() and plain.isascii() and not text.endswith(":"):
        try:
            if _loaded(text) == text:
                return text
        except Exception as error:  # ruamel raises many types
            raise Refusal(f"{shown(text)} cannot be written", "nothing was written", "set it by hand") from error
    return json.dumps(text)
