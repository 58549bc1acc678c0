"""What a policy pack's configuration may hold, one class for each rule that has any."""

from typing import Annotated

from pydantic import Field

from planner.strict import Strict

Patterns = Annotated[tuple[str, ...], Field(strict=False)]


class NoSettings(Strict):
    """Of rules that are the same for everybody."""


class Production(Strict):
    """Which stacks are in production, by their names: a stack file has no word for it."""

    production: Patterns = Field(default=("prod*", "*-prod*"), description="Names of stacks in production.")


class Images(Production):
    """What may run by its tag."""

    by_tag: Patterns = Field(default=(), description="Images that may run by their tag even in production.")


class Data(Production):
    """Whose data may go."""

    disposable: Patterns = Field(
        default=("dev*", "*-dev*", "test*", "*-test*"),
        description="Names of stacks whose data may be lost with them; none of them in production.",
    )


class Ceiling(Strict):
    """What the stacks of a name may cost."""

    stacks: str = Field(description="Names of stacks, as a pattern.")
    usd_per_month: float = Field(ge=0, description="Most USD in 730 hours.")


class Ceilings(Strict):
    """The first that fits a stack's name counts."""

    ceilings: Annotated[tuple[Ceiling, ...], Field(strict=False)] = Field(
        default=(Ceiling(stacks="*", usd_per_month=250_000),),
        description="The first that fits the stack's name counts.",
    )
