"""A stand-in for the Pulumi engine: runs a program in this process and records every resource that it registers.

`run(program)` answers as after an update: every text output that a resource's class declares has a value. With
`preview=True` it answers as a preview does: inputs are known, everything that a cloud computes is not.
"""

import asyncio
import contextvars
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import pulumi
from google.protobuf import empty_pb2
from pulumi import _types  # pyright: ignore[reportPrivateUsage]
from pulumi.runtime import mocks as pulumi_mocks
from pulumi.runtime import rpc
from pulumi.runtime.settings import configure
from pulumi.runtime.stack import run_in_stack

UNKNOWN = "<unknown until update>"
"""Stands for a value that a preview does not know."""

ACCOUNT = "123456789012"

Computed = Callable[[str, str, dict[str, Any]], dict[str, Any]]


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
    additional_secret_outputs: tuple[str, ...]
    delete_before_replace: bool


@dataclass(kw_only=True)
class Recorded:
    """Everything that a program registered, and its stack outputs (secrets unwrapped; their names in `secrets`)."""

    resources: dict[str, Registered] = field(default_factory=dict[str, Registered])
    calls: list[str] = field(default_factory=list[str])
    outputs: dict[str, Any] = field(default_factory=dict[str, Any])
    secrets: frozenset[str] = frozenset()

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


def run(
    program: Callable[[], object],
    *,
    preview: bool = False,
    config: Mapping[str, str] | None = None,
    outputs: Computed | None = None,
) -> Recorded:
    """Runs `program` as a stack. `config` maps `project:key` to its text; `outputs(type, name, inputs)` adds to what
    the cloud computes. A failure in the program or in any `apply` is raised."""
    recorded = Recorded()
    monitor = _Monitor(recorded, preview, outputs)

    def start() -> None:
        configure(
            pulumi_mocks.MockSettings(
                monitor=monitor,
                monitor_features=monitor.features(),
                engine=pulumi_mocks.MockEngine(logging.getLogger("pulumi")),
                project="tritonfleet",
                stack="stack",
                dry_run=preview,
                organization="organization",
                callbacks=None,
            )
        )
        pulumi.runtime.set_all_config(dict(config or {}))

        def body() -> None:
            program()

        asyncio.run(run_in_stack(body))

    contextvars.Context().run(start)
    return recorded


class _Monitor(pulumi_mocks.MockMonitor):
    def __init__(self, recorded: Recorded, preview: bool, outputs: Computed | None) -> None:
        super().__init__(_Mocks(recorded, preview, outputs))
        self._recorded = recorded

    def make_urn(self, parent: str, type_: str, name: str) -> str:
        """The engine's own way: the types of all parents but the stack, which Pulumi's mock cuts to one."""
        if parent and "::pulumi:pulumi:Stack::" not in parent:
            type_ = f"{parent.split('::')[2]}${type_}"
        return f"urn:pulumi:stack::tritonfleet::{type_}::{name}"

    def features(self) -> set[int]:
        return set(cast(Any, self).GetDeploymentInfo(empty_pb2.Empty()).supportedFeatures)

    def RegisterResource(self, request: Any) -> Any:
        response = cast(Any, super()).RegisterResource(request)
        if request.type == "pulumi:pulumi:Stack":
            return response
        if response.urn in self._recorded.resources:
            raise AssertionError(f"registered twice: {response.urn}")
        raw = rpc.deserialize_properties(request.object, keep_unknowns=True)
        inputs = cast(dict[str, Any], _plain(raw))
        _refuse_missing_outputs(request.type, request.name, inputs)
        self._recorded.resources[response.urn] = Registered(
            urn=response.urn,
            type=request.type,
            name=request.name,
            inputs=inputs,
            secrets=frozenset(key for key, value in raw.items() if rpc.is_rpc_secret(value)),
            parent=request.parent,
            provider=request.provider.rpartition("::")[0] or None,
            providers={package: reference.rpartition("::")[0] for package, reference in request.providers.items()},
            depends_on=frozenset(request.dependencies),
            protect=request.protect,
            retain_on_delete=request.retainOnDelete,
            ignore_changes=tuple(request.ignoreChanges),
            additional_secret_outputs=tuple(sorted(request.additionalSecretOutputs)),
            delete_before_replace=request.deleteBeforeReplace,
        )
        return response

    def RegisterResourceOutputs(self, request: Any) -> Any:
        if "::pulumi:pulumi:Stack::" in request.urn:
            raw = rpc.deserialize_properties(request.outputs, keep_unknowns=True)
            self._recorded.outputs = cast(dict[str, Any], _plain(raw))
            self._recorded.secrets = frozenset(key for key, value in raw.items() if rpc.is_rpc_secret(value))
        return cast(Any, super()).RegisterResourceOutputs(request)


