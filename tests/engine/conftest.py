"""A Pulumi project for each test, with a real CLI, a file backend, and the simulated cloud as its plugins."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROVIDER = Path(__file__).with_name("simulated_provider.py")
CLI_SECONDS = 150


@dataclass(frozen=True, kw_only=True)
class Project:
    """A folder with a Pulumi program, and the environment in which the CLI works on it."""

    folder: Path
    environment: dict[str, str]
    log: Path
    drift: Path

    def pulumi(self, *arguments: str, fails: bool = False) -> str:
        """Runs the CLI to its end and returns what it printed; a test that expects no failure fails with that text."""
        done = subprocess.run(
            ["pulumi", *arguments, "--non-interactive", "--color", "never"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CLI_SECONDS,
        )
        assert (done.returncode != 0) == fails, f"pulumi {' '.join(arguments)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def preview(self) -> list[tuple[str, str]]:
        """The steps that the engine plans: (operation, URN), without those that leave or find a resource as it is."""
        text = self.pulumi("preview", "--json")
        steps: list[dict[str, Any]] = json.loads(text[text.index("{") :])["steps"]
        return [(step["op"], step["urn"]) for step in steps if step["op"] not in ("same", "refresh")]

    def events(self) -> list[tuple[str, str]]:
        """What happened in the simulated cloud since the last call, in order: (operation, URN)."""
        if not self.log.exists():
            return []
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        self.log.unlink()
        return [(line["operation"], line["urn"]) for line in lines]

    def state(self) -> list[dict[str, Any]]:
        """The resources of the stack's state, as the engine keeps them."""
        return json.loads(self.pulumi("stack", "export"))["deployment"].get("resources", [])


@pytest.fixture
def new_project(tmp_path: Path) -> Callable[[str], Project]:
    """A function stack -> Project with this repository's Pulumi.yaml and stack files, but no program yet."""
    if not (shutil.which("pulumi") and shutil.which("pulumi-language-python")):
        pytest.skip("no `pulumi` with `pulumi-language-python` on PATH: install the Pulumi CLI to run these")
    home = tmp_path / "home"
    _install_plugins(home / "plugins")
    project = tmp_path / "project"
    shutil.copytree(ROOT / "stacks", project / "stacks")
    shutil.copy(ROOT / "Pulumi.yaml", project)
    (project / ".venv").symlink_to(sys.prefix)
    backend = tmp_path / "backend"
    backend.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PULUMI_HOME": str(home),
        "PULUMI_BACKEND_URL": f"file://{backend}",
        "PULUMI_CONFIG_PASSPHRASE": "for this test only",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        "SIMULATED_CLOUD_LOG": str(tmp_path / "cloud.jsonl"),
        "SIMULATED_CLOUD_DRIFT": str(tmp_path / "drift.json"),
    }

    def make(stack: str) -> Project:
        made = Project(
            folder=project, environment=environment, log=tmp_path / "cloud.jsonl", drift=tmp_path / "drift.json"
        )
        made.pulumi("stack", "init", stack)
        return made

    return make


def _install_plugins(folder: Path) -> None:
    # For each Pulumi SDK that is installed here, for the CLI asks for every one of them.
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"].lower().replace("_", "-")
        if name.startswith("pulumi-"):
            package = name.removeprefix("pulumi-")
            plugin = folder / f"resource-{package}-v{distribution.version}" / f"pulumi-resource-{package}"
            plugin.parent.mkdir(parents=True)
            plugin.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PROVIDER}" {package} "$@"\n')
            plugin.chmod(0o755)
