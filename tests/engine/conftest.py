"""A Pulumi project for each test, with a real CLI, a file backend, and the simulated cloud as its plugins."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.engine.simulated.provider import installed

ROOT = Path(__file__).parents[2]
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

    def edit(self, stack: str, edit: Callable[[dict[str, Any]], object]) -> None:
        """Edits a stack file; `edit` changes the values below `config`, whose keys have the program's prefix."""
        file, yaml = self.folder / "stacks" / f"Pulumi.{stack}.yaml", YAML()
        content: dict[str, Any] = yaml.load(file)  # pyright: ignore[reportUnknownMemberType]
        edit(content["config"])
        yaml.dump(content, file)  # pyright: ignore[reportUnknownMemberType]

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


@dataclass(frozen=True, kw_only=True)
class SimulatedClouds:
    """Every provider, running: the port of each package, and the files of provider.py."""

    ports: dict[str, int]
    log: Path
    drift: Path


@pytest.fixture(scope="session")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Generator[SimulatedClouds]:
    """One process for all tests: each plugin of its own would import a whole SDK anew for each command."""
    folder = tmp_path_factory.mktemp("clouds")
    log, drift = folder / "cloud.jsonl", folder / "drift.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.simulated.provider"],
        cwd=ROOT,
        env={**os.environ, "SIMULATED_CLOUD_LOG": str(log), "SIMULATED_CLOUD_DRIFT": str(drift)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        yield SimulatedClouds(ports=json.loads(process.stdout.readline()), log=log, drift=drift)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def new_project(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], Project]:
    """A function stack -> Project with this repository's Pulumi.yaml and stack files, but no program yet."""
    skip_without_cli()
    project = make_project(tmp_path, request.getfixturevalue("clouds"))

    def make(stack: str) -> Project:
        project.pulumi("stack", "init", stack)
        return project

    return make


def skip_without_cli() -> None:
    if not (shutil.which("pulumi") and shutil.which("pulumi-language-python")):
        pytest.skip("no `pulumi` with `pulumi-language-python` on PATH: install the Pulumi CLI to run these")


def make_project(tmp_path: Path, clouds: SimulatedClouds) -> Project:
    """A project with this repository's Pulumi.yaml and stack files, but no program and no stack yet."""
    for file in (clouds.log, clouds.drift):
        file.unlink(missing_ok=True)
    home = tmp_path / "home"
    _install_plugins(home / "plugins", clouds.ports)
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
        # The state is written when a command ends, and not at each of its steps.
        "PULUMI_EXPERIMENTAL": "true",
        "PULUMI_SKIP_CHECKPOINTS": "true",
    }
    return Project(folder=project, environment=environment, log=clouds.log, drift=clouds.drift)


@pytest.fixture
def new_program(new_project: Callable[[str], Project]) -> Callable[[str], Project]:
    """A function stack -> Project with this repository's program."""

    def make(stack: str) -> Project:
        return with_program(new_project(stack))

    return make


def with_program(project: Project) -> Project:
    """The project, with this repository's program."""
    shutil.copy(ROOT / "__main__.py", project.folder)
    for room in ("components", "fleet", "frontend", "planner", "policy", "model_repo", "requirements", "runtime"):
        shutil.copytree(ROOT / room, project.folder / room)
    return project


def _install_plugins(folder: Path, ports: dict[str, int]) -> None:
    # For each Pulumi SDK that is installed here, for the CLI asks for every one of them.
    for package, version in installed().items():
        plugin = folder / f"resource-{package}-v{version}" / f"pulumi-resource-{package}"
        plugin.parent.mkdir(parents=True)
        # The engine takes the port that a plugin prints, and kills the plugin at its own end.
        plugin.write_text(f"#!/bin/sh\necho {ports[package]}\nexec sleep {4 * CLI_SECONDS}\n")
        plugin.chmod(0o755)
