"""`python -m fleet policy`: what it prints, and its exit status."""

import json
from pathlib import Path

import pytest

from fleet.__main__ import main

DEV = Path(__file__).parents[2] / "stacks" / "Pulumi.aws-dev.yaml"


@pytest.fixture
def production(tmp_path: Path) -> Path:
    """The example under a name of production, which its images' tags and its data break."""
    stack = tmp_path / "Pulumi.prod.yaml"
    stack.write_text(DEV.read_text(encoding="utf-8"), encoding="utf-8")
    return stack


def test_a_stack_that_keeps_every_rule_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "aws-dev"]) == 0
    assert capsys.readouterr().out == "aws-dev: keeps every rule\n"


def test_a_breach_is_told_with_its_fix(production: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", str(production), "aws-dev"]) == 1
    told = capsys.readouterr().out
    assert "error: images-by-digest: " in told
    assert "fix: give images.triton with its digest" in told
    assert told.endswith("aws-dev: keeps every rule\n")


def test_the_same_as_json(production: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", str(production), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)["prod"]
    assert {one["rule"] for one in told} == {"images-by-digest", "protected-data"}
    assert all(one["mandatory"] and one["urn"].startswith("urn:pulumi:prod::") and one["fix"] for one in told)


def test_its_configuration_is_the_packs(production: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"all": "disabled", "protected-data": "advisory"}')
    assert main(["policy", str(production), "--config", str(config)]) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "Expecting property name"),
        ("[]", "no mapping of rules"),
        ('{"cost-ceiling": {"ceilings": 5}}', "cost-ceiling.ceilings"),
    ],
)
def test_a_wrong_configuration_is_wrong_usage(
    content: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    if content is not None:
        config.write_text(content)
    assert main(["policy", "aws-dev", "--config", str(config)]) == 2
    assert words in capsys.readouterr().err


def test_a_stack_that_is_not_there_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "aws-dve"]) == 2
    assert "aws-dev" in capsys.readouterr().err
