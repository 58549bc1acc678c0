"""What a cloud said, brought into the rows of the catalogue; what no cloud would say in earnest is refused."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fleet.catalogs.reading import Reading, Region
from planner.errors import PlanError, Problem

Row = dict[str, str]

USD_PER_GPU_HOUR = (0.01, 200.0)
"""Between a fifteenth of the cheapest spot T4 of the catalogue and some ten times a GB200 on demand."""

ON_DEMAND_JUMP = 4.0
"""A list price that moves by more than this factor is taken for a slip of whoever answered."""

SPOT_OVER_ON_DEMAND = 1.5
"""Spot follows demand, but no cloud sells it for much more than on-demand."""

VANISHED_SHARE = 0.5
"""Of the known types of a region; an answer that lacks more is a partial answer."""

TOLD_ELSEWHERE = ("mig_capable", "reservation_kinds")
"""Columns that no cloud's service tells in full: the saved ones stay."""

PRICES = {"on_demand": "on_demand_usd_h", "spot": "spot_usd_h"}
INTACT = "the saved catalogue is unchanged"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A figure that moved: prices in USD per hour, specs in the column's unit; "" where there was or is none."""

    instance_type: str
    region: str
    column: str
    before: str
    after: str


@dataclass(kw_only=True)
class Merged:
    """The rows as they become, and what is new about them. `vanished` are types that their region has no more: its
    zones name them no longer, and what is known of them stays."""

    types: list[Row]
    zones: list[Row]
    changed: list[Change] = field(default_factory=list[Change])
    new: list[str] = field(default_factory=list[str])
    vanished: list[str] = field(default_factory=list[str])
    unread: list[str] = field(default_factory=list[str])


def merge(
    cloud: str,
    types: Sequence[Row],
    zones: Sequence[Row],
    reading: Reading,
    *,
    today: str,
    move: bool,
    accept_jumps: bool,
) -> Merged:
    """The catalogue's rows with the reading in them; other clouds' rows stay. With `move` types take the prices of the
    region that was read, without it only those that have them of there already. Raises PlanError where it is nonsense.
    """
    merged = Merged(types=[dict(row) for row in types], zones=[dict(row) for row in zones])
    merged.unread = list(dict.fromkeys(reading.unread))
    problems: list[Problem] = []
    for region, found in reading.regions.items():
        problems += _nonsense(cloud, region, found, reading.sources, types, accept_jumps=accept_jumps)
    if problems:
        raise PlanError(problems)
    for region, found in reading.regions.items():
        _specs(merged, cloud, region, found, reading.sources.get("specs", ""), today)
        _prices(merged, cloud, region, found, reading.sources, today, move=move)
        _offers(merged, region, found, reading.sources.get("zones", ""), today)
        if found.offered is not None:
            gone = [row["instance_type"] for row in _of_region(merged.types, cloud, region)]
            merged.vanished += [name for name in gone if name not in found.offered]
    return merged


def _of_region(rows: Sequence[Row], cloud: str, region: str) -> list[Row]:
    return [row for row in rows if row["cloud"] == cloud and row["region"] == region]


def _nonsense(
    cloud: str,
    region: str,
    found: Region,
    sources: Mapping[str, str],
    types: Sequence[Row],
    *,
    accept_jumps: bool,
) -> list[Problem]:
    problems: list[Problem] = []

    def refuse(what: str, fix: str = "try again later; if it stays, read that cloud by hand") -> None:
        problems.append(Problem(key=f"{cloud} {region}", what=what, consequence=INTACT, fix=fix))

    known = {row["instance_type"]: row for row in types if row["cloud"] == cloud}
    for kind, prices in (("on_demand", found.on_demand), ("spot", found.spot)):
        for name, usd in (prices or {}).items():
            row = (found.specs or {}).get(name) or known.get(name)
            if row is None:
                continue
            lowest, highest = (limit * int(row["gpu_count"]) for limit in USD_PER_GPU_HOUR)
            saved = known.get(name)
            before = float(saved[PRICES[kind]] or 0) if saved and saved["region"] == region else 0.0
            said = f"{sources[kind].partition(',')[0]} says {usd:g} USD/h for {name}"
            if not math.isfinite(usd) or not lowest <= usd <= highest:
                refuse(f"{said}, and {row['gpu_count']} {row['gpu']} cost between {lowest:g} and {highest:g} USD/h")
            elif kind == "on_demand" and before and not accept_jumps and not _near(usd, before, ON_DEMAND_JUMP):
                refuse(f"{said}, and {before:g} USD/h before", "give --accept-jumps if it is true")
            elif kind == "spot" and usd > SPOT_OVER_ON_DEMAND * (found.on_demand or {}).get(name, math.inf):
                refuse(f"{said} on spot, and {(found.on_demand or {})[name]:g} USD/h on demand")
    here = {row["instance_type"] for row in _of_region(types, cloud, region)}
    lost = here - set(found.offered) if found.offered is not None else set[str]()
    if len(lost) > VANISHED_SHARE * len(here):
        refuse(f"the answer lacks {len(lost)} of the {len(here)} types that the region had")
    if not any((found.on_demand, found.spot, found.specs)):
        refuse("the answer has no price and no type of the region", "see that the region's name is right")
    return problems


