"""Reads a Pulumi stack file; planner/config.py says what its values mean."""

import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning

from planner.config import NAMESPACE, StackConfig
from planner.errors import PlanError, Problem, did_you_mean, shown
from planner.parsing import parse_stack, stack_from_mapping
from planner.untyped import as_mapping

MAX_STACK_FILE_BYTES = 128 << 10


def load_stack(path: Path) -> StackConfig:
    """The stack file at `path`; raises PlanError with every problem in it."""
    return stack_from_mapping(read_stack_file(path))


def read_stack_file(path: Path) -> dict[str, Any]:
    """The `tritonfleet:` values of a Pulumi stack file, namespace removed; other namespaces are not ours to judge."""
    document = _read_yaml(path)
    config = as_mapping(document).get("config")
    if not isinstance(config, dict):
        raise PlanError([_no_config(path, document)])
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in as_mapping(config).items():
        if not isinstance(key, str):
            problems.append(_foreign_key(shown(key), "a configuration key is a name, not a value"))
            continue
        namespace, _, name = key.rpartition(":")
        if namespace == NAMESPACE:
            values[name] = value
            if name == "hugging_face_token" and isinstance(value, str):
                problems.append(_plain_secret(key, key))
            keys = {key: item for key, item in as_mapping(value).items() if key != "secure"}
            if name == "api_keys" and any(isinstance(item, str) for item in (value, *keys.values())):
                problems.append(_plain_secret(key, f"--path {key}.NAME"))
        elif not namespace and name in StackConfig.model_fields:
            problems.append(_foreign_key(key, f"did you mean {NAMESPACE}:{name}?"))
        elif namespace and did_you_mean(namespace, [NAMESPACE], ""):
            problems.append(_foreign_key(shown(key)[1:-1], f"did you mean {NAMESPACE}:{shown(name)[1:-1]}?"))
    if problems:
        raise PlanError([*problems, *parse_stack(values).problems])
    return values


def _plain_secret(key: str, target: str) -> Problem:
    return Problem(
        key=key,
        what="stands in the file as plain text",
        consequence="everyone who reads the repository could use it",
        fix=f"run `pulumi config set --secret {target}`, and revoke what was committed",
    )


def _read_yaml(path: Path) -> object:
    def refuse(what: str, fix: str) -> PlanError:
        return PlanError(
            [Problem(key=str(path), what=what, consequence="no model of this stack can be planned", fix=fix)]
        )

    try:
        with path.open("rb") as file:
            content = file.read(MAX_STACK_FILE_BYTES + 1)
        if len(content) > MAX_STACK_FILE_BYTES:
            raise refuse(f"larger than {MAX_STACK_FILE_BYTES >> 10} KiB", "give a stack file: Pulumi.<stack>.yaml")
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse(f"not UTF-8 text (byte {error.start})", "save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        raise refuse(f"cannot be read: {reason}", "give the path of a stack file, stacks/Pulumi.<stack>.yaml") from None
    try:
        # A reused anchor is legal YAML; ruamel would warn of it on standard error.
        with warnings.catch_warnings(action="ignore", category=ReusedAnchorWarning):
            return YAML(typ="safe", pure=True).load(text)  # pyright: ignore[reportUnknownMemberType]
    except MarkedYAMLError as error:
        raise refuse(_where_and_why(error), "correct that line") from None
    except RecursionError:
        raise refuse("nested too deeply", "a stack file needs at most six levels") from None
    except Exception as error:
        # ruamel raises many types for text that is no YAML: ValueError for 2001-99-99, AssertionError, AttributeError.
        raise refuse(f"not valid YAML: {shown(str(error))[1:-1]}", "correct the file") from None


def _where_and_why(error: Any) -> str:
    # Any: ruamel's errors carry no types.
    mark = error.problem_mark or error.context_mark
    return f"not valid YAML{f' at line {mark.line + 1}' if mark else ''}: {shown(str(error.problem))[1:-1]}"


def _no_config(path: Path, document: object) -> Problem:
    found = "the file is empty" if document is None else "there is no mapping `config` in it"
    return Problem(
        key=f"{path}: config",
        what=found,
        consequence="the stack names no model to serve",
        fix=f"write `config:` with `{NAMESPACE}:cloud` and `{NAMESPACE}:models` under it",
    )


def _foreign_key(key: str, fix: str) -> Problem:
    return Problem(
        key=f"config.{key}",
        what=f"not a key of {NAMESPACE}",
        consequence="it would be ignored, and a default used in its place",
        fix=fix,
    )
