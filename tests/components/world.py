"""Runs a program as a stack, and finds what it registered: properties with their secrets unwrapped, by type and name.

`run(program)` answers as after an update: every output that a resource's class declares has a value. With
`preview=True` it answers as a preview does: inputs are known, everything that a cloud computes is not.
"""

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, cast, get_args, get_origin

import pulumi
from pulumi import _types  # pyright: ignore[reportPrivateUsage] - the only table of a class's outputs

from fleet import recorder

UNKNOWN = "<unknown until update>"
"""Stands for a value that a preview does not know."""

ACCOUNT = "123456789012"

SUBSCRIPTION = "01234567-89ab-cdef-0123-456789abcdef"


KUBECONFIG = """apiVersion: v1
kind: Config
users:
- name: user
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      command: kubelogin
      args: [get-token, --login, devicecode, --server-id, 6dae42f8-4368-4678-94ff-3960e28e3630]
"""

ANSWERS = {
    "azure-native:containerservice:listManagedClusterUserCredentials": {
        "kubeconfigs": [{"name": "clusterUser", "value": base64.b64encode(KUBECONFIG.encode()).decode()}]
    }
}
"""What programs may ask a cloud after an update; a preview may ask nothing."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """One registration, every resource by URN as the real engine makes it. `depends_on` includes what inputs depend on;
    a component has `providers` by package, anything else one `provider`."""

    urn: str
    type: str
    name: str
    inputs: dict[str, Any]
    secrets: frozenset[str]
    parent: str
    provider: str | None
    providers: dict[str, str]
    depends_on: frozenset[str]
    protect: bool
    retain_on_delete: bool
    ignore_changes: tuple[str, ...]
    replace_on_changes: tuple[str, ...]
    additional_secret_outputs: tuple[str, ...]
    delete_before_replace: bool


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Everything that a program registered, and its stack outputs (secrets unwrapped; their names in `secrets`)."""

    resources: dict[str, Registered]
    outputs: dict[str, Any]
    secrets: frozenset[str]

    def __iter__(self) -> Iterator[Registered]:
        """All, by URN: the order of registration is not deterministic."""
        return iter([self.resources[urn] for urn in sorted(self.resources)])

    def of(self, type_: str, name: str = "") -> list[Registered]:
        """The resources of a type token (`aws:ec2/vpc:Vpc`), or of its last part (`Vpc`), named like `name`."""
        return [r for r in self if type_ in (r.type, r.type.rpartition(":")[2]) and name in r.name]

    def one(self, type_: str, name: str = "") -> Registered:
        """The only such resource; an exact name wins over names that merely contain it."""
        found = self.of(type_, name)
        exact = [r for r in found if r.name == name]
        if len(exact or found) != 1:
            raise AssertionError(f"{len(found)} {type_} named like {name!r}: {sorted(r.name for r in found)}")
        return (exact or found)[0]


def run(program: Callable[[], object], *, preview: bool = False) -> Recorded:
    """Runs `program` as a stack. A failure in it or in any `apply` is raised, and so is every question to a cloud."""
    recording = recorder.record(
        program,
        project="tritonfleet",
        stack="stack",
        config={},
        preview=preview,
        computed=_computed,
        answers=None if preview else ANSWERS,
    )
    return Recorded(
        resources={resource.urn: _registered(resource) for resource in recording.resources},
        outputs=_plain(recording.outputs),
        secrets=_secrets(recording.outputs),
    )


def _registered(resource: recorder.Registered) -> Registered:
    inputs = _plain(resource.inputs)
    _refuse_missing_outputs(resource.type, resource.name, inputs)
    return Registered(
        urn=resource.urn,
        type=resource.type,
        name=resource.name,
        inputs=inputs,
        secrets=_secrets(resource.inputs),
        parent=resource.parent,
        provider=resource.provider,
        providers=resource.providers,
        depends_on=frozenset(resource.dependencies),
        protect=resource.protect,
        retain_on_delete=resource.retain_on_delete,
        ignore_changes=resource.ignore_changes,
        replace_on_changes=resource.replace_on_changes,
        additional_secret_outputs=resource.additional_secret_outputs,
        delete_before_replace=resource.delete_before_replace,
    )


