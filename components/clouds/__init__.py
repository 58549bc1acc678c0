"""The clouds. Each is imported only by the stacks that name it: no stack pays for another cloud's SDK."""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from components.clouds.base import Cloud

_CLOUDS: Final = {
    "aws": ("components.clouds.aws.cloud", "Aws"),
    "azure": ("components.clouds.azure.cloud", "Azure"),
    "gcp": ("components.clouds.gcp.cloud", "Gcp"),
    "existing": ("components.clouds.existing.cloud", "Existing"),
}


def cloud_class(name: str) -> "type[Cloud]":
    """The class that makes a cloud's cluster. Raises KeyError for a cloud that the planner does not know either."""
    module, noun = _CLOUDS[name]
    return getattr(import_module(module), noun)