class _Mocks(pulumi_mocks.Mocks):
    def __init__(self, recorded: Recorded, preview: bool, outputs: Computed | None) -> None:
        self._recorded = recorded
        self._preview = preview
        self._outputs = outputs

    def call(self, args: pulumi_mocks.MockCallArgs) -> Any:
        # A program that asks the cloud while planning has another plan on another day.
        raise AssertionError(f"the program calls {args.token}")

    def new_resource(self, args: pulumi_mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        inputs = cast(dict[str, Any], args.inputs)  # pyright: ignore[reportUnknownMemberType]
        if self._preview:
            return "", inputs
        kinds = cast(dict[str, object], cast(Any, _types).resource_types(_class_of(args.typ)))
        declared = {key: _example(kind, args.typ, args.name, key) for key, kind in kinds.items() if key not in inputs}
        computed = self._outputs(args.typ, args.name, inputs) if self._outputs else {}
        return f"{args.name}-id", {**declared, **inputs, **computed}


def _example(kind: Any, type_: str, name: str, key: str) -> Any:
    """A value of an output's declared type: a text that says whose it is, one element of a list of objects."""
    if kind is str:
        return _text(type_, name, key)
    if kind is int:
        return 1
    element = next(iter(get_args(kind)), None)
    if isinstance(element, type) and _types.is_output_type(element):
        fields = cast(dict[str, Any], cast(Any, _types).output_type_types(element))
        return [{field: _example(inner, type_, name, field) for field, inner in fields.items()}]
    return None


def _text(type_: str, name: str, key: str) -> str:
    """What the cloud would say: ARNs look like ARNs, because programs take them apart."""
    package, _, module = type_.partition(":")
    service = module.partition("/")[0]
    return f"arn:aws:{service}::{ACCOUNT}:{name}" if package == "aws" and key == "arn" else f"{name}-{key}"


def _class_of(type_token: str) -> type[pulumi.Resource]:
    """The loaded resource class of a type token; a component or an untyped resource has no outputs of its own."""
    pending: list[type[pulumi.Resource]] = [pulumi.Resource]
    while pending:
        known = pending.pop()
        if getattr(known, "pulumi_type", None) == type_token:
            return known
        pending += known.__subclasses__()
    return pulumi.ComponentResource


def _refuse_missing_outputs(type_: str, name: str, inputs: dict[str, Any]) -> None:
    """An output without a value becomes the text None inside a name or a policy, and would pass unseen."""
    if type_.startswith("kubernetes:core/v1:ConfigMap"):  # Python source
        return
    if re.search(r"\bNone\b", repr(list(_texts(inputs)))):
        raise AssertionError(f"{type_} {name} holds the text None: an output has no value here: {inputs}")


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in cast(dict[str, object], value).values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in cast(list[object], value):
            yield from _texts(item)


def _plain(value: Any) -> Any:
    if rpc.is_rpc_secret(value):
        return _plain(rpc.unwrap_rpc_secret(value))
    if isinstance(value, pulumi.output.Unknown):
        return UNKNOWN
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_plain(item) for item in cast(list[Any], value)]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
