"""Values as Pulumi's provider protocol carries them."""

from typing import Any, cast

from google.protobuf import json_format, struct_pb2

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET = "1b47061264138c4ac30d75fd1eb44270"
REFERENCE = "5cf8f73096256a8f31e491e813e4eb8e"


def plain(struct: struct_pb2.Struct) -> dict[str, Any]:
    """The struct as Python values, secrets unwrapped; unknown values stay Pulumi's own text for them."""
    return _unwrapped(json_format.MessageToDict(struct))


def _unwrapped(value: Any) -> Any:
    if isinstance(value, dict):
        fields = cast(dict[str, Any], value)
        if fields.get(SIGNATURE) == SECRET:
            return _unwrapped(fields.get("value"))
        return {key: _unwrapped(item) for key, item in fields.items()}
    return [_unwrapped(item) for item in cast(list[Any], value)] if isinstance(value, list) else value


def type_of(urn: str) -> str:
    return urn.split("::")[2].rpartition("$")[2]
