"""Stacks of one tree as that tree's own program registers them, as JSON. Run as a script, never imported.

    PYTHONPATH=TREE python -P render.py TREE OUT STACK...

`planner`, `components` and the program come from TREE, which may be old; what records them is the recorder beside this
file, so that two trees are recorded in one way. An encrypted value becomes a text that its ciphertext decides, of the
form of a plain one: another ciphertext reaches exactly what the value reaches.
"""

import base64
import hashlib
import importlib.util
import json
import runpy
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

NAMESPACE = "tritonfleet"
NOT_DEPLOYED = "recorded"


def main(tree: Path, out: Path, stacks: list[str]) -> None:
    recorder = _loaded("recorder_of_fleet_diff", Path(__file__).parents[1] / "recorder.py")
    out.write_text(json.dumps({stack: _rendered(recorder, tree, stack) for stack in stacks}))


def _rendered(recorder: Any, tree: Path, stack: str) -> dict[str, Any]:
    try:
        read: Any = importlib.import_module("planner.stack_file").read_stack_file
        config, secrets = _config(read(tree / "stacks" / f"Pulumi.{stack}.yaml"))

        def record(**options: Any) -> Any:
            return recorder.record(
                lambda: runpy.run_path(str(tree / "__main__.py"), run_name=NOT_DEPLOYED),
                project=NAMESPACE,
                stack=stack,
                config=config,
                secret_keys=frozenset(secrets),
                **options,
            )

        recording = record()
    except Exception as error:
        return {"problems": _problems(error)}
    deployed = _deployed(recorder, record)
    return {
        "resources": [
            asdict(resource) | {"inputs": _plain(recorder, resource.inputs), "deployed": deployed.get(resource.urn)}
            for resource in recording.resources
        ],
        "outputs": _plain(recorder, recording.outputs),
        "messages": list(recording.messages),
    }


def _deployed(recorder: Any, record: Callable[..., Any]) -> dict[str, Any]:
    """By URN, inputs as they would be once all is there, with stand-ins for what the cloud computes.

    A preview does not know a text of which one word is unknown; here another of its words shows. Empty where the
    program cannot do with stand-ins.
    """
    outputs = _loaded("outputs_of_fleet_diff", Path(__file__).with_name("outputs.py"))

    def computed(resource: Any) -> dict[str, Any]:
        found: dict[str, Any] = outputs.computed(resource.type, resource.name, recorder.plain(resource.inputs))
        if resource.type.startswith("azure-native:"):
            # Programs take these apart.
            group = f"/subscriptions/{outputs.SUBSCRIPTION}/resourceGroups/group"
            found["id"] = f"{group}/providers/{resource.name}"
            # Given as a list, answered as a map; the recorder leaves it out as well.
            found.get("identity", {}).pop("userAssignedIdentities", None)
        return found

    kubeconfig = base64.b64encode(b'{"apiVersion": "v1", "kind": "Config"}').decode()
    answers = {
        f"azure-native:containerservice:listManagedCluster{who}Credentials": {
            "kubeconfigs": [{"name": "cluster", "value": kubeconfig}]
        }
        for who in ("Admin", "User")
    }
    try:
        recording = record(preview=False, computed=computed, answers=answers)
    except Exception:
        return {}
    return {resource.urn: _plain(recorder, resource.inputs) for resource in recording.resources}


def _problems(error: BaseException) -> list[dict[str, str]]:
    """The refusals of a planner of any version, or the one error of a program that fails otherwise."""
    for cause in (error, error.__cause__):
        found = cast(tuple[Any, ...], getattr(cause, "problems", ()))
        if found:
            return [{name: str(getattr(one, name)) for name in ("key", "what", "consequence", "fix")} for one in found]
    where = traceback.extract_tb(error.__traceback__)[-1]
    return [
        {
            "key": f"{Path(where.filename).name}:{where.lineno}",
            "what": f"{type(error).__name__}: {error}",
            "consequence": "this revision registers nothing that could be compared",
            "fix": "this is a fault of the program at that revision, not of its stack",
        }
    ]


def _config(values: dict[str, Any]) -> tuple[dict[str, str], set[str]]:
    """What Pulumi would hand to the program once it has decrypted all, and the keys that hold secrets."""
    config: dict[str, str] = {}
    secrets: set[str] = set()
    for name, value in values.items():
        key, encrypted = f"{NAMESPACE}:{name}", _is_encrypted(value)
        if encrypted or (isinstance(value, dict) and any(map(_is_encrypted, cast(dict[str, Any], value).values()))):
            secrets.add(key)
        if encrypted and name == "api_keys":
            # A mapping whose names are encrypted too; limits are of names that it has.
            names: Any = values.get("key_limits") or ["default"]
            config[key] = json.dumps({str(one): _decrypted(value) for one in names})
        else:
            plain = _decrypted(value)
            config[key] = plain if isinstance(plain, str) else json.dumps(plain, default=str)
    return config, secrets


def _decrypted(value: Any) -> Any:
    if _is_encrypted(value):
        return "sk-" + hashlib.sha256(str(value["secure"]).encode()).hexdigest()
    if isinstance(value, dict):
        return {key: _decrypted(item) for key, item in cast(dict[str, Any], value).items()}
    return value


def _is_encrypted(value: Any) -> bool:
    return isinstance(value, dict) and set(cast(dict[str, Any], value)) == {"secure"}


def _plain(recorder: Any, value: Any) -> Any:
    """JSON of a recorded value: what is unknown, and of what is secret no more than a digest."""
    if value is recorder.UNKNOWN:
        return {"$unknown": True}
    if isinstance(value, recorder.Secret):
        inner = _plain(recorder, value.value)
        text = json.dumps(inner, sort_keys=True)
        return {"$secret": hashlib.sha256(text.encode()).hexdigest()[:16], "$unknown": "$unknown" in text}
    if isinstance(value, dict):
        return {key: _plain(recorder, item) for key, item in cast(dict[str, Any], value).items()}
    return [_plain(recorder, item) for item in cast(list[Any], value)] if isinstance(value, list) else value


def _loaded(name: str, path: Path) -> Any:
    """A module of this revision, under a name that nothing of the tree has."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
