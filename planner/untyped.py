"""Narrowing of what YAML and JSON give: the type checker keeps no element types of `isinstance(x, dict)`."""

from typing import Any, cast


def as_mapping(value: Any) -> dict[Any, Any]:
    """`value` when it is a mapping, else an empty one."""
    return cast("dict[Any, Any]", value) if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """`value` when it is a list, else an empty one."""
    return cast("list[Any]", value) if isinstance(value, list) else []
