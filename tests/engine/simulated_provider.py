"""A cloud that exists only in a test: Pulumi's provider protocol, spoken to a real engine that starts this as a plugin.

    python simulated_provider.py PACKAGE [ENGINE]

What a resource may be given, and what a cloud adds to it, comes from the type metadata of the package's Python SDK.
Each create, update and delete becomes a line of JSON in $SIMULATED_CLOUD_LOG, in the order in which they happened.
What $SIMULATED_CLOUD_DRIFT holds (JSON: URN -> property -> fields; null for what is gone) somebody else has changed
since, as a refresh shows.
"""

# ruff: noqa: ARG002 - gRPC calls every method with a request and a context

import ast
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import time
from collections import abc
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, EnumType
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import grpc
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi import _types  # pyright: ignore[reportPrivateUsage] - the only table of what a class may be given
from pulumi.runtime.proto import (
    plugin_pb2,
    provider_pb2,
    provider_pb2_grpc,
    resource_pb2,
    resource_pb2_grpc,
)

ACCOUNT = "123456789012"

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET = "1b47061264138c4ac30d75fd1eb44270"
REFERENCE = "5cf8f73096256a8f31e491e813e4eb8e"

REPLACING = {
    # "Forces new resource" in the documentation of the Terraform provider that pulumi-aws wraps.
    "aws:ec2/launchTemplate:LaunchTemplate": r"name|namePrefix",
    "aws:ec2/placementGroup:PlacementGroup": r"name|strategy|partitionCount|spreadLevel",
    "aws:ec2/securityGroup:SecurityGroup": r"name|namePrefix|vpcId|description",
    "aws:ec2/subnet:Subnet": r"vpcId|cidrBlock|availabilityZone|availabilityZoneId",
    "aws:ec2/vpc:Vpc": r"cidrBlock",
    "aws:efs/fileSystem:FileSystem": r"creationToken|encrypted|kmsKeyId|performanceMode|availabilityZoneName",
    "aws:eks/cluster:Cluster": r"name|roleArn|(kubernetesNetwork|encryption)Config\b.*|bootstrapSelfManagedAddons",
    "aws:eks/nodeGroup:NodeGroup": (
        r"amiType|capacityType|clusterName|diskSize|instanceTypes\b.*|nodeGroupName|nodeGroupNamePrefix|nodeRoleArn"
        r"|subnetIds\b.*|launchTemplate\.(id|name)"
    ),
    "aws:fsx/lustreFileSystem:LustreFileSystem": r"deploymentType|storageType|kmsKeyId|(subnet|securityGroup)Ids\b.*",
    "aws:iam/role:Role": r"name|namePrefix|path",
    "aws:kms/key:Key": r"customerMasterKeySpec|keyUsage",
    "aws:s3/bucket:Bucket": r"bucket|bucketPrefix",
    # Fields that the API server refuses to change, so that pulumi-kubernetes replaces the object.
    "kubernetes:batch/v1:Job": r"spec\.(selector|template|completionMode)\b.*",
    "kubernetes:core/v1:ConfigMap": r"(binaryData|data|immutable)\b.*",
    "kubernetes:core/v1:PersistentVolume": r"spec\.(csi|nfs)\b.*",
    "kubernetes:core/v1:PersistentVolumeClaim": r"spec\.(accessModes|selector|storageClassName|volume\w+)\b.*",
    "kubernetes:core/v1:Service": r"spec\.(clusterIP|type)",
    "kubernetes:storage.k8s.io/v1:StorageClass": r"(parameters|provisioner|reclaimPolicy|volumeBindingMode)\b.*",
    "random:index/randomPassword:RandomPassword": r".*",
}
"""Properties, as patterns of paths, whose change makes a new resource."""

OF_EVERY_OBJECT = r"apiVersion|kind|metadata\.(name|namespace)"


