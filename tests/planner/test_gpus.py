"""The shipped GPU data against itself, and against the compiled catalogue where that lies beside the checkout."""

import csv
from pathlib import Path

import pytest

from planner.gpus import CATALOG, gpus

COMPILED = Path(__file__).parents[3] / "shared" / "data"


def test_capabilities_are_nvidias() -> None:
    known = {name: gpu.compute_capability for name, gpu in gpus().items()}
    assert known["T4"] == "7.5"
    assert known["V100-32GB"] == "7.0"
    assert known["A100-80GB"] == known["A30-24GB"] == "8.0"
    assert known["A10G"] == known["A10-24GB"] == "8.6"
    assert known["L4"] == known["L40S"] == "8.9"
    assert known["H100-80GB"] == known["H200-141GB"] == "9.0"
    assert known["B200-180GB"] == known["GB200-186GB"] == "10.0"
    assert known["B300-288GB"] == "10.3"
    assert gpus()["B300-288GB"].capability > gpus()["H100-80GB"].capability


def test_a_mig_slice_is_smaller_than_its_gpu() -> None:
    for gpu in gpus().values():
        for profile, gib in gpu.mig_gib.items():
            assert gib is None or gib * 1024 < gpu.memory_mib, (gpu.name, profile)


def test_every_row_says_when_and_where_it_was_read() -> None:
    for name, source in (("gpus.csv", "memory_source"), ("mig_profiles.csv", "source")):
        with (CATALOG / name).open(encoding="utf-8") as file:
            assert all(row["as_of"] and row[source] for row in csv.DictReader(file))


def test_memory_is_the_lowest_over_clouds() -> None:
    if not COMPILED.is_dir():
        pytest.skip("the compiled instance catalogue is not beside this checkout")
    with (COMPILED / "gpu_instances.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in {row["gpu"] for row in rows}:
        assert gpus()[name].memory_mib == min(int(row["gpu_memory_mib"]) for row in rows if row["gpu"] == name)
