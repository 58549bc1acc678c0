"""GPU instance types of the clouds and the zones that offer them: data with date and source, checked on reading."""

import csv
import datetime
import math
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from planner.gpus import CATALOG, gpus, sound

N = TypeVar("N", int, float)

RDMA = ("none", "efa", "tcpx", "tcpxo", "roce", "ib")
STALE_DAYS = 90
"""After which a plan warns of the age of its prices: list prices move once or twice a year, spot prices daily."""

RESERVATION_KINDS = ("odcr", "capacity-block", "flex-start", "dws-calendar", "reservation")


@dataclass(frozen=True, kw_only=True)
class InstanceType:
    """One instance type. What no source names is 0, None or False: the plan must not count on it.

    `network_gbps` is a peak on small sizes; `local_nvme_gb` is decimal; prices are of `price_region`, the
    on-demand price at `price_as_of` and the spot price at `spot_as_of` (the earliest date that its source may be of).
    """

    cloud: str
    name: str
    gpu: str
    gpu_count: int
    gpu_memory_mib: int
    vcpus: int
    memory_gib: float
    network_gbps: float | None
    rdma: str
    rdma_interfaces: int
    local_nvme_gb: int
    mig_capable: bool
    spot_supported: bool
    reservation_kinds: tuple[str, ...] | None
    price_region: str
    on_demand_usd_h: float | None
    spot_usd_h: float | None
    price_as_of: str
    spot_as_of: str


@cache
def instances(cloud: str) -> dict[str, InstanceType]:
    """The GPU instance types of a cloud by name; none for a cloud without a catalogue."""
    return {name: found for (where, name), found in _catalog().items() if where == cloud}


@cache
def zones(cloud: str, region: str) -> dict[str, frozenset[str]]:
    """Zone id -> GPU instance types offered there; empty for a region that the catalogue does not know.

    Offerings change: AWS's are those of moto 5.2.5, of 2026-10-27. A zone without GPUs is listed with none.
    """
    return {zone: types for zone, (where, types) in _zones(cloud).items() if where == region}


@cache
def regions(cloud: str) -> tuple[str, ...]:
    """The regions that the catalogue knows of a cloud."""
    return tuple(sorted({region for region, _ in _zones(cloud).values()}))


def counterparts(cloud: str, name: str) -> list[str]:
    """The cloud's types with the GPU of another cloud's type of this name, those with as many of them if there are."""
    for (_, known), theirs in _catalog().items():
        if known == name:
            same = [type_ for type_ in instances(cloud).values() if type_.gpu == theirs.gpu]
            alike = [type_ for type_ in same if type_.gpu_count == theirs.gpu_count]
            return [type_.name for type_ in alike or same]
    return []


def network_types(kind: str) -> list[str]:
    """The types of all clouds that have a network between nodes, by one of the words of RDMA."""
    return [name for (_, name), type_ in _catalog().items() if type_.rdma == kind and type_.rdma_interfaces]


def offering(cloud: str, types: Iterable[str]) -> tuple[str, ...]:
    """The regions that have GPUs, and all of these instance types in one zone or another."""
    wanted = set(types)
    found = {region: frozenset[str]().union(*zones(cloud, region).values()) for region in regions(cloud)}
    return tuple(region for region, offered in found.items() if offered and wanted <= offered)


def read_instances(path: Path) -> dict[tuple[str, str], InstanceType]:
    """A catalogue by cloud and name. Raises ValueError with file, line and column where a row is malformed."""
    found: dict[tuple[str, str], InstanceType] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for values in reader:
            row = _Row(values, f"{path.name}, line {reader.line_num}")
            instance = row.instance()
            if (instance.cloud, instance.name) in found:
                raise row.fault("instance_type", "is listed twice")
            found[instance.cloud, instance.name] = instance
    if not found:
        raise ValueError(f"{path.name} lists no instance type")
    return found


