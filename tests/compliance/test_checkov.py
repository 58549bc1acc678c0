"""checkov's checks of the manifests: what fails is in docs/security.md with its reason, and nothing else does."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.compliance.workloads import DEPLOYED, objects, pods_of

ROOT = Path(__file__).parents[2]
CHECKOV = ROOT / ".venv" / "checkov" / "bin" / "checkov"
MOST_FAILED_KINDS = 3


def _documented() -> set[str]:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| (CKV\w+) \|", text, flags=re.MULTILINE))


def _failed(stack: str, folder: Path) -> dict[str, set[str]]:
    yaml = YAML(typ="safe", pure=True)
    # checkov knows no LeaderWorkerSet: it sees the pods that one makes.
    seen = [
        made for item in objects(stack) for made in (pods_of(item) if item["kind"] == "LeaderWorkerSet" else [item])
    ]
    for index, item in enumerate(seen):
        with (folder / f"{index}.yaml").open("w") as file:
            yaml.dump(item, file)  # pyright: ignore[reportUnknownMemberType]
    command = [
        str(CHECKOV),
        "--directory",
        str(folder),
        "--framework",
        "kubernetes",
        "--output",
        "json",
        "--quiet",
        "--skip-download",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    results = json.loads(done.stdout)["results"]
    failed: dict[str, set[str]] = {}
    for check in results["failed_checks"]:
        failed.setdefault(check["check_id"], set()).add(check["resource"])
    return failed


@pytest.mark.parametrize("stack", DEPLOYED)
def test_only_documented_checks_fail(stack: str, tmp_path: Path) -> None:
    if not CHECKOV.is_file():
        pytest.skip("checkov is not in .venv/checkov: `make setup` installs it")
    failed = _failed(stack, tmp_path)
    assert failed.keys() <= _documented(), failed
    assert len(failed) <= MOST_FAILED_KINDS


def test_the_document_lists_no_more_than_may_fail() -> None:
    assert 0 < len(_documented()) <= MOST_FAILED_KINDS
