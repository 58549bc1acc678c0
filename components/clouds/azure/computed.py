"""What Azure says within objects of which the program says a part."""

from collections.abc import Callable
from typing import TypeVar

import pulumi

T = TypeVar("T")


def computed(
    resource: pulumi.CustomResource, within: pulumi.Output[T], pick: Callable[[T], str | None]
) -> pulumi.Output[str]:
    """A text that `pick` finds in an output of the resource.

    A preview knows the given part of the object, and takes the rest for missing. It does not know the id, and so waits.
    """
    return resource.id.apply(lambda _: within.apply(lambda known: str(pick(known))))