class SimulatedProvider(provider_pb2_grpc.ResourceProviderServicer):
    """One package's provider. It holds no state of its own: the engine hands it every resource's."""

    def __init__(self, package: str, version: str) -> None:
        self._package = package
        self._version = version

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version=self._version)

    def CheckConfig(self, request: Any, context: Any) -> Any:
        failures = _failures(request, f"{self._package}:Provider")
        # The engine adds what it started the plugin by.
        failures = [failure for failure in failures if failure.property not in ("version", "pluginDownloadURL")]
        return provider_pb2.CheckResponse(inputs=request.news, failures=failures)

    def DiffConfig(self, request: Any, context: Any) -> Any:
        return _diff(request, "")

    def Configure(self, request: Any, context: Any) -> Any:
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True, acceptResources=True)

    def Check(self, request: Any, context: Any) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news, failures=_failures(request, _type_of(request.urn)))

    def Diff(self, request: Any, context: Any) -> Any:
        return _diff(request, _type_of(request.urn))

    def Create(self, request: Any, context: Any) -> Any:
        if request.preview:
            return provider_pb2.CreateResponse(properties=request.properties)
        name = request.urn.rpartition("::")[2]
        # A replacement has another id than what it replaces, even where both live for a while.
        id_ = f"{name}-{time.monotonic_ns():x}"
        _log("create", request.urn)
        return provider_pb2.CreateResponse(id=id_, properties=_with_computed(request.urn, request.properties))

    def Read(self, request: Any, context: Any) -> Any:
        drift = _drift(request.urn)
        if drift is None:
            return provider_pb2.ReadResponse()
        for struct in (request.properties, request.inputs):
            for key, fields in drift.items():
                struct.fields[key].struct_value.update(fields)
        return provider_pb2.ReadResponse(id=request.id, properties=request.properties, inputs=request.inputs)

    def Update(self, request: Any, context: Any) -> Any:
        if not request.preview:
            _log("update", request.urn)
        # What the cloud computed at creation stays, and is known at the preview of an update.
        result = struct_pb2.Struct()
        result.CopyFrom(request.news)
        for key, value in request.olds.fields.items():
            if key not in request.old_inputs.fields and key not in request.news.fields:
                result.fields[key].CopyFrom(value)
        return provider_pb2.UpdateResponse(properties=result)

    def Delete(self, request: Any, context: Any) -> Any:
        _log("delete", request.urn)
        return empty_pb2.Empty()

    def Invoke(self, request: Any, context: Any) -> Any:
        failure = provider_pb2.CheckFailure(reason=f"nothing here answers {request.tok}")
        return provider_pb2.InvokeResponse(failures=[failure])

    def Construct(self, request: Any, context: Any) -> Any:
        """`eks:index:Cluster`, with the children that its users depend on, under the AWS provider that it is given."""
        unknown = list(unknown_properties(request.type, plain(request.inputs)))
        if unknown:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{request.type} has no {', '.join(unknown)}")
        return _construct_cluster(request)


def unknown_properties(type_: str, inputs: Mapping[str, Any]) -> Iterator[str]:
    """Paths of the inputs that the SDK's class for `type_` does not declare, at any depth."""
    args = classes_of(type_)[1]
    if args is not None:
        yield from _unknown(args, inputs, "")


