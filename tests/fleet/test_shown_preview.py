"""What a preview says, as `pulumi preview` and `fleet synth` show it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pulumi", reason="Pulumi's packages are not installed: `make setup` installs them")

from fleet.__main__ import main
from fleet.preview import preview_output, preview_text
from planner.plan import plan_file
from planner.preview import previews

ROOT = Path(__file__).parents[2]
STACKS = sorted((ROOT / "stacks").glob("Pulumi.*.yaml"))


@pytest.mark.parametrize("path", STACKS, ids=lambda path: path.name.split(".")[1])
def test_every_stack_has_figures(path: Path) -> None:
    fleet = plan_file(path)
    found = previews(fleet)
    text, output = preview_text(fleet, found), preview_output(found)
    for model in fleet.models:
        assert f"\n{model.name}:\n" in f"\n{text}"
        assert model.engine.id in text
        assert output[model.name]["engine"] == model.engine.id
        assert set(output[model.name]["cold_start_seconds"]) >= {"engine_load", "initialise"}
    assert text.count("cold start") == len(fleet.models)
    # What a stack output holds is plain, and has no more digits than anybody reads.
    assert json.loads(json.dumps(output)) == output
    if fleet.cloud != "existing":
        assert "on demand" in text
        assert text.count("  drift  ") == len(fleet.models)


def test_figures_do_not_hang_on_the_order_of_hashes() -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert "drift" in said[0]


PROGRAM = """
from pathlib import Path
from fleet.preview import preview_output, preview_text
from planner.plan import plan_file
from planner.preview import previews
plan = plan_file(Path("stacks/Pulumi.azure-small-mig.yaml"))
found = previews(plan)
print(preview_text(plan, found), preview_output(found))
"""


def test_synth_shows_and_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth", "aws-dev", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    fleet = plan_file(ROOT / "stacks" / "Pulumi.aws-dev.yaml")
    text = preview_text(fleet, previews(fleet))
    assert said.startswith(text)
    assert (tmp_path / "out" / "preview.txt").read_text() == f"{text}\n"
    outputs = json.loads((tmp_path / "out" / "stack-outputs.json").read_text())
    assert outputs["estimate"] == preview_output(previews(fleet))


def test_synth_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth", "aws-dev", "--out", str(tmp_path / "out"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["estimate"]["smollm2"]["usd_per_month_on_demand"] == 588
