"""What a resource may be given, from the type metadata of its Python SDK."""

from collections import abc
from collections.abc import Iterator, Mapping
from typing import Any, cast, get_args, get_origin

from pulumi import _types  # pyright: ignore[reportPrivateUsage] - the only table of what a class may be given

from fleet.diff.outputs import ACCOUNT, SUBSCRIPTION, class_path, classes_of, computed
from tests.engine.simulated.wire import SIGNATURE

__all__ = ("ACCOUNT", "SUBSCRIPTION", "class_path", "classes_of", "computed", "unknown_properties")


def unknown_properties(type_: str, inputs: Mapping[str, Any]) -> Iterator[str]:
    """Paths of the inputs that the SDK's class for `type_` does not declare, at any depth."""
    args = classes_of(type_)[1]
    if args is not None:
        yield from _unknown(args, inputs, "")


def _unknown(kind: Any, value: Any, path: str) -> Iterator[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(value, list):
        for index, item in enumerate(cast(list[Any], value)):
            yield from _unknown(arguments[0] if origin is abc.Sequence else None, item, f"{path}[{index}]")
    elif isinstance(value, dict):
        # `Input[X]` is a union of X, awaitables and outputs of X.
        declared = next((inner for inner in (kind, *arguments) if _types.is_input_type(inner)), None)
        known = _types.input_type_types(declared) if declared and origin is not abc.Mapping else None
        for key, item in cast(dict[str, Any], value).items():
            inner = f"{path}.{key}" if path else key
            if known is not None and key not in known and key != SIGNATURE:
                yield inner
            yield from _unknown(
                known.get(key) if known else arguments[1] if origin is abc.Mapping else None, item, inner
            )
