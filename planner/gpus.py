"""What a GPU's name says about it: memory, compute capability, MIG profiles."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CATALOG = Path(__file__).parent / "catalog"

# TensorRT-LLM's support matrix begins with Ampere (SM80).
OLDEST_SUPPORTED = (8, 0)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """`memory_mib` is the lowest figure of any cloud; `mig_gib` is a profile's usable memory, None if unknown."""

    name: str
    memory_mib: int
    compute_capability: str
    mig_gib: dict[str, float | None]

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability as a number that compares: 10.3 is above 9.0."""
        major, minor = self.compute_capability.split(".")
        return int(major), int(minor)


@cache
def gpus() -> dict[str, Gpu]:
    """Every known GPU by name."""
    mig: dict[str, dict[str, float | None]] = {}
    for row in _rows("mig_profiles.csv"):
        mig.setdefault(row["gpu"], {})[row["profile"]] = float(row["memory_gib"]) if row["memory_gib"] else None
    return {
        row["gpu"]: Gpu(
            name=row["gpu"],
            memory_mib=int(row["memory_mib"]),
            compute_capability=row["compute_capability"],
            mig_gib=mig.get(row["gpu"], {}),
        )
        for row in _rows("gpus.csv")
    }


def _rows(name: str) -> list[dict[str, str]]:
    with (CATALOG / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
