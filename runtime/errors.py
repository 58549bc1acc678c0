"""The one exception a user meets from `runtime`: what is wrong, what it would have cost, how to fix it."""


class Refusal(Exception):
    """A request this program will not carry out. `str()` prints all three parts; nothing was left half-done."""

    def __init__(self, what: str, consequence: str, fix: str) -> None:
        super().__init__(what, consequence, fix)
        self.what = what
        self.consequence = consequence
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\n  consequence: {self.consequence}\n  fix: {self.fix}"
