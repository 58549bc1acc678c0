"""What planning refuses, said so that the reader can act on it."""

import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One refusal. `key` is the path in the stack file (`models[0].tensor_parallel`) or the file itself."""

    key: str
    what: str
    consequence: str
    fix: str

    def __str__(self) -> str:
        return f"{self.key}: {self.what}\n  consequence: {self.consequence}\n  fix: {self.fix}"


class PlanError(Exception):
    """Every problem found, not only the first; `problems` is never empty."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A fix naming the closest known word, or `otherwise` when none is close."""
    close = closest(word, known)
    return f"did you mean {close}?" if close else otherwise


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that the given one is a slip of, "" where none is close."""
    # difflib is quadratic in the word's length; a name this long was never a typing slip.
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6) if len(word) <= 100 else []
    return close[0] if close else ""


def shown(value: object) -> str:
    """A short, printable repr of anything a file can hold: aliased, deep, huge or not encodable."""
    # repr() of an integer beyond sys.get_int_max_str_digits() raises.
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxlevel, short.maxdict, short.maxlist = 2, 3, 3
    try:
        text = short.repr(value)
    except ValueError:
        return f"a {type(value).__name__}"
    return text.encode("ascii", "backslashreplace").decode()
