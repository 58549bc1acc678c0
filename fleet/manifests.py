"""Files of a recorded stack: resources as JSON, Kubernetes objects as YAML, Helm releases as chart and values."""

import json
import re
from collections.abc import Iterator
from typing import Any, cast

import yaml

from fleet.recorder import UNKNOWN, Recording, Registered, Secret
from planner.errors import PlanError, Problem
from planner.pulumi_config import SECRET

PLACEHOLDER = "known-after-apply"
"""Stands for what only the cloud decides; being a DNS label it is legal wherever Kubernetes takes any text."""

CHART_TYPES = ("kubernetes:helm.sh/v3:Release", "kubernetes:helm.sh/v4:Chart")

# Where an object may wait for the cloud. All else (names, selectors, commands, images, numbers) the plan decides.
_MAY_BE_UNKNOWN = re.compile(
    r"(metadata|spec\.template\.metadata)\.annotations\..+"
    r"|spec\.csi\.(volumeHandle|volumeAttributes\..+)"
    r"|spec\.nfs\.(server|path)"
    r"|parameters\..+"
    r"|(data|stringData)(\..+)?"
    # An image in a registry of the account, where the stack does not say which account it is.
    r"|.*[cC]ontainers\[\d+\]\.image"
)


def files_of(recording: Recording) -> dict[str, str]:
    """Every file by its path. Raises PlanError for an object that no cluster would take as it is."""
    files = {
        "resources.json": _json([_resource(resource) for resource in recording.resources]),
        "stack-outputs.json": _json(_shown(recording.outputs)),
    }
    if recording.notes:
        files["preview.txt"] = "".join(f"{note}\n" for note in recording.notes)
    problems: list[Problem] = []
    for resource in recording.resources:
        for path, content in _kubernetes_files(resource, problems):
            if path in files:
                problems.append(
                    _problem(resource, f"{path} is written twice", "two objects would be one", "rename one")
                )
            files[path] = content
    if problems:
        raise PlanError(problems)
    return files


def _resource(resource: Registered) -> dict[str, Any]:
    always = {
        "urn": resource.urn,
        "type": resource.type,
        "name": resource.name,
        "parent": resource.parent,
        "provider": resource.provider,
        "protect": resource.protect,
        "retainOnDelete": resource.retain_on_delete,
        "dependencies": list(resource.dependencies),
        "inputs": _shown(resource.inputs),
    }
    where_given = {
        "providers": resource.providers,
        "remote": resource.remote,
        "deleteBeforeReplace": resource.delete_before_replace,
        "deletedWith": resource.deleted_with,
        "ignoreChanges": list(resource.ignore_changes),
        "replaceOnChanges": list(resource.replace_on_changes),
        "additionalSecretOutputs": list(resource.additional_secret_outputs),
        "aliases": list(resource.aliases),
        "customTimeouts": resource.timeouts,
        "version": resource.version,
    }
    return always | {key: value for key, value in where_given.items() if value}


def _shown(value: Any) -> Any:
    if value is UNKNOWN:
        return PLACEHOLDER
    if isinstance(value, Secret):
        return SECRET
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_shown(item) for item in cast(list[Any], value)]
    return value


def _kubernetes_files(resource: Registered, problems: list[Problem]) -> Iterator[tuple[str, str]]:
    if resource.type in CHART_TYPES:
        inputs = _shown(resource.inputs)
        values = inputs.pop("values", {})
        release = f"charts/{inputs.get('namespace', 'default')}-{inputs.get('name', resource.name)}"
        repository = inputs.pop("repositoryOpts", {})
        yield f"{release}/release.yaml", _yaml(inputs | ({"repository": repository["repo"]} if repository else {}))
        yield f"{release}/values.yaml", _yaml(values)
    elif resource.type.startswith("kubernetes:"):
        if not resource.custom or not {"apiVersion", "kind"} <= resource.inputs.keys():
            what = f"{resource.type} is no single object"
            problems.append(
                _problem(resource, what, "its objects could not be shown", "register each object by itself")
            )
            return
        found = list(_faults(resource))
        problems += found
        if not found:
            manifest = _manifest(resource.inputs)
            yield _path(manifest), _yaml(manifest)


def _path(manifest: dict[str, Any]) -> str:
    metadata = manifest["metadata"]
    folder = f"{metadata['namespace']}/" if "namespace" in metadata else ""
    # RBAC names may hold colons, which some file systems refuse.
    return f"kubernetes/{folder}{manifest['kind'].lower()}-{metadata['name'].replace(':', '_')}.yaml"


def _manifest(inputs: dict[str, Any]) -> dict[str, Any]:
    first = ("apiVersion", "kind", "metadata")
    manifest = {key: inputs[key] for key in first} | {key: inputs[key] for key in sorted(inputs.keys() - {*first})}
    if manifest["kind"] == "Secret":
        manifest = _masked(manifest)
    return _shown(manifest)


def _masked(secret: dict[str, Any]) -> dict[str, Any]:
    # As stringData, for a mask is not base64. With one value unknown Pulumi knows none of the keys.
    texts: dict[str, str] = {}
    for field in ("data", "stringData"):
        held = secret.get(field, {})
        held = held.value if isinstance(held, Secret) else held
        texts |= {PLACEHOLDER: PLACEHOLDER} if held is UNKNOWN else dict.fromkeys(sorted(held), SECRET)
    kept = {key: value for key, value in secret.items() if key not in ("data", "stringData")}
    return kept | {"stringData": texts}


def _faults(resource: Registered) -> Iterator[Problem]:
    metadata = resource.inputs.get("metadata")
    name = cast(dict[str, Any], metadata).get("name") if isinstance(metadata, dict) else None
    if name is None:
        yield _problem(resource, "has no metadata.name", "nothing could refer to the object", "name it in the program")
    for path, value in _leaves(resource.inputs, ""):
        if value is UNKNOWN and not _MAY_BE_UNKNOWN.fullmatch(path):
            cost = "the object could not be shown before it is deployed"
            yield _problem(resource, f"{path} is known only after deployment", cost, "decide it in the plan")
        if isinstance(value, Secret) and not (resource.inputs["kind"] == "Secret" and path in ("data", "stringData")):
            cost = "everyone who may read the object could read the secret"
            yield _problem(resource, f"{path} is secret", cost, "put it into a Secret and refer to that")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in cast(dict[str, Any], value).items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(cast(list[Any], value)):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def _problem(resource: Registered, what: str, consequence: str, fix: str) -> Problem:
    return Problem(key=f"{resource.type} {resource.name}", what=what, consequence=consequence, fix=fix)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)


class _Dumper(yaml.CSafeDumper):
    """PyYAML's, in C, with a style that every YAML parser reads as the same text."""


def _text(dumper: Any, text: str) -> Any:
    if "\n" in text:
        style = "|"
    elif re.match(r"[-+.0-9]|[yYnN~=]$", text):
        # Kubernetes' parser takes 1e3, 0o7 and 12e4567 for numbers, and some take y for true; PyYAML does not.
        style = '"'
    else:
        style = None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)  # pyright: ignore[reportUnknownMemberType] - untyped in its stubs
