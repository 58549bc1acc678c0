"""Incremental text: all pieces together are the whole, no piece has half a character, no stop string comes out."""

# pyright: basic
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from frontend.detokenizer import Detokenizer, StopStrings
from frontend.tokenizer import REPLACEMENT, ModelTokenizer

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters=REPLACEMENT), max_size=40)


@pytest.fixture(scope="module")
def tokenizer(engine: Path) -> ModelTokenizer:
    return ModelTokenizer(engine / "tokenizer")


@given(text=TEXTS, sizes=st.lists(st.integers(1, 4), min_size=1))
def test_text_arrives_whole_however_its_tokens_are_dealt(tokenizer, text, sizes):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assume(tokenizer.decode(ids) == text)  # the vocabulary lacks a few bytes
    detokenizer, pieces, at = Detokenizer(tokenizer.decode), [], 0
    while at < len(ids):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(detokenizer.push(ids[at : at + size]))
        at += size

    assert "".join(pieces) == text


@given(ids=st.lists(st.integers(0, 49151), max_size=30))
def test_tokens_that_are_no_text_come_out_as_from_the_tokenizer(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer.decode)
    text = "".join([detokenizer.push([token]) for token in ids])

    assert text == tokenizer.decode(ids).rstrip(REPLACEMENT)


@given(
    pieces=st.lists(st.text("ab\n", max_size=4), max_size=12),
    strings=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_end_the_text_wherever_pieces_border(pieces, strings):
    stops, sent = StopStrings(strings), ""
    for piece in pieces:
        sent += stops.push(piece)
        if stops.found:
            break
    else:
        sent += stops.flush()
    text = "".join(pieces)
    ends = [text.find(string) for string in strings if string in text]

    assert sent == (text[: min(ends)] if ends else text)
    assert stops.found == bool(ends)


def test_only_what_may_become_a_stop_string_is_held_back():
    stops = StopStrings(["<end>"])

    assert [stops.push(piece) for piece in ("a<", "b", "<e", "nd", ">c")] == ["a", "<b", "", "", ""]
    assert stops.found
