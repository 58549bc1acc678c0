"""checkov's checks of the manifests: what fails is in docs/security.md with its reason, and nothing else does."""

import json
import re
import subprocess
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.compliance.workloads import DEPLOYED, objects, pods_of

ROOT = Path(__file__).parents[2]
CHECKOV = ROOT / ".venv" / "checkov" / "bin" / "checkov"

Failed = set[tuple[str, str]]
"""Checks with the object that fails each, as `namespace/name`."""


def _documented() -> Failed:
    """Checks with patterns of the objects that may fail them."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (CKV[^|]+) \| ([^|]+) \|", text, flags=re.MULTILINE)
    return {
        (check, where.strip("`"))
        for checks, places in rows
        for check in checks.split(", ")
        for where in places.split(", ")
    }


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Failed]:
    """A function stack -> what fails in it."""
    if not CHECKOV.is_file():
        pytest.skip("checkov is not in .venv/checkov: `make setup` installs it")

    @cache
    def of(stack: str) -> Failed:
        return _failed(stack, tmp_path_factory.mktemp(stack))

    return of


def _failed(stack: str, folder: Path) -> Failed:
    yaml = YAML(typ="safe", pure=True)
    # checkov knows no LeaderWorkerSet: it sees the pods that one makes.
    seen = [
        made for item in objects(stack) for made in (pods_of(item) if item["kind"] == "LeaderWorkerSet" else [item])
    ]
    for index, item in enumerate(seen):
        with (folder / f"{index}.yaml").open("w") as file:
            yaml.dump(item, file)  # pyright: ignore[reportUnknownMemberType]
    command = [CHECKOV, "--directory", folder, "--framework", "kubernetes", "--output", "json", "--quiet"]
    done = subprocess.run([*command, "--skip-download"], capture_output=True, text=True, timeout=300, check=False)
    checks = json.loads(done.stdout)["results"]["failed_checks"]
    # A resource is `Kind.namespace.name`.
    return {(check["check_id"], check["resource"].partition(".")[2].replace(".", "/", 1)) for check in checks}


@pytest.mark.parametrize("stack", DEPLOYED)
def test_only_documented_checks_fail(failed: Callable[[str], Failed], stack: str) -> None:
    documented = _documented()
    assert {one for one in failed(stack) if not _is_among(one, documented)} == set()


def test_the_document_lists_no_more_than_fails(failed: Callable[[str], Failed]) -> None:
    every = {one for stack in DEPLOYED for one in failed(stack)}
    assert {one for one in _documented() if not any(_is_among(found, {one}) for found in every)} == set()


def _is_among(found: tuple[str, str], documented: Failed) -> bool:
    return any(found[0] == check and fnmatch(found[1], where) for check, where in documented)
