"""One package's provider, and a server of all of them.

    python -m tests.engine.simulated.provider

serves every Pulumi SDK that is installed here, each on a port of its own, until it is killed; a first line of JSON maps
packages to ports. No provider holds state: the engine hands it every resource's. Each create, update and delete becomes
a line of JSON in $SIMULATED_CLOUD_LOG, in the order in which they happened. What $SIMULATED_CLOUD_DRIFT holds (JSON:
URN -> property -> fields; null for what is gone) somebody else has changed since, as a refresh shows.
"""

# ruff: noqa: ARG002 - gRPC calls every method with a request and a context

import base64
import importlib.metadata
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import grpc
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc

from tests.engine.simulated.changes import changed, refused, replacing, shrunk
from tests.engine.simulated.eks import construct_cluster
from tests.engine.simulated.sdk import SUBSCRIPTION, computed, unknown_properties
from tests.engine.simulated.wire import SIGNATURE, UNKNOWN, plain, type_of

_KUBECONFIG = base64.b64encode(b'{"apiVersion": "v1", "kind": "Config"}').decode()
ANSWERS: dict[str, dict[str, Any]] = {
    f"azure-native:containerservice:listManagedCluster{who}Credentials": {
        "kubeconfigs": [{"name": "cluster", "value": _KUBECONFIG}]
    }
    for who in ("Admin", "User")
}
"""What the clouds say when a program asks."""


class SimulatedProvider(provider_pb2_grpc.ResourceProviderServicer):
    """One package's provider. It holds no state of its own: the engine hands it every resource's."""

    def __init__(self, package: str, version: str) -> None:
        self._package = package
        self._version = version
        self._region = ""

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version=self._version)

    def CheckConfig(self, request: Any, context: Any) -> Any:
        failures = _failures(request, f"{self._package}:Provider")
        # The engine adds what it started the plugin by.
        failures = [failure for failure in failures if failure.property not in ("version", "pluginDownloadURL")]
        return provider_pb2.CheckResponse(inputs=request.news, failures=failures)

    def DiffConfig(self, request: Any, context: Any) -> Any:
        return _diff(request, f"pulumi:providers:{self._package}")

    def Configure(self, request: Any, context: Any) -> Any:
        self._region = plain(request.args).get("region", "")
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True, acceptResources=True)

    def Check(self, request: Any, context: Any) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news, failures=_failures(request, type_of(request.urn)))

    def Diff(self, request: Any, context: Any) -> Any:
        # Every regional resource of AWS has its region as an output, and another one is another place.
        region = plain(request.olds).get("region") if self._package == "aws" else None
        return _diff(request, type_of(request.urn), moved=region not in (None, self._region))

    def Create(self, request: Any, context: Any) -> Any:
        if request.preview:
            return provider_pb2.CreateResponse(properties=self._answered(request))
        name = request.urn.rpartition("::")[2]
        # A replacement has another id than what it replaces, even where both live for a while.
        id_ = f"{name}-{time.monotonic_ns():x}"
        if self._package == "azure-native":
            # Programs take these apart.
            id_ = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/group/providers/{id_}"
        _log("create", request.urn)
        return provider_pb2.CreateResponse(id=id_, properties=self._answered(request))

    def Read(self, request: Any, context: Any) -> Any:
        drift = _drift(request.urn)
        if drift is None:
            return provider_pb2.ReadResponse()
        for struct in (request.properties, request.inputs):
            for key, fields in drift.items():
                struct.fields[key].struct_value.update(fields)
        return provider_pb2.ReadResponse(id=request.id, properties=request.properties, inputs=request.inputs)

    def _answered(self, request: Any) -> struct_pb2.Struct:
        answer = _answered(request)
        if self._package == "aws" and "region" in answer.fields:
            answer["region"] = self._region
        return answer

    def Update(self, request: Any, context: Any) -> Any:
        paths = list(changed(plain(request.old_inputs), plain(request.news)))
        if not request.preview:
            if kept := refused(type_of(request.urn), paths):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"changing {', '.join(kept)} is not allowed")
            _log("update", request.urn)
        # What the cloud computed at creation stays, and is known at the preview of an update.
        result = struct_pb2.Struct()
        result.update(_kept(*map(json_format.MessageToDict, (request.news, request.olds, request.old_inputs))))
        if paths and type_of(request.urn) == "aws:ec2/launchTemplate:LaunchTemplate":
            # Every change is a version of its own, of which no preview knows the number.
            before = plain(request.olds).get("latestVersion", 1)
            result["latestVersion"] = UNKNOWN if request.preview else before + 1
        return provider_pb2.UpdateResponse(properties=result)

    def Delete(self, request: Any, context: Any) -> Any:
        _log("delete", request.urn)
        return empty_pb2.Empty()

    def Invoke(self, request: Any, context: Any) -> Any:
        if request.tok not in ANSWERS:
            failure = provider_pb2.CheckFailure(reason=f"nothing here answers {request.tok}")
            return provider_pb2.InvokeResponse(failures=[failure])
        answer = struct_pb2.Struct()
        answer.update(ANSWERS[request.tok])
        arguments: Any = {"return": answer}
        return provider_pb2.InvokeResponse(**arguments)

    def Construct(self, request: Any, context: Any) -> Any:
        """`eks:index:Cluster`, with the children that its users depend on, under the AWS provider that it is given."""
        unknown = list(unknown_properties(request.type, plain(request.inputs)))
        if unknown:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{request.type} has no {', '.join(unknown)}")
        return construct_cluster(request)


