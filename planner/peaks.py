"""What a GPU's data sheet promises: bandwidths and arithmetic, data with date and source, checked on reading."""

import csv
import datetime
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from planner.gpus import CATALOG, gpus, sound


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Peaks of one whole GPU: GB/s (decimal) and dense TFLOPS, 0 where it has no such unit.

    `tflops_8` is of FP8 where `fp8`, else of INT8. `nvlink_gb_s` is of both directions together, as NVIDIA prints
    it; `pcie_gb_s` is of one direction.
    """

    memory_gb_s: float
    tflops_16: float
    tflops_8: float
    fp8: bool
    tflops_4: float
    nvlink_gb_s: float
    pcie_gb_s: float


@cache
def peaks() -> dict[str, Peaks]:
    """The peaks of every GPU of the catalogue by name."""
    return sound(CATALOG / "gpu_peaks.csv", read_peaks)


def read_peaks(path: Path) -> dict[str, Peaks]:
    """Peaks by GPU. Raises ValueError with file, line and column where a row is malformed or a GPU is missing."""
    found: dict[str, Peaks] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            place = f"{path.name}, line {reader.line_num}"
            gpu = row["gpu"]
            if gpu not in gpus() or gpu in found:
                raise ValueError(f"{place}, column gpu: {gpu!r} is not in gpus.csv, or is listed twice")
            if row["fp8"] not in ("y", "n"):
                raise ValueError(f"{place}, column fp8: {row['fp8']!r} is not y or n")
            _check_origin(row, place)
            found[gpu] = Peaks(
                memory_gb_s=_number(row, "memory_gb_s", place, least=1),
                tflops_16=_number(row, "tflops_16", place, least=1),
                tflops_8=_number(row, "tflops_8", place, least=0),
                fp8=row["fp8"] == "y",
                tflops_4=_number(row, "tflops_4", place, least=0),
                nvlink_gb_s=_number(row, "nvlink_gb_s", place, least=0),
                pcie_gb_s=_number(row, "pcie_gb_s", place, least=1),
            )
    missing = ", ".join(sorted(gpus().keys() - found.keys()))
    if missing:
        raise ValueError(f"{path.name}: no row for {missing}")
    return found


def _check_origin(row: dict[str, str], place: str) -> None:
    try:
        datetime.date.fromisoformat(row["as_of"])
    except ValueError:
        raise ValueError(f"{place}, column as_of: {row['as_of']!r} is not a date (YYYY-MM-DD)") from None
    if not row["source"]:
        raise ValueError(f"{place}, column source: is empty")


def _number(row: dict[str, str], column: str, place: str, *, least: float) -> float:
    try:
        number = float(row[column])
    except (TypeError, ValueError):
        raise ValueError(f"{place}, column {column}: {row[column]!r} is not a number") from None
    if not math.isfinite(number) or number < least:
        raise ValueError(f"{place}, column {column}: {row[column]!r} is below {least:g} or not finite")
    return number
