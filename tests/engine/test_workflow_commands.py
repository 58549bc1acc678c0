"""What the workflows run, under the real Pulumi CLI: a preview, an update, and what counts as drift."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.engine.conftest import CLI_SECONDS, ROOT, Project

STACK = "aws-small-mig"


def run(project: Project, command: str) -> subprocess.CompletedProcess[str]:
    """The step of pulumi.yml, as its runner runs it."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "pulumi.yml").read_text(encoding="utf-8"))
    (step,) = [step for step in workflow["jobs"]["pulumi"]["steps"] if step.get("name") == "Pulumi"]
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=project.folder,
        env={**project.environment, "COMMAND": command, "STACK": STACK},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * CLI_SECONDS,
        check=False,
    )


def test_preview_update_and_drift(new_program: Callable[[str], Project]) -> None:
    if not (Path(sys.prefix) / "policy" / "bin" / "python").exists():
        pytest.skip("the policy pack's environment is not in .venv/policy: `make policy` makes it")
    project = new_program(STACK)
    project.pulumi("config", "set", "--secret", "tritonfleet:hugging_face_token", "hf_only_for_this_test")

    previewed = run(project, "preview")
    assert previewed.returncode == 0, previewed.stdout
    assert project.events() == []

    merged = run(project, "drift")
    assert merged.returncode != 0, "what is merged and not deployed is drift too"

    deployed = run(project, "up")
    assert deployed.returncode == 0, deployed.stdout
    assert {operation for operation, _ in project.events()} == {"create"}

    unchanged = run(project, "drift")
    assert unchanged.returncode == 0, unchanged.stdout

    urns = {resource["urn"].rpartition("::")[2]: resource["urn"] for resource in project.state()}
    project.drift.write_text(json.dumps({urns["aws-mig-spot"]: {"scalingConfig": {"desiredSize": 2}}}))
    scaled = run(project, "drift")
    assert scaled.returncode == 0, f"the autoscaler's nodes are no drift\n{scaled.stdout}"

    project.drift.write_text(json.dumps({urns["aws-mig-spot"]: {"scalingConfig": {"maxSize": 9}}}))
    drifted = run(project, "drift")
    assert drifted.returncode != 0
    assert "maxSize" in drifted.stdout
    assert project.events() == [], "looking changes nothing"

    wrong = run(project, "destroy")
    assert wrong.returncode == 2