def _near(one: float, other: float, factor: float) -> bool:
    return one <= other * factor and other <= one * factor


def _specs(merged: Merged, cloud: str, region: str, found: Region, source: str, today: str) -> None:
    """New types after the last of their cloud; of known ones what differs, but for what no service tells in full."""
    known = {row["instance_type"]: row for row in merged.types if row["cloud"] == cloud}
    for name, columns in (found.specs or {}).items():
        row = known.get(name)
        if row is None:
            last = max((index for index, row in enumerate(merged.types) if row["cloud"] == cloud), default=-1)
            empty = dict.fromkeys(merged.types[0], "")
            spec_source = f"{source} {region} ({today})"
            new = (
                empty | columns | {"cloud": cloud, "instance_type": name, "region": region, "spec_source": spec_source}
            )
            merged.types.insert(last + 1, new)
            merged.new.append(name)
            continue
        moved = {
            column: text for column, text in columns.items() if column not in TOLD_ELSEWHERE and text != row[column]
        }
        for column, text in moved.items():
            merged.changed.append(
                Change(instance_type=name, region=region, column=column, before=row[column], after=text)
            )
        if moved:
            row.update(moved)
            row["spec_source"] += f"; {', '.join(moved)}: {source} {region} ({today})"


def _prices(
    merged: Merged, cloud: str, region: str, found: Region, sources: Mapping[str, str], today: str, *, move: bool
) -> None:
    prices = {"on_demand": found.on_demand, "spot": found.spot}
    missing: dict[str, list[str]] = {kind: [] for kind in PRICES}
    for row in merged.types:
        name, moves = row["instance_type"], row["region"] != region
        read = {kind: (prices[kind] or {}).get(name) for kind in PRICES}
        if row["cloud"] != cloud or (moves and not (move and any(read.values()))):
            continue
        said = dict.fromkeys(PRICES, "") if moves else _said(row["price_source"])
        before = {kind: row[column] for kind, column in PRICES.items()}
        for kind, usd in read.items():
            if usd is not None:
                row[PRICES[kind]] = f"{usd:.6f}".rstrip("0").rstrip(".")
                said[kind] = f"{sources[kind]} {region} ({today})"
            elif moves:
                row[PRICES[kind]] = ""
            elif prices[kind] is not None and row[PRICES[kind]]:
                missing[kind].append(name)
        row["region"] = region
        _tell(row, said, today, read=read)
        merged.changed += [
            Change(instance_type=name, region=region, column=column, before=before[kind], after=row[column])
            for kind, column in PRICES.items()
            if _differs(before[kind], row[column]) and name not in merged.new
        ]
    for kind, names in missing.items():
        if names:
            price = kind.replace("_", "-")
            merged.unread.append(f"{region} names no {price} price of {', '.join(names)}; the saved ones stay")


def _differs(before: str, after: str) -> bool:
    return before != after and (not before or not after or float(before) != float(after))


def _said(source: str) -> dict[str, str]:
    """The source of each price, from the words of a row: "od: A; spot: B", "od+spot: A", or one of the two."""
    both = re.fullmatch(r"od\+spot: (.*)", source)
    if both:
        return {"on_demand": both[1], "spot": both[1]}
    on_demand, _, spot = source.rpartition("spot: ") if "spot: " in source else (source, "", "")
    return {"on_demand": on_demand.removeprefix("od: ").removesuffix("; "), "spot": spot}


def _tell(row: Row, said: Mapping[str, str], today: str, *, read: Mapping[str, float | None]) -> None:
    """The row's source and date: that of the on-demand price where there is one."""
    parts = {
        "od": said["on_demand"] if row["on_demand_usd_h"] else "",
        "spot": said["spot"] if row["spot_usd_h"] else "",
    }
    row["price_source"] = "; ".join(f"{name}: {source}" for name, source in parts.items() if source)
    leading = "on_demand" if row["on_demand_usd_h"] else "spot"
    if read[leading] is not None:
        row["price_as_of"] = today
    elif not any(parts.values()):
        row["price_as_of"] = ""


def _offers(merged: Merged, region: str, found: Region, source: str, today: str) -> None:
    """What each zone offers, in the order of the catalogue; without zones in the answer, less what the region lost."""
    for row in merged.zones:
        if row["region"] != region:
            continue
        if found.zones is not None:
            offered = found.zones.get(row["zone_id"], [])
            names = [each["instance_type"] for each in merged.types if each["instance_type"] in offered]
            row.update(types=" ".join(names), as_of=today, source=source)
        elif found.offered is not None:
            kept = [name for name in row["types"].split() if name in found.offered]
            if kept != row["types"].split():
                row.update(
                    types=" ".join(kept), as_of=today, source=f"{row['source']}; less what has no price ({today})"
                )
    if found.zones is not None:
        listed = {row["zone_id"] for row in merged.zones}
        last = max(
            (index for index, row in enumerate(merged.zones) if row["region"] == region), default=len(merged.zones) - 1
        )
        for zone in sorted(set(found.zones) - listed, reverse=True):
            names = [each["instance_type"] for each in merged.types if each["instance_type"] in found.zones[zone]]
            row = {"zone_id": zone, "region": region, "types": " ".join(names), "as_of": today, "source": source}
            merged.zones.insert(last + 1, row)