def _computed(resource: recorder.Registered) -> dict[str, Any]:
    """A value for every output that the resource's class declares as a text, a number, or a list of objects."""
    # Resources are registered from several threads, and to read a class's types imports modules.
    with _READING_TYPES:
        kinds = cast(dict[str, Any], cast(Any, _types).resource_types(_class_of(resource.type)))
        examples = {key: _example(kind, resource.type, resource.name, key) for key, kind in kinds.items()}
    computed = {key: value for key, value in examples.items() if value is not None}
    if resource.type.startswith("azure-native:"):
        # Programs take these ids apart, and give parts of them to others.
        computed["id"] = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/group/providers/{resource.name}"
    return computed


def _class_of(type_token: str) -> type[pulumi.Resource]:
    """The loaded resource class of a type token; a component or an untyped resource has no outputs of its own."""
    pending: list[type[pulumi.Resource]] = [pulumi.Resource]
    while pending:
        known = pending.pop()
        if getattr(known, "pulumi_type", None) == type_token:
            return known
        pending += known.__subclasses__()
    return pulumi.ComponentResource


def _example(kind: Any, type_: str, name: str, key: str, depth: int = 0) -> Any:
    """A value of an output's declared type: a text that says whose it is, an object, one element of a list of them."""
    if kind is str:
        return _text(type_, name, key)
    if kind is int:
        return 1
    if isinstance(kind, type) and _types.is_output_type(kind):
        # Some classes hold themselves.
        return _object(kind, type_, name, depth) if depth < _DEPTH else None
    element = next(iter(get_args(kind)), None)
    if element is str and get_origin(kind) is Sequence:
        return [_text(type_, name, key)]
    if isinstance(element, type) and _types.is_output_type(element):
        return [_object(element, type_, name, depth)] if depth < _DEPTH else None
    return None


_READING_TYPES = Lock()

_DEPTH = 2
"""Objects within objects, of which examples are made."""


def _object(kind: type, type_: str, name: str, depth: int) -> dict[str, Any]:
    fields = cast(dict[str, Any], cast(Any, _types).output_type_types(kind))
    return {field: _example(inner, type_, name, field, depth + 1) for field, inner in fields.items()}


def _text(type_: str, name: str, key: str) -> str:
    """What the cloud would say: ARNs look like ARNs, because programs take them apart."""
    package, _, module = type_.partition(":")
    service = module.partition("/")[0]
    return f"arn:aws:{service}::{ACCOUNT}:{name}" if package == "aws" and key == "arn" else f"{name}-{key}"


# Of Azure's containers, of its accounts' firewalls, and of its driver of file shares.
_WORDS = (("publicAccess", "None"), ("bypass", "None"), ("fsGroupChangePolicy", "None"))


def _refuse_missing_outputs(type_: str, name: str, inputs: dict[str, Any]) -> None:
    """An output without a value becomes the text None inside a name or a policy, and would pass unseen."""
    if type_.startswith("kubernetes:core/v1:ConfigMap"):  # Python source
        return
    if any(re.search(r"\bNone\b", text) for text in _texts(inputs)):
        raise AssertionError(f"{type_} {name} holds the text None: an output has no value here: {inputs}")


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in cast(dict[str, object], value).items():
            if (key, item) not in _WORDS:
                yield from _texts(item)
    elif isinstance(value, list):
        for item in cast(list[object], value):
            yield from _texts(item)


def _secrets(values: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(key for key, value in values.items() if _holds_secret(value))


def _holds_secret(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_secret, cast(dict[str, Any], value).values()))
    if isinstance(value, list):
        return any(map(_holds_secret, cast(list[Any], value)))
    return isinstance(value, recorder.Secret)


def _plain(value: Any) -> Any:
    """Without the recorder's marks: secrets unwrapped, UNKNOWN a text."""
    if isinstance(value, recorder.Secret):
        return _plain(value.value)
    if isinstance(value, recorder.Unknown):
        return UNKNOWN
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_plain(item) for item in cast(list[Any], value)]
    return value
