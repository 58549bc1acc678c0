"""What a cloud would add to a resource, as stand-ins, from the type metadata of its Python SDK.

render.py loads this file by its path; it imports nothing of the program.
"""

import ast
import functools
import importlib
import importlib.util
import json
from collections import abc
from collections.abc import Mapping
from enum import Enum, EnumType
from pathlib import Path
from typing import Any, cast, get_args, get_origin

from pulumi import _types  # pyright: ignore[reportPrivateUsage] - the only table of what a class may be given

ACCOUNT = "123456789012"
SUBSCRIPTION = "01234567-89ab-cdef-0123-456789abcdef"


def computed(type_: str, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the cloud adds: a value of its declared type for each output that is not among the inputs, and texts to
    objects that are."""
    resource = classes_of(type_)[0]
    outputs = _types.resource_types(resource) if resource else {}
    service = type_.partition(":")[2].partition("/")[0]
    added = {key: _example(kind, name, key) for key, kind in outputs.items() if key not in inputs}
    if not type_.startswith("kubernetes:"):
        added |= {key: _added(kind, name, key, inputs[key]) for key, kind in outputs.items() if key in inputs}
    if type_.startswith("aws:") and "arn" in added:
        # Programs take ARNs apart.
        added["arn"] = f"arn:aws:{service}::{ACCOUNT}:{name}"
    return {key: value for key, value in added.items() if value is not None}


def class_path(type_: str) -> tuple[str, str]:
    """Where an SDK has the class of a resource; empty for objects of custom resource definitions."""
    package = type_.partition(":")[0]
    if type_.endswith(":Provider"):
        return f"pulumi_{package.replace('-', '_')}", "Provider"
    return _tokens(package).get(type_, ("", ""))


@functools.cache
def classes_of(type_: str) -> tuple[Any, Any]:
    """The SDK's class of a resource and of its arguments; none for objects of custom resource definitions."""
    module, name = class_path(type_)
    if not module:
        return None, None
    loaded = importlib.import_module(module)
    return getattr(loaded, name), getattr(loaded, f"{name}InitArgs", None) or getattr(loaded, f"{name}Args")


@functools.cache
def _tokens(package: str) -> dict[str, tuple[str, str]]:
    """Type token -> module and class, from the table that the SDK's first module registers."""
    found = importlib.util.find_spec(f"pulumi_{package.replace('-', '_')}")
    if found is None or found.origin is None:
        return {}  # a component of the program itself
    for node in ast.walk(ast.parse(Path(found.origin).read_text())):
        if isinstance(node, ast.keyword) and node.arg == "resource_modules" and isinstance(node.value, ast.Constant):
            modules = json.loads(str(node.value.value))
            return {token: (entry["fqn"], name) for entry in modules for token, name in entry["classes"].items()}
    raise LookupError(package)


def _added(kind: Any, name: str, key: str, given: Any) -> Any:
    """What the cloud adds to a value that it was given: texts in objects, and in objects of lists."""
    if isinstance(given, list):
        element = next(iter(get_args(kind)), None)
        return [_added(element, name, key, item) for item in cast(list[Any], given)]
    if not (isinstance(given, dict) and _types.is_output_type(kind)):
        return None
    fields = cast(dict[str, Any], given)
    return {
        field: _added(inner, name, field, fields[field]) if field in fields else _example(inner, name, field)
        for field, inner in _types.output_type_types(kind).items()
        if field in fields or inner is str or get_args(inner) == (str,)
    }


def _example(kind: Any, name: str, key: str, depth: int = 0) -> Any:
    if kind is str:
        return f"{name}-{key}"
    if kind in (int, float):
        return 1
    if kind is bool:
        return False
    if get_origin(kind) is abc.Sequence:
        item = _example(get_args(kind)[0], name, key, depth)
        return None if item is None else [item]
    if isinstance(kind, EnumType):
        return next(iter(cast(type[Enum], kind))).value
    # Some of Azure's classes hold themselves.
    if _types.is_output_type(kind) and depth < _DEPTH:
        fields = _types.output_type_types(kind).items()
        inner = {field: _example(type_, name, field, depth + 1) for field, type_ in fields}
        return {field: value for field, value in inner.items() if value is not None}
    # Nobody can say the keys of a map.
    return None


_DEPTH = 4
"""Objects within objects, of which examples are made."""
