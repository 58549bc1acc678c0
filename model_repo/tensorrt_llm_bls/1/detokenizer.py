"""Text from tokens as they come: never half a character, and no further than a stop word."""

from model_tokenizer import REPLACEMENT, ModelTokenizer


class Detokenizer:
    """One answer. All pieces together are always `whole(all ids)`.

    A byte-level token may hold part of a character, or the end of one and the start of the next, so text that could
    still change is held back. A token's text may also depend on the token before it (SentencePiece drops the space of
    a first word), so tokens are decoded together with the last ones already sent.
    """

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        self.ids: list[int] = []
        self._start = 0  # first token of the window that is decoded; begins at a character
        self._settled = 0  # tokens before this one are sent in full
        self._sent = 0  # characters of the window that are sent

    def push(self, ids: list[int]) -> str:
        """The text that `ids` complete."""
        self.ids += ids
        text = self._decode(self._start, len(self.ids))
        stable = text.rstrip(REPLACEMENT)
        piece = stable[self._sent :]
        self._sent = max(self._sent, len(stable))
        if len(stable) == len(text) and piece:
            self._start, self._settled = self._settled, len(self.ids)
            self._sent = len(self._decode(self._start, self._settled))
        return piece

    def _decode(self, start: int, end: int) -> str:
        return self._tokenizer.decode(self.ids[start:end], skip_special_tokens=True)


class StopWords:
    """Finds stop words in streamed text: the engine finds them by tokens, and text has other tokens in other places."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._tail = ""
        self.found = False

    def cut(self, piece: str) -> str:
        """`piece`, ended after the first stop word that it completes."""
        text = self._tail + piece
        ends = [text.find(word) + len(word) for word in self._words if word in text]
        if ends:
            self.found = True
            return text[len(self._tail) : min(ends)]
        keep = max((len(word) for word in self._words), default=1) - 1
        self._tail = text[max(0, len(text) - keep) :]
        return piece


def whole(tokenizer: ModelTokenizer, ids: list[int]) -> str:
    """The text of a finished answer. A character that max_tokens cut in two is left out."""
    return tokenizer.decode(ids, skip_special_tokens=True).rstrip(REPLACEMENT)