def _failures(request: Any, type_: str) -> list[provider_pb2.CheckFailure]:
    paths = unknown_properties(type_, plain(request.news))
    return [provider_pb2.CheckFailure(property=path, reason=f"{type_} has no property {path}") for path in paths]


def _diff(request: Any, type_: str, *, moved: bool = False) -> Any:
    old, new = plain(request.old_inputs), plain(request.news)
    paths = list(changed(old, new))
    ignored = tuple(request.ignoreChanges)
    paths = [path for path in paths if not path.startswith(ignored)] if ignored else paths
    replaces = replacing(type_, paths) + shrunk(type_, old, new)
    if moved:
        paths.append("region")
        replaces.append("region")
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


def _answered(request: Any) -> struct_pb2.Struct:
    """The inputs as they come back, and what the cloud adds to them where it is asked for more than a preview."""
    type_, name = type_of(request.urn), request.urn.rpartition("::")[2]
    given = json_format.MessageToDict(request.properties)
    added = {} if request.preview else computed(type_, name, plain(request.properties))
    answer = _merged(added, given)
    if type_.startswith("azure-native:") and "identity" in answer:
        # Azure takes a list of identities, and answers with a map.
        identities = answer["identity"].pop("userAssignedIdentities", [])
        if not request.preview:
            answer["identity"]["userAssignedIdentities"] = {identity: {} for identity in identities}
    result = struct_pb2.Struct()
    result.update(answer)
    return result


def _merged(added: Any, given: Any) -> Any:
    """What the cloud adds, below what it was given."""
    if isinstance(added, dict) and isinstance(given, dict) and SIGNATURE not in given:
        ours, theirs = cast(dict[str, Any], added), cast(dict[str, Any], given)
        merged = {key: _merged(ours.get(key), theirs.get(key)) for key in {**ours, **theirs}}
        return {key: value for key, value in merged.items() if value is not None}
    if isinstance(added, list) and isinstance(given, list):
        ours, theirs = cast(list[Any], added), cast(list[Any], given)
        return [_merged(*pair) for pair in zip_longest(ours, theirs)][: len(theirs)]
    return cast(Any, added if given is None else given)


def _kept(news: Any, olds: Any, old_inputs: Any) -> Any:
    """The new inputs, with what the cloud added to the old ones."""
    if isinstance(news, dict) and isinstance(olds, dict) and SIGNATURE not in news:
        now, before = cast(dict[str, Any], news), cast(dict[str, Any], olds)
        inputs = cast(dict[str, Any], old_inputs) if isinstance(old_inputs, dict) else {}
        added = {key: value for key, value in before.items() if key not in inputs and key not in now}
        return added | {key: _kept(value, before.get(key), inputs.get(key)) for key, value in now.items()}
    if isinstance(news, list) and isinstance(olds, list):
        now, before = cast(list[Any], news), cast(list[Any], olds)
        inputs = cast(list[Any], old_inputs) if isinstance(old_inputs, list) else []
        return [_kept(*items) for items in zip_longest(now, before, inputs)][: len(now)]
    return cast(Any, news)


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


def installed() -> dict[str, str]:
    """Package -> version of every Pulumi SDK here."""
    names = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    return {name.removeprefix("pulumi-"): version for name, version in names.items() if name.startswith("pulumi-")}


def main() -> None:
    ports: dict[str, int] = {}
    servers: list[Any] = []
    for package, version in installed().items():
        server = grpc.server(ThreadPoolExecutor(max_workers=16))
        provider_pb2_grpc.add_ResourceProviderServicer_to_server(SimulatedProvider(package, version), server)
        ports[package] = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
    print(json.dumps(ports), flush=True)
    servers[0].wait_for_termination()


if __name__ == "__main__":
    main()
