"""The policy pack under the real Pulumi CLI: every example stack passes, and each rule stops a breach of it."""

import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.components.existing.api_server import Answers, api_server, kubeconfig
from tests.engine.conftest import ROOT, Project

Values = dict[str, Any]

STACKS = sorted(path.name.split(".")[1] for path in (ROOT / "stacks").glob("Pulumi.*.yaml"))
PREVIEW = ("preview", "--policy-pack", "policy", "--policy-pack-config", "policy/config.json")
DIGEST = f"sha256:{'0123456789abcdef' * 4}"


@pytest.fixture
def new_judged(new_program: Callable[[str], Project], tmp_path: Path) -> Generator[Callable[[str], Project]]:
    """A function stack -> Project whose policy pack can run, with a cluster for `local` to look at."""
    if not (Path(sys.prefix) / "policy" / "bin" / "python").exists():
        pytest.skip("the policy pack's environment is not in .venv/policy: `make policy` makes it")

    def make(stack: str) -> Project:
        project = new_program(stack)
        project.pulumi("config", "set", "--secret", "tritonfleet:hugging_face_token", "hf_only_for_this_test")
        return project

    with api_server(Answers()) as url:
        folder = tmp_path / ".kube"
        folder.mkdir()
        kubeconfig(folder / "config", url, contexts=["kind-tritonfleet"])
        yield make


@pytest.mark.parametrize("stack", STACKS)
def test_an_example_stack_keeps_every_rule(new_judged: Callable[[str], Project], stack: str) -> None:
    said = new_judged(stack).pulumi(*PREVIEW)
    # Google publishes no price for flex-start, and none at all for A3 Ultra.
    assert ("\u2705" in said) != stack.startswith("gcp"), said
    assert "tritonfleet@v0.1.0" in said
    assert "[mandatory]" not in said
    assert ("[advisory]  price-known" in said) == stack.startswith("gcp")


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A breach of `rule`, and of `also`: an edit of the stack file, or of the program (file, old text, new text)."""

    rule: str
    example: str
    stack: str
    values: Values
    source: tuple[str, str, str] | None = None
    also: str | None = None


BY_DIGEST = {"triton": f"nvcr.io/nvidia/tritonserver@{DIGEST}", "python_digest": DIGEST}
PRODUCTION = {"tritonfleet:images": BY_DIGEST}
BREACHES = [
    Planted(
        rule="no-public-endpoint",
        example="local",
        stack="local",
        values={},
        source=("components/serving/service.py", 'type="ClusterIP"', 'type="LoadBalancer"'),
    ),
    Planted(
        rule="no-public-endpoint-stack",
        example="aws-dev",
        stack="aws-dev",
        values={},
        source=(
            "components/clouds/aws/storage.py",
            "        return bucket\n",
            '        aws.s3.Bucket(f"{name}-second", opts=self._data)\n        return bucket\n',
        ),
        also="no-unencrypted-storage-stack",
    ),
    Planted(
        rule="no-unencrypted-storage",
        example="aws-dev",
        stack="aws-dev",
        values={},
        source=("components/clouds/aws/storage.py", "encrypted=True", "encrypted=False"),
    ),
    Planted(rule="images-by-digest", example="local", stack="local-prod", values={}),
    Planted(
        rule="spot-with-fallback",
        example="gcp-small-mig",
        stack="gcp-prod",
        values=PRODUCTION | {"pools[0].capacity": ["spot"]},
    ),
    Planted(rule="cost-ceiling", example="azure-small-mig", stack="azure-small-mig", values={"pools[0].max_nodes": 9}),
    Planted(
        rule="protected-data",
        example="azure-small-mig",
        stack="azure-small-mig",
        values={"tritonfleet:storage": {"keep_data": False}},
    ),
]


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.rule)
def test_a_planted_breach_fails_the_preview(new_judged: Callable[[str], Project], breach: Planted) -> None:
    project = _planted(new_judged, breach)
    said = project.pulumi(*PREVIEW, fails=True)
    assert f"[mandatory]  {breach.rule}  (" in said
    assert "consequence:" in said
    others = {line.split()[2] for line in said.splitlines() if "[mandatory]" in line} - {breach.rule}
    assert others == ({breach.also} if breach.also else set())
    assert project.events() == []


def test_no_update_gets_past_a_rule_even_without_its_preview(new_judged: Callable[[str], Project]) -> None:
    (breach,) = [one for one in BREACHES if one.rule == "no-unencrypted-storage"]
    project = _planted(new_judged, breach)
    said = project.pulumi("up", "--yes", "--skip-preview", *PREVIEW[1:], fails=True)
    assert f"[mandatory]  {breach.rule}  (" in said
    assert not {urn for _, urn in project.events() if "FileSystem" in urn}


def test_a_stack_in_production_can_keep_every_rule(new_judged: Callable[[str], Project]) -> None:
    production = Planted(rule="", example="aws-small-mig", stack="aws-prod", values=PRODUCTION)
    said = _planted(new_judged, production).pulumi(*PREVIEW)
    assert "\u2705" in said


def _planted(new_judged: Callable[[str], Project], breach: Planted) -> Project:
    project = new_judged(breach.example)
    if breach.stack != breach.example:
        stacks = project.folder / "stacks"
        given = (ROOT / "stacks" / f"Pulumi.{breach.example}.yaml").read_text(encoding="utf-8")
        project.pulumi("stack", "init", breach.stack)
        made = stacks / f"Pulumi.{breach.stack}.yaml"
        salt = made.read_text(encoding="utf-8") if made.exists() else ""
        made.write_text(salt + given, encoding="utf-8")
        project.pulumi("config", "set", "--secret", "tritonfleet:hugging_face_token", "hf_only_for_this_test")
    project.edit(breach.stack, lambda config: _edit(config, breach.values))
    if breach.source:
        file, old, new = breach.source
        text = (project.folder / file).read_text(encoding="utf-8")
        assert old in text
        (project.folder / file).write_text(text.replace(old, new), encoding="utf-8")
    return project


def _edit(config: Values, values: Values) -> None:
    for key, value in values.items():
        if key.startswith("pools[0]."):
            config["tritonfleet:pools"][0][key.partition(".")[2]] = value
        else:
            config[key] = {**config.get(key, {}), **value}
