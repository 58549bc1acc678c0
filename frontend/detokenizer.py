"""Text from tokens as they come: never half a character, never a stop string nor a part of one."""

from collections.abc import Callable

from frontend.tokenizer import REPLACEMENT


class Detokenizer:
    """One answer. All pieces together are the text of all tokens, less a character that the end cut in two.

    A byte-level token may hold part of a character, or the end of one and the start of the next, so text that could
    still change is held back. A token's text may also depend on the token before it (SentencePiece drops the space of
    a first word), so tokens are decoded together with the last ones already sent.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []  # begins at a character
        self._settled = 0  # tokens of the window that are sent in full
        self._sent = 0  # characters of the window that are sent

    def push(self, ids: list[int]) -> str:
        """The text that `ids` complete."""
        self._window += ids
        text = self._decode(self._window)
        stable = text.rstrip(REPLACEMENT)
        piece = stable[self._sent :]
        self._sent = max(self._sent, len(stable))
        if piece and len(stable) == len(text):
            self._window = self._window[self._settled :]
            self._settled = len(self._window)
            self._sent = len(self._decode(self._window))
        return piece


class StopStrings:
    """Ends streamed text before the first stop string; what could yet become one is held back."""

    def __init__(self, strings: list[str]) -> None:
        self._strings = strings
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that may be sent now."""
        text = self._held + piece
        starts = [start for start in (text.find(string) for string in self._strings) if start >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        hold = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """The length of the longest end of `text` that begins `string`."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