def computed(type_: str, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the cloud adds: a value of its declared type for each output that is not among the inputs."""
    resource = classes_of(type_)[0]
    outputs = _types.resource_types(resource) if resource else {}
    service = type_.partition(":")[2].partition("/")[0]
    added = {key: _example(kind, name, key) for key, kind in outputs.items() if key not in inputs}
    if type_.startswith("aws:") and "arn" in added:
        # Programs take ARNs apart.
        added["arn"] = f"arn:aws:{service}::{ACCOUNT}:{name}"
    return {key: value for key, value in added.items() if value is not None}


def changed(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Paths at which two values differ; a list is compared item by item."""
    if isinstance(old, dict) and isinstance(new, dict):
        olds, news = cast(dict[str, Any], old), cast(dict[str, Any], new)
        for key in sorted({*olds, *news}):
            yield from changed(olds.get(key), news.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(cast(list[Any], old)) == len(cast(list[Any], new)):
        for index, (before, after) in enumerate(zip(cast(list[Any], old), cast(list[Any], new), strict=True)):
            yield from changed(before, after, f"{path}[{index}]")
    elif old != new:
        yield path


def replacing(type_: str, paths: list[str]) -> list[str]:
    """Those of the changed paths that make a new resource."""
    patterns = [REPLACING[type_]] if type_ in REPLACING else []
    if type_.startswith("kubernetes:") and not type_.startswith("kubernetes:helm.sh"):
        patterns.append(OF_EVERY_OBJECT)
    return [path for path in paths if any(re.fullmatch(pattern, path) for pattern in patterns)]


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


def _type_of(urn: str) -> str:
    return urn.split("::")[2].rpartition("$")[2]


def _failures(request: Any, type_: str) -> list[provider_pb2.CheckFailure]:
    paths = unknown_properties(type_, plain(request.news))
    return [provider_pb2.CheckFailure(property=path, reason=f"{type_} has no property {path}") for path in paths]


def _diff(request: Any, type_: str) -> Any:
    paths = list(changed(plain(request.old_inputs), plain(request.news)))
    ignored = tuple(request.ignoreChanges)
    paths = [path for path in paths if not path.startswith(ignored)] if ignored else paths
    replaces = replacing(type_, paths)
    named = type_.startswith("kubernetes:") and not {"metadata.name", "metadata.namespace"} & {*replaces}
    kinds = provider_pb2.PropertyDiff
    return provider_pb2.DiffResponse(
        changes=provider_pb2.DiffResponse.DIFF_SOME if paths else provider_pb2.DiffResponse.DIFF_NONE,
        diffs=sorted({re.split(r"[.\[]", path)[0] for path in paths}),
        replaces=sorted({re.split(r"[.\[]", path)[0] for path in replaces}),
        # Two objects cannot bear one name at the same time.
        deleteBeforeReplace=bool(replaces) and named,
        detailedDiff={
            path: provider_pb2.PropertyDiff(kind=kinds.UPDATE_REPLACE if path in replaces else kinds.UPDATE)
            for path in paths
        },
        hasDetailedDiff=True,
    )


def _with_computed(urn: str, properties: struct_pb2.Struct) -> struct_pb2.Struct:
    # On top of the message itself, whose secrets stay marked.
    result = struct_pb2.Struct()
    result.CopyFrom(properties)
    result.update(computed(_type_of(urn), urn.rpartition("::")[2], plain(properties)))
    return result


def _construct_cluster(request: Any) -> Any:
    monitor: Any = resource_pb2_grpc.ResourceMonitorStub(grpc.insecure_channel(request.monitorEndpoint))
    inputs = plain(request.inputs)

    def register(type_: str, name: str, parent: str, **options: Any) -> Any:
        return monitor.RegisterResource(
            resource_pb2.RegisterResourceRequest(
                type=type_,
                name=name,
                parent=parent,
                # A component of a real provider hands this on to its children.
                protect=request.protect,
                retainOnDelete=request.retainOnDelete,
                acceptSecrets=True,
                acceptResources=True,
                supportsPartialValues=True,
                **options,
            )
        )

    component = register(
        request.type, request.name, request.parent, providers=request.providers, dependencies=request.dependencies
    )

    def child(type_: str, suffix: str, properties: Mapping[str, Any], *dependencies: str) -> Any:
        struct = struct_pb2.Struct()
        struct.update({key: value for key, value in properties.items() if value is not None})
        name = f"{request.name}-{suffix}"
        options = {"custom": True, "provider": request.providers.get("aws", ""), "object": struct}
        return register(type_, name, component.urn, dependencies=dependencies, **options)

    trust = json.dumps({"Statement": [{"Action": "sts:AssumeRole", "Principal": {"Service": "eks.amazonaws.com"}}]})
    role = child("aws:iam/role:Role", "eksRole-role", {"assumeRolePolicy": trust})
    group = child("aws:ec2/securityGroup:SecurityGroup", "eksClusterSecurityGroup", {"vpcId": inputs.get("vpcId")})
    given = {key: inputs.get(key) for key in ("name", "version", "enabledClusterLogTypes", "deletionProtection")}
    subnets: list[Any] = [*(inputs.get("privateSubnetIds") or []), *(inputs.get("subnetIds") or [])]
    security = {"securityGroupIds": [group.id or UNKNOWN], "subnetIds": subnets}
    properties = given | {"roleArn": _of(role, "arn"), "vpcConfig": security}
    cluster = child("aws:eks/cluster:Cluster", "eksCluster", properties, role.urn, group.urn)
    issuer = f"https://oidc.simulated/{request.name}" if cluster.id else UNKNOWN
    oidc = child(
        "aws:iam/openIdConnectProvider:OpenIdConnectProvider",
        "oidcProvider",
        {"url": issuer, "clientIdLists": ["sts.amazonaws.com"]},
        cluster.urn,
    )
    reference = {SIGNATURE: REFERENCE, "urn": cluster.urn, "id": cluster.id or UNKNOWN}
    kubeconfig = {"apiVersion": "v1", "kind": "Config", "clusters": [{"name": request.name}]} if cluster.id else UNKNOWN
    state = struct_pb2.Struct()
    state.update(
        {
            "eksCluster": reference,
            "kubeconfig": kubeconfig,
            "kubeconfigJson": json.dumps(kubeconfig) if cluster.id else UNKNOWN,
            "oidcIssuer": issuer.removeprefix("https://"),
            "oidcProviderUrl": issuer,
            "oidcProviderArn": _of(oidc, "arn"),
            "clusterSecurityGroupId": group.id or UNKNOWN,
            "nodeSecurityGroupId": group.id or UNKNOWN,
        }
    )
    monitor.RegisterResourceOutputs(resource_pb2.RegisterResourceOutputsRequest(urn=component.urn, outputs=state))
    return provider_pb2.ConstructResponse(urn=component.urn, state=state)


def _of(response: Any, key: str) -> Any:
    return plain(response.object).get(key, UNKNOWN)


def _log(operation: str, urn: str) -> None:
    line = json.dumps({"operation": operation, "urn": urn}) + "\n"
    # One write to a file opened for appending: the providers are several processes.
    descriptor = os.open(os.environ["SIMULATED_CLOUD_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def _drift(urn: str) -> dict[str, dict[str, Any]] | None:
    file = Path(os.environ["SIMULATED_CLOUD_DRIFT"])
    drifts: dict[str, dict[str, dict[str, Any]] | None] = json.loads(file.read_text()) if file.exists() else {}
    return drifts.get(urn, {})


@functools.cache
def _tokens(package: str) -> dict[str, tuple[str, str]]:
    """Type token -> module and class, from the table that the SDK's first module registers."""
    found = importlib.util.find_spec(f"pulumi_{package}")
    if found is None or found.origin is None:
        return {}  # a component of the program itself
    for node in ast.walk(ast.parse(Path(found.origin).read_text())):
        if isinstance(node, ast.keyword) and node.arg == "resource_modules" and isinstance(node.value, ast.Constant):
            modules = json.loads(str(node.value.value))
            return {token: (entry["fqn"], name) for entry in modules for token, name in entry["classes"].items()}
    raise LookupError(package)


def class_path(type_: str) -> tuple[str, str]:
    """Where an SDK has the class of a resource; empty for objects of custom resource definitions."""
    package = type_.partition(":")[0]
    return (f"pulumi_{package}", "Provider") if type_.endswith(":Provider") else _tokens(package).get(type_, ("", ""))


@functools.cache
def classes_of(type_: str) -> tuple[Any, Any]:
    """The SDK's class of a resource and of its arguments; none for objects of custom resource definitions."""
    module, name = class_path(type_)
    if not module:
        return None, None
    loaded = importlib.import_module(module)
    return getattr(loaded, name), getattr(loaded, f"{name}InitArgs", None) or getattr(loaded, f"{name}Args")


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


def _example(kind: Any, name: str, key: str) -> Any:
    if kind is str:
        return f"{name}-{key}"
    if kind in (int, float):
        return 1
    if kind is bool:
        return False
    if get_origin(kind) is abc.Sequence:
        item = _example(get_args(kind)[0], name, key)
        return None if item is None else [item]
    if isinstance(kind, EnumType):
        return next(iter(cast(type[Enum], kind))).value
    if _types.is_output_type(kind):
        inner = {field: _example(type_, name, field) for field, type_ in _types.output_type_types(kind).items()}
        return {field: value for field, value in inner.items() if value is not None}
    # Nobody can say the keys of a map.
    return None


def main() -> None:
    package = sys.argv[1]
    version = importlib.metadata.version(f"pulumi-{package.replace('_', '-')}")
    server = grpc.server(ThreadPoolExecutor(max_workers=16))
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(SimulatedProvider(package, version), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    with contextlib.suppress(KeyboardInterrupt):  # how the engine ends its plugins
        server.wait_for_termination()
    os._exit(0)


if __name__ == "__main__":
    main()
