"""Runs a Pulumi program in this process, without engine, credentials or network, and records what it registers."""

import asyncio
import contextlib
import contextvars
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

import pulumi
from google.protobuf import empty_pb2, struct_pb2
from pulumi.runtime import Settings, configure, run_in_stack, set_all_config
from pulumi.runtime.proto import engine_pb2, resource_pb2

STACK_TYPE = "pulumi:pulumi:Stack"

# What marks a value on Pulumi's wire protocol as unknown, secret, or a reference to a resource (pulumi.runtime.rpc).
_UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
_SIGNATURE = "4dabf18193072939515e22adb298388d"
_SECRET = "1b47061264138c4ac30d75fd1eb44270"

_FEATURES = (
    resource_pb2.RESOURCE_MONITOR_FEATURE_SECRETS,
    resource_pb2.RESOURCE_MONITOR_FEATURE_RESOURCE_REFERENCES,
    resource_pb2.RESOURCE_MONITOR_FEATURE_ALIAS_SPECS,
    resource_pb2.RESOURCE_MONITOR_FEATURE_DELETED_WITH,
)

_AMBIENT = ("PULUMI_", "AWS_", "KUBE", "GOOGLE_", "CLOUDSDK_", "ARM_", "AZURE_")
"""Environment variables that Pulumi's SDKs take defaults from; with them one stack would be recorded in two ways."""


class Unknown(Enum):
    """A value that only the cloud decides, so that no preview knows it."""

    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN


@dataclass(frozen=True)
class Secret:
    """A value that Pulumi would encrypt; its repr does not show it."""

    value: Any

    def __repr__(self) -> str:
        return "Secret(…)"


@dataclass(frozen=True, kw_only=True)
class Registered:
    """One resource as the program registered it, `urn` as the real engine makes it.

    `inputs` have Pulumi's own (camel case) names, and hold UNKNOWN and Secret where the program had such values.
    `dependencies` are URNs, of `depends_on` as well as of inputs; `property_dependencies` are those of each input that
    has any. `provider` is the provider's URN; components have `providers` by package instead.
    """

    urn: str
    type: str
    name: str
    custom: bool
    remote: bool
    inputs: dict[str, Any]
    parent: str
    provider: str | None
    providers: dict[str, str]
    dependencies: tuple[str, ...]
    property_dependencies: dict[str, tuple[str, ...]]
    protect: bool
    retain_on_delete: bool
    delete_before_replace: bool
    deleted_with: str | None
    ignore_changes: tuple[str, ...]
    replace_on_changes: tuple[str, ...]
    additional_secret_outputs: tuple[str, ...]
    aliases: tuple[str, ...]
    timeouts: dict[str, str]
    version: str


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Everything that a program registered, by URN, its stack outputs, the warnings and errors it logged, and what it
    told besides (`notes`)."""

    resources: tuple[Registered, ...]
    outputs: dict[str, Any]
    messages: tuple[str, ...]
    notes: tuple[str, ...] = ()


Computed = Callable[[Registered], Mapping[str, Any]]
"""What the cloud would add to a resource's inputs once it exists; `id` is its id."""

Answers = Mapping[str, Mapping[str, Any]]
"""What the cloud would answer to a question, by the function's token."""


def record(
    program: Callable[[], object],
    *,
    project: str,
    stack: str,
    config: Mapping[str, str],
    secret_keys: frozenset[str] = frozenset(),
    preview: bool = True,
    computed: Computed | None = None,
    answers: Answers | None = None,
) -> Recording:
    """Run `program` as a stack with `config` (`namespace:key` to text), as the Pulumi CLI would hand it over.

    A preview knows what the program itself says and nothing else. Without `preview`, every id is known, and what
    `computed` returns. A question that `answers` does not have is an error. Whatever the program, or an `apply` in it,
    raises is raised here.
    """
    monitor = _Monitor(project, stack, preview, computed, answers or {})
    engine = _Engine()

    def start() -> None:
        configure(
            Settings(project=project, stack=stack, monitor=monitor, engine=engine, dry_run=preview, organization="")
        )
        set_all_config(dict(config), sorted(secret_keys))

        def body() -> None:
            program()

        asyncio.run(run_in_stack(body))

    # Pulumi keeps its state in context variables: a context of its own leaves the caller's untouched.
    with _without_ambient_settings():
        contextvars.Context().run(start)
    resources = tuple(monitor.registered[urn] for urn in sorted(monitor.registered))
    return Recording(
        resources=resources,
        outputs=monitor.outputs,
        messages=tuple(sorted(engine.messages)),
        notes=tuple(sorted(engine.notes)),
    )


