"""What a GPU's name says about it: memory, compute capability, MIG profiles."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from planner.errors import PlanError, Problem

T = TypeVar("T")

CATALOG = Path(__file__).parent / "catalog"

MIG_NAMES = ("gke_partition_size", "aks_instance_profile")

# TensorRT-LLM's support matrix begins with Ampere (SM80).
OLDEST_SUPPORTED = (8, 0)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """`memory_mib` is the lowest figure of any cloud; `mig_gib` is a profile's usable memory, None if unknown.

    `mig_slices` is how many instances of a profile a GPU divides into, `mig_resource` what Kubernetes calls one.
    `mig_names` are clouds' own names of profiles by catalogue column, "" where the cloud cannot make one.
    """

    name: str
    memory_mib: int
    compute_capability: str
    mig_gib: dict[str, float | None]
    mig_slices: dict[str, int]
    mig_resource: dict[str, str]
    mig_names: dict[str, dict[str, str]]

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability as a number that compares: 10.3 is above 9.0."""
        major, minor = self.compute_capability.split(".")
        return int(major), int(minor)


@cache
def gpus() -> dict[str, Gpu]:
    """Every known GPU by name."""
    profiles = sound(CATALOG / "mig_profiles.csv", _profiles)

    def read(path: Path) -> dict[str, Gpu]:
        return {row["gpu"]: _gpu(row, profiles.get(row["gpu"], [])) for row in _rows(path)}

    return sound(CATALOG / "gpus.csv", read)


def sound(path: Path, read: Callable[[Path], T]) -> T:
    """What a file of the catalogue reads as. Raises PlanError where it is malformed, so that no plan rests on it."""
    try:
        return read(path)
    except (OSError, ValueError, KeyError, csv.Error) as error:
        what = f"column {error} is missing" if isinstance(error, KeyError) else str(error)
        raise PlanError(
            [
                Problem(
                    key=f"planner/catalog/{path.name}",
                    what=what,
                    consequence="no instance type, price or GPU can be planned with",
                    fix=f"git checkout -- planner/catalog/{path.name}",
                )
            ]
        ) from error


def _profiles(path: Path) -> dict[str, list[dict[str, str]]]:
    """Rows by GPU; a number that is none is found here, where the error can name the file."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in _rows(path):
        int(row["max_instances"])
        float(row["memory_gib"] or 0)
        columns = ("gpu", "profile", "max_instances", "memory_gib", "k8s_resource", *MIG_NAMES)
        found.setdefault(row["gpu"], []).append({column: row[column] for column in columns})
    return found


def _gpu(row: dict[str, str], profiles: list[dict[str, str]]) -> Gpu:
    return Gpu(
        name=row["gpu"],
        memory_mib=int(row["memory_mib"]),
        compute_capability=row["compute_capability"],
        mig_gib={mig["profile"]: float(mig["memory_gib"]) if mig["memory_gib"] else None for mig in profiles},
        mig_slices={mig["profile"]: int(mig["max_instances"]) for mig in profiles},
        mig_resource={mig["profile"]: mig["k8s_resource"] for mig in profiles},
        mig_names={column: {mig["profile"]: mig[column] for mig in profiles} for column in MIG_NAMES},
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
