"""A catalogue that is old or malformed, as somebody meets it who plans."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fleet.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("gpu_instances.csv", b"", "lists no instance type"),
        ("gpu_instances.csv", b"cloud,instance_type\naws,p5.48xlarge\n", "line 2, column gpu: None is empty"),
        ("gpu_instances.csv", b"\xff\xfe\x00", "codec can't decode"),
        ("aws_zones.csv", b"zone_id,region,types,as_of,source\nuse1-az1,us-east-1,p9.huge,2026-10-27,x\n", "p9.huge"),
        ("gpus.csv", b"gpu\nT4\n", "column 'memory_mib' is missing"),
        ("gpus.csv", b"gpu,memory_mib,compute_capability\nT4,much,7.5\n", "'much'"),
        ("gpu_peaks.csv", b"gpu,memory_gb_s\nT4,320\n", "column 'fp8' is missing"),
        ("spot_interruptions.csv", b"cloud,instance_type\naws,p9.huge\n", "column 'as_of' is missing"),
        ("egress.csv", b"cloud,usd_per_gb,as_of,source\naws,-1,2026-11-21,x\n", "is not a number from 0 to 10"),
        ("mig_profiles.csv", b"profile\n1g.5gb\n", "column 'max_instances' is missing"),
    ],
)
def test_a_malformed_catalogue_is_one_error(tmp_path: Path, file: str, content: bytes, says: str) -> None:
    for room in ("planner", "fleet", "runtime", "stacks"):
        shutil.copytree(ROOT / room, tmp_path / room)
    (tmp_path / "planner" / "catalog" / file).write_bytes(content)
    # Some files are read for a stack as it is, some for a search.
    target = ["--tokens-per-second", "100", "--roofline", "--model", "qwen25-7b"]
    searched = target if file in ("gpu_peaks.csv", "spot_interruptions.csv", "egress.csv") else []
    command = [sys.executable, "-m", "fleet", "plan", "aws-small-mig", *searched]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"planner/catalog/{file}: " in done.stderr
    assert says in done.stderr
    assert f"git checkout -- planner/catalog/{file}" in done.stderr


def test_a_plan_warns_of_old_prices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "aws-dev"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"warning: prices of aws are of 2026-07-20, \d+ days old: `python -m fleet catalog refresh", said)
    assert main(["plan", "aws-small-mig", "--model", "qwen25-7b", "--tokens-per-second", "100", "--roofline"]) == 0
    assert "warning: prices of aws are of 2026-07-20" in capsys.readouterr().err
    assert main(["plan", "local"]) == 0
    assert capsys.readouterr().err == "", "a laptop has no prices"