def plain(value: Any) -> Any:
    """The value without its Secret marks, for those who compare; UNKNOWN stays."""
    if isinstance(value, Secret):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [plain(item) for item in cast(list[Any], value)]
    return value


class _Monitor:
    """The part of the engine's resource monitor that a program without transforms, hooks and reads needs."""

    def __init__(self, project: str, stack: str, preview: bool, computed: Computed | None, answers: Answers) -> None:
        self.registered: dict[str, Registered] = {}
        self.outputs: dict[str, Any] = {}
        self._prefix = f"urn:pulumi:{stack}::{project}::"
        self._preview = preview
        self._computed = computed
        self._answers = answers

    def RegisterResource(self, request: resource_pb2.RegisterResourceRequest) -> resource_pb2.RegisterResourceResponse:
        urn = self._urn(request)
        if request.type == STACK_TYPE:
            return resource_pb2.RegisterResourceResponse(urn=urn)
        if urn in self.registered:
            raise pulumi.RunError(f"{urn} is registered twice")
        registered = self.registered[urn] = _registered(urn, request)
        echoed = _echoed(request.object)
        if self._preview:
            return resource_pb2.RegisterResourceResponse(urn=urn, object=echoed)
        state = struct_pb2.Struct()
        computed = dict(self._computed(registered)) if self._computed else {}
        id_ = str(computed.pop("id", f"{request.name}-id")) if request.custom else ""
        for key, value in computed.items():
            secret = key in registered.additional_secret_outputs
            state[key] = {_SIGNATURE: _SECRET, "value": value} if secret else value
        _merge(state, echoed)
        return resource_pb2.RegisterResourceResponse(urn=urn, id=id_, object=state)

    def RegisterResourceOutputs(self, request: resource_pb2.RegisterResourceOutputsRequest) -> empty_pb2.Empty:
        if f"::{STACK_TYPE}::" in request.urn:
            self.outputs = _decoded_fields(request.outputs)
        return empty_pb2.Empty()

    def Invoke(self, request: resource_pb2.ResourceInvokeRequest) -> resource_pb2.ResourceInvokeResponse:
        if request.tok not in self._answers:
            # What a cloud answers differs from day to day, and so would the plan.
            raise pulumi.RunError(f"the program asks the cloud ({request.tok}), which only a deployment can")
        answer = struct_pb2.Struct()
        answer.update(self._answers[request.tok])
        response: Any = resource_pb2.ResourceInvokeResponse  # its field's name is a word of Python's
        return response(**{"return": answer})

    def GetDeploymentInfo(self, _: empty_pb2.Empty) -> resource_pb2.DeploymentInfo:
        return resource_pb2.DeploymentInfo(supportedFeatures=_FEATURES)

    def SignalAndWaitForShutdown(self, request: empty_pb2.Empty) -> empty_pb2.Empty:
        return request

    def _urn(self, request: resource_pb2.RegisterResourceRequest) -> str:
        # The engine puts the types of all parents but the stack into a URN; Pulumi's own mock keeps only one of them.
        type_ = request.type
        if request.parent and f"::{STACK_TYPE}::" not in request.parent:
            type_ = f"{request.parent.split('::')[2]}${type_}"
        return f"{self._prefix}{type_}::{request.name}"