def read_zones(
    path: Path, cloud: str, *, types: Collection[str] | None = None
) -> dict[str, tuple[str, frozenset[str]]]:
    """Zone id -> region and instance types, those of the catalogue or of `types`. Raises ValueError as
    `read_instances` does."""
    known = set(instances(cloud) if types is None else types)
    found: dict[str, tuple[str, frozenset[str]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for values in reader:
            row = _Row(values, f"{path.name}, line {reader.line_num}")
            zone = row.text("zone_id")
            if zone in found:
                raise row.fault("zone_id", "is listed twice")
            offered = frozenset((values.get("types") or "").split())
            if not offered <= known:
                raise row.fault("types", "has a type that gpu_instances.csv does not list")
            row.date("as_of", needed=True)
            found[zone] = row.text("region"), offered
    return found


def stale(cloud: str, types: Iterable[InstanceType], today: datetime.date) -> str | None:
    """A warning that names the oldest price of the types and its age, None while none is older than STALE_DAYS."""
    dates = {date for type_ in types for date in (type_.price_as_of, type_.spot_as_of) if date}
    if not dates:
        return None
    age = (today - datetime.date.fromisoformat(min(dates))).days
    if age <= STALE_DAYS:
        return None
    fix = f"`python -m fleet catalog refresh --cloud {cloud}` reads them anew"
    return f"prices of {cloud} are of {min(dates)}, {age} days old: {fix}"


@cache
def _catalog() -> dict[tuple[str, str], InstanceType]:
    return sound(CATALOG / "gpu_instances.csv", read_instances)


@cache
def _zones(cloud: str) -> dict[str, tuple[str, frozenset[str]]]:
    path = CATALOG / f"{cloud}_zones.csv"
    return sound(path, lambda path: read_zones(path, cloud)) if path.is_file() else {}


class _Row:
    """A line of the file, read column by column so that an error can say which one is wrong."""

    def __init__(self, values: dict[str, str | None], place: str) -> None:
        self._values = values
        self._place = place

    def instance(self) -> InstanceType:
        name, gpu = self.text("instance_type"), self.text("gpu")
        if gpu not in gpus():
            raise self.fault("gpu", "is not in gpus.csv")
        on_demand, spot = self._optional("on_demand_usd_h", float), self._optional("spot_usd_h", float)
        rdma = self._one_of("rdma", RDMA)
        interfaces = self._optional("rdma_interfaces", int) or 0
        if rdma == "none" and interfaces:
            raise self.fault("rdma_interfaces", "must be 0 where rdma is none")
        return InstanceType(
            cloud=self.text("cloud"),
            name=name,
            gpu=gpu,
            gpu_count=self._positive("gpu_count", int),
            gpu_memory_mib=self._positive("gpu_memory_mib", int),
            vcpus=self._positive("vcpus", int),
            memory_gib=self._positive("memory_gib", float),
            network_gbps=self._optional("network_gbps", float),
            rdma=rdma,
            rdma_interfaces=interfaces,
            local_nvme_gb=self._optional("local_nvme_gb", int) or 0,
            mig_capable=self._one_of("mig_capable", ("y", "n")) == "y",
            spot_supported=self._one_of("spot_supported", ("y", "n", "")) == "y",
            reservation_kinds=self._reservation_kinds(),
            price_region=self.text("region"),
            on_demand_usd_h=on_demand,
            spot_usd_h=spot,
            price_as_of=self.date("price_as_of", needed=on_demand is not None or spot is not None),
            spot_as_of=self._spot_date() if spot is not None else "",
        )

    def fault(self, column: str, what: str) -> ValueError:
        return ValueError(f"{self._place}, column {column}: {self._values.get(column)!r} {what}")

    def text(self, column: str) -> str:
        text = self._values.get(column)
        if not text or text != text.strip():
            raise self.fault(column, "is empty or padded with spaces")
        return text

    def _one_of(self, column: str, options: tuple[str, ...]) -> str:
        text = self._values.get(column)
        if text not in options:
            raise self.fault(column, f"is not one of {', '.join(option or 'nothing' for option in options)}")
        return text

    def _optional(self, column: str, kind: Callable[[str], N]) -> N | None:
        text = self._values.get(column)
        if text == "":
            return None
        try:
            number = kind(text or "")
        except ValueError:
            raise self.fault(column, "is not a number") from None
        if not math.isfinite(number) or number < 0:
            raise self.fault(column, "is negative or not finite")
        return number

    def _positive(self, column: str, kind: Callable[[str], N]) -> N:
        number = self._optional(column, kind)
        if not number:
            raise self.fault(column, "must be above 0")
        return number

    def _reservation_kinds(self) -> tuple[str, ...] | None:
        text = self._values.get("reservation_kinds")
        if text in ("", "none"):
            return () if text else None
        kinds = tuple((text or "").split(";"))
        if not set(kinds) <= set(RESERVATION_KINDS):
            raise self.fault("reservation_kinds", f"may hold {', '.join(RESERVATION_KINDS)}, parted by ;")
        return kinds

    def _spot_date(self) -> str:
        _, _, spot_source = (self._values.get("price_source") or "").partition("spot:")
        dates = re.findall(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", spot_source)
        if not dates:
            raise self.fault("price_source", "names no date after 'spot:'")
        return min(dates)

    def date(self, column: str, *, needed: bool) -> str:
        text = self._values.get(column)
        if text == "" and not needed:
            return ""
        try:
            return datetime.date.fromisoformat(text or "").isoformat()
        except ValueError:
            raise self.fault(column, "is not a date (YYYY-MM-DD)") from None
