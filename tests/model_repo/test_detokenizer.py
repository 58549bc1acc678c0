"""Text from tokens, without Triton."""

# pyright: basic
from itertools import pairwise

import pytest
from detokenizer import Detokenizer, StopWords, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from model_tokenizer import ModelTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.model_repo.conftest import VOCAB_SIZE, Engine

WORDS = st.sampled_from(["h", "he", " ", " 🙂", "é", "漢", "👩‍👩‍👧", "<|im_end|>", "\n", "�"])


@pytest.fixture(scope="module")
def tokenizer(engine_dir) -> ModelTokenizer:
    return ModelTokenizer(str(engine_dir / "tokenizer"), str(engine_dir))


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_stream_of_any_tokens_adds_up_to_the_whole(tokenizer, data):
    """Any ids, also such as make no text: what is sent never changes later, and nothing is lost or doubled."""
    ids = data.draw(st.lists(st.integers(0, 260), max_size=40))
    answer, sent, rest = Detokenizer(tokenizer), "", list(ids)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        sent += answer.push(rest[:size])
        rest = rest[size:]
    assert sent == whole(tokenizer, ids)


@settings(deadline=None, max_examples=200)
@given(words=st.lists(WORDS, max_size=12))
def test_real_text_has_no_replacement_character_in_any_piece(tokenizer, words):
    text = "".join(words)
    answer = Detokenizer(tokenizer)
    pieces = [answer.push([token]) for token in tokenizer.encode(text, add_special_tokens=False)]
    expected = text.replace("<|im_end|>", "")
    if "�" not in text:
        assert "".join(pieces) == expected
        assert not any("�" in piece for piece in pieces)


def test_spaces_of_a_sentencepiece_tokenizer_survive(tmp_path):
    """Such a decoder drops the space before a first word: decoded one by one, tokens would lose all their spaces."""
    vocabulary = {"<unk>": 0, "</s>": 1, "▁the": 2, "▁cat": 3, "s": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    engine = Engine(tmp_path / "engine", special={"eos_token": "</s>"}).create(path)
    answer = Detokenizer(ModelTokenizer(str(engine / "tokenizer"), str(engine)))
    assert [answer.push([token]) for token in (2, 3, 4, 3)] == ["the", " cat", "s", " cat"]


@given(
    text=st.text("ab", max_size=30),
    cuts=st.lists(st.integers(0, 30)),
    words=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_stop_word_is_found_however_the_text_is_cut(text, cuts, words):
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    stops, sent = StopWords(words), ""
    for start, end in pairwise(edges):
        sent += stops.cut(text[start:end])
        if stops.found:
            break
    found = [text.find(word) + len(word) for word in words if word in text]
    assert stops.found == bool(found)
    # In one piece the first end wins; in many, the one whose end comes first.
    assert sent == (text[: min(found)] if found else text)


def test_saved_truncation_and_padding_do_not_touch_prompts(tokenizer):
    ids = tokenizer.encode("h" * 50, add_special_tokens=True)
    assert len(ids) == 51
    assert max(ids) < VOCAB_SIZE
