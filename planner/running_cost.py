"""What a month of a choice costs: nodes, what interruptions waste, idle replicas, engine builds, traffic out."""

import csv
import datetime
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from planner.cloud_config import StorageConfig
from planner.clouds import cloud_facts
from planner.clouds.facts import ReadRate
from planner.gpus import CATALOG, sound
from planner.instances import InstanceType, instances
from planner.pricing import HOURS_PER_MONTH
from planner.serving import INITIALISE_SECONDS, NODE_START_SECONDS, build_seconds
from planner.shapes import Shape
from planner.site import QUICK_SECONDS

UNKNOWN_INTERRUPTIONS = 0.30
"""Assumption: share of spot nodes reclaimed in a month where no source says, or says "more than 20 %"."""

ENGINE_MONTHS = 3
"""Assumption: an engine serves for a quarter, until a new model revision or TensorRT-LLM version."""

EGRESS_BYTES_PER_TOKEN = 300
"""Assumption: every answer is streamed to the internet, a chunk a token (240 bytes of JSON) with its headers."""


@dataclass(frozen=True, kw_only=True)
class Interruptions:
    """Share of spot nodes reclaimed in a month, and what says so."""

    per_month: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Starting:
    """Seconds from a lost node until its group answers again, `load` of them for reading weights: estimates."""

    load_seconds: float
    restart_seconds: float
    storage: str
    source: str


@dataclass(frozen=True, kw_only=True)
class MonthlyCost:
    """USD per month of 730 hours. `idle` is of `nodes`: what the target does not use of them; the rest adds up.

    `build_once` is one engine's build, of which a month bears 1/ENGINE_MONTHS.
    """

    nodes: float
    interruptions: float
    egress: float
    build_once: float
    idle: float

    @property
    def total(self) -> float:
        return self.nodes + self.interruptions + self.egress + self.build_once / ENGINE_MONTHS


def starting(shape: Shape, instance: InstanceType, storage: StorageConfig | None) -> Starting:
    """How a group starts; without `storage`, from the cloud's NFS where that is quick enough, else from its Lustre."""
    cloud = cloud_facts(instance.cloud)
    kinds = [storage] if storage else [StorageConfig(shared="nfs"), StorageConfig(shared="lustre")]
    chosen, load, rate = kinds[0], math.inf, ReadRate(gb_s=0, source="")
    for kind in kinds:
        # As the whole stack is planned (planner.site): with RDMA interfaces a node's network is not what limits.
        network = None if instance.rdma_interfaces else instance.network_gbps
        rate = cloud.shared_read_rate(kind, nodes=shape.nodes, network_gbps=network)
        chosen, load = kind, shape.weights_bytes / 1e9 / rate.gb_s
        if load <= QUICK_SECONDS:
            break
    restart = NODE_START_SECONDS + load + INITIALISE_SECONDS
    return Starting(load_seconds=load, restart_seconds=restart, storage=chosen.shared, source=rate.source)


def lost_share(shape: Shape, instance: InstanceType, start: Starting) -> float:
    """Expected share of the time that a replica on spot nodes spends coming back: any of its nodes ends it whole."""
    per_hour = shape.nodes * interruptions(instance).per_month / HOURS_PER_MONTH
    hours = start.restart_seconds / 3600
    return per_hour * hours / (1 + per_hour * hours)


def monthly_cost(
    shape: Shape,
    instance: InstanceType,
    start: Starting,
    *,
    usd_h: float,
    lost: float,
    replicas: int,
    used: float,
    output_tokens_per_s: float,
) -> MonthlyCost:
    """The cost of `replicas` on nodes of `usd_h` each, of whose output the share `used` is asked for."""
    whole = nodes_of(shape, replicas)
    nodes = whole * usd_h * HOURS_PER_MONTH
    # Of the paid slots some hold no replica, and replicas are not busy all the time.
    slots = whole / shape.nodes * shape.per_node
    gigabytes = output_tokens_per_s * 3600 * HOURS_PER_MONTH * EGRESS_BYTES_PER_TOKEN / 1e9
    return MonthlyCost(
        nodes=nodes,
        # What was paid for while groups came back is bought once more.
        interruptions=nodes * lost / (1 - lost) if lost < 1 else math.inf,
        egress=gigabytes * egress_usd_per_gb(instance.cloud),
        build_once=build_usd(shape, start, usd_h),
        idle=nodes * (1 - used * replicas / slots),
    )


def nodes_of(shape: Shape, replicas: int) -> int:
    """Nodes that hold so many replicas."""
    return replicas * shape.nodes if shape.nodes > 1 else -(-replicas // shape.per_node)


def build_usd(shape: Shape, start: Starting, usd_h: float) -> float:
    """One engine's build, on the nodes of one group; the PyTorch backend builds none."""
    if shape.model.backend != "tensorrt":
        return 0.0
    return build_seconds(shape.weights_bytes, start.load_seconds) / 3600 * shape.nodes * usd_h


def interruptions(instance: InstanceType) -> Interruptions:
    """What is known of the type's spot nodes, else UNKNOWN_INTERRUPTIONS."""
    known = _interruptions().get((instance.cloud, instance.name))
    if known:
        return known
    return Interruptions(per_month=UNKNOWN_INTERRUPTIONS, source=f"assumption: {UNKNOWN_INTERRUPTIONS:.0%} a month")


def egress_usd_per_gb(cloud: str) -> float:
    """Traffic to the internet, the first terabytes of a month."""
    return _egress()[cloud]


@cache
def _interruptions() -> dict[tuple[str, str], Interruptions]:
    return sound(CATALOG / "spot_interruptions.csv", read_interruptions)


@cache
def _egress() -> dict[str, float]:
    def read(path: Path) -> dict[str, float]:
        return {row["cloud"]: _number(row, "usd_per_gb", place, 10) for row, place in _rows(path)}

    return sound(CATALOG / "egress.csv", read)


def read_interruptions(path: Path) -> dict[tuple[str, str], Interruptions]:
    """Middles of published ranges. Raises ValueError with file, line and column where a row is malformed."""
    found: dict[tuple[str, str], Interruptions] = {}
    for row, place in _rows(path):
        key = row["cloud"], row["instance_type"]
        if key[1] not in instances(key[0]) or key in found:
            raise ValueError(f"{place}, column instance_type: {key[1]!r} is not in the catalogue, or is listed twice")
        least = _number(row, "least", place, 1)
        if row["most"] == "":
            rate, words = UNKNOWN_INTERRUPTIONS, f"above {least:.0%}, taken as {UNKNOWN_INTERRUPTIONS:.0%}"
        else:
            most = _number(row, "most", place, 1)
            rate, words = (least + most) / 2, f"{least:.0%} to {most:.0%}"
        source = f"{words} a month as of {row['as_of']} ({row['source'].partition(':')[0]})"
        found[key] = Interruptions(per_month=rate, source=source)
    return found


def _rows(path: Path) -> list[tuple[dict[str, str], str]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = [(row, f"{path.name}, line {reader.line_num}") for row in reader]
    for row, place in rows:
        try:
            datetime.date.fromisoformat(row["as_of"])
        except ValueError:
            raise ValueError(f"{place}, column as_of: {row['as_of']!r} is not a date (YYYY-MM-DD)") from None
        if not row["source"]:
            raise ValueError(f"{place}, column source: is empty")
    return rows


def _number(row: dict[str, str], column: str, place: str, most: float) -> float:
    try:
        number = float(row[column])
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise ValueError(f"{place}, column {column}: {row[column]!r} is not a number from 0 to {most:g}")
    return number