class _Engine:
    """Takes what the program logs."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.notes: list[str] = []

    def Log(self, request: engine_pb2.LogRequest) -> None:
        if request.severity in (engine_pb2.WARNING, engine_pb2.ERROR):
            self.messages.append(request.message)
        elif request.severity == engine_pb2.INFO:
            self.notes.append(request.message)


def _echoed(inputs: struct_pb2.Struct) -> struct_pb2.Struct:
    """Inputs as a provider gives them back: Azure takes a list of identities and answers with a map, left out here."""
    state = struct_pb2.Struct()
    state.CopyFrom(inputs)
    if "identity" in state.fields:
        state.fields["identity"].struct_value.fields.pop("userAssignedIdentities", None)
    return state


def _merge(state: struct_pb2.Struct, given: struct_pb2.Struct) -> None:
    """Puts what is given over what the cloud computes, also within objects and lists of them: it adds to those too."""
    for key, value in given.fields.items():
        _put(state.fields[key], value)


def _put(computed: struct_pb2.Value, given: struct_pb2.Value) -> None:
    kinds = {computed.WhichOneof("kind"), given.WhichOneof("kind")}
    if kinds == {"struct_value"} and _SIGNATURE not in given.struct_value.fields:
        _merge(computed.struct_value, given.struct_value)
    elif kinds == {"list_value"} and len(computed.list_value.values) == len(given.list_value.values):
        for old, new in zip(computed.list_value.values, given.list_value.values, strict=True):
            _put(old, new)
    else:
        computed.CopyFrom(given)


def _registered(urn: str, request: resource_pb2.RegisterResourceRequest) -> Registered:
    timeouts = request.customTimeouts
    return Registered(
        urn=urn,
        type=request.type,
        name=request.name,
        custom=request.custom,
        remote=request.remote,
        inputs=_decoded_fields(request.object),
        parent=request.parent,
        provider=_provider_urn(request.provider),
        providers={package: _provider_urn(ref) or "" for package, ref in sorted(request.providers.items())},
        dependencies=tuple(sorted(request.dependencies)),
        property_dependencies={
            name: tuple(sorted(of.urns)) for name, of in sorted(request.propertyDependencies.items()) if of.urns
        },
        protect=request.protect,
        retain_on_delete=request.retainOnDelete,
        delete_before_replace=request.deleteBeforeReplace,
        deleted_with=request.deletedWith or None,
        ignore_changes=tuple(request.ignoreChanges),
        replace_on_changes=tuple(request.replaceOnChanges),
        additional_secret_outputs=tuple(sorted(request.additionalSecretOutputs)),
        aliases=_aliases(request),
        timeouts={
            step: duration
            for step, duration in (
                ("create", timeouts.create),
                ("update", timeouts.update),
                ("delete", timeouts.delete),
            )
            if duration
        },
        version=request.version,
    )


def _aliases(request: Any) -> tuple[str, ...]:
    # Any: the stubs do not know the type of an alias.
    return tuple(sorted(alias.urn or f"{alias.spec.type}::{alias.spec.name}" for alias in request.aliases))


def _provider_urn(reference: str) -> str | None:
    return reference.rpartition("::")[0] or None


def _decoded_fields(struct: struct_pb2.Struct) -> dict[str, Any]:
    return {key: _decoded(struct.fields[key]) for key in sorted(struct.fields)}


def _decoded(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return UNKNOWN if value.string_value == _UNKNOWN else value.string_value
    if kind == "bool_value":
        return value.bool_value
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    if kind == "list_value":
        return [_decoded(item) for item in value.list_value.values]
    if kind == "struct_value":
        decoded = _decoded_fields(value.struct_value)
        signature = decoded.pop(_SIGNATURE, None)
        return Secret(decoded.get("value", UNKNOWN)) if signature == _SECRET else decoded
    return None


@contextlib.contextmanager
def _without_ambient_settings() -> Generator[None]:
    ambient = {name: value for name, value in os.environ.items() if name.startswith(_AMBIENT)}
    for name in ambient:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(ambient)
