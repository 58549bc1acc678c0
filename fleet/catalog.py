"""`fleet catalog`: the GPU instance types and prices that plans rest on, shown, or read anew from the clouds."""

import argparse
import csv
import datetime
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fleet.catalog_merge import INTACT, Merged, Row, merge
from fleet.catalogs.reading import UNREADABLE, Reading, Region, Request
from fleet.plan import OK, REFUSED, USAGE, UsageError, print_problems
from planner.errors import PlanError, Problem, did_you_mean
from planner.gpus import CATALOG, gpus, sound
from planner.instances import read_instances, read_zones, stale

CLOUDS = ("aws", "azure", "gcp")
CLIENTS = Path(__file__).parents[1] / ".venv" / "catalog" / "bin" / "python"
"""Where the clouds' client libraries are; they need others than the program."""

READ_SECONDS = 900
TYPES = "gpu_instances.csv"


def add_parser(subparsers: Any) -> None:
    """Add `catalog` and its actions; `subparsers` is argparse's special action, which has no public type."""
    catalog = subparsers.add_parser("catalog", help="show GPU instance types and prices, or read them anew")
    catalog.set_defaults(run=run)
    actions = catalog.add_subparsers(dest="action", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--cloud", action="append", metavar="CLOUD", help="aws, azure or gcp; may be repeated")
    common.add_argument("--json", action="store_true", help="print JSON")
    actions.add_parser("show", parents=[common], help="instance types, prices in USD/h, and the dates of both")
    refresh = actions.add_parser(
        "refresh", parents=[common], help="read specs and prices from the clouds, and save them"
    )
    refresh.add_argument(
        "--region", help="with one --cloud: price there (default: each type's region in the catalogue)"
    )
    refresh.add_argument("--out", type=Path, metavar="DIR", help="folder for the new files (default: the catalogue's)")
    refresh.add_argument(
        "--endpoint", action="append", default=[], metavar="CLOUD=URL", help="ask this address instead of the cloud's"
    )
    refresh.add_argument("--accept-jumps", action="store_true", help="believe list prices that moved by factors")


def run(args: argparse.Namespace) -> int:
    """0: shown or saved, 1: refused, 2: the command line is at fault; then nothing was saved."""
    try:
        for cloud in args.cloud or ():
            if cloud not in CLOUDS:
                raise _usage("--cloud", f"no cloud named {cloud}", did_you_mean(cloud, CLOUDS, ", ".join(CLOUDS)))
        clouds = tuple(dict.fromkeys(args.cloud or CLOUDS))
        today = datetime.datetime.now(datetime.UTC).date()
        return _show(clouds, today, args.json) if args.action == "show" else _refresh(args, clouds, today.isoformat())
    except PlanError as error:
        print_problems(error.problems, as_json=args.json, undone="nothing was saved")
        return USAGE if isinstance(error, UsageError) else REFUSED


def _usage(key: str, what: str, fix: str) -> UsageError:
    return UsageError([Problem(key=key, what=what, consequence="nothing was read", fix=fix)])


def _show(clouds: Sequence[str], today: datetime.date, as_json: bool) -> int:
    types = [type_ for type_ in sound(CATALOG / TYPES, read_instances).values() if type_.cloud in clouds]
    warnings = [text for cloud in clouds if (text := stale(cloud, [t for t in types if t.cloud == cloud], today))]
    if as_json:
        print(json.dumps({"types": [asdict(type_) for type_ in types], "warnings": warnings}, indent=2))
        return OK
    table = Table(box=box.SIMPLE, title="GPU instance types; prices in USD/h", title_justify="left")
    for heading in ("cloud", "type", "GPUs", "region", "on-demand", "of", "spot", "of"):
        table.add_column(heading, justify="right" if heading in ("on-demand", "spot") else "left", overflow="fold")
    for type_ in types:
        table.add_row(
            *(type_.cloud, type_.name, f"{type_.gpu_count} {type_.gpu}", type_.price_region),
            *(_usd(type_.on_demand_usd_h), type_.price_as_of if type_.on_demand_usd_h else ""),
            *(_usd(type_.spot_usd_h), type_.spot_as_of),
        )
    Console(width=None if sys.stdout.isatty() else 130, highlight=False).print(table)
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)
    return OK


def _usd(price: float | None) -> str:
    return "" if price is None else f"{price:,.4f}"


def _refresh(args: argparse.Namespace, clouds: Sequence[str], today: str) -> int:
    if args.region and len(args.cloud or ()) != 1:
        raise _usage("--region", "a region is of one cloud", "give that one --cloud too")
    endpoints: dict[str, str] = {}
    for given in args.endpoint:
        cloud, equals, url = given.partition("=")
        if not equals or cloud not in CLOUDS or not url.startswith(("http://", "https://")):
            raise _usage("--endpoint", f"{given} is not CLOUD=URL", f"for example {CLOUDS[1]}=https://localhost:8443")
        endpoints[cloud] = url
    sound(CATALOG / TYPES, read_instances)
    types, zones = _rows(CATALOG / TYPES), {cloud: _rows(CATALOG / f"{cloud}_zones.csv") for cloud in clouds}
    merged: dict[str, Merged] = {}
    problems: list[Problem] = []
    for cloud in clouds:
        try:
            rows = [row for row in types if row["cloud"] == cloud]
            others = [other for other in clouds if other != cloud]
            reading = _read(cloud, rows, args.region, endpoints.get(cloud), others=others)
            merged[cloud] = merge(
                cloud, types, zones[cloud], reading, today=today, move=bool(args.region), accept_jumps=args.accept_jumps
            )
        except PlanError as error:
            problems += error.problems
            continue
        types, zones[cloud] = merged[cloud].types, merged[cloud].zones
    if problems:
        raise PlanError(problems)
    out = args.out or CATALOG
    _save(out, types, zones)
    _report(merged, out, today, as_json=args.json)
    return OK


def _rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _read(
    cloud: str, rows: Sequence[Row], region: str | None, endpoint: str | None, *, others: Sequence[str]
) -> Reading:
    """What the cloud's reader answers, in a process of its own. Raises PlanError where it cannot read."""
    request = Request(
        regions=[region] if region else list(dict.fromkeys(row["region"] for row in rows)),
        types={row["instance_type"]: row for row in rows},
        gpus=[
            {"gpu": gpu.name, "memory_mib": str(gpu.memory_mib), "mig_capable": "y" if gpu.mig_gib else "n"}
            for gpu in gpus().values()
        ],
        endpoint=endpoint,
    )
    alone = f"; --cloud {' --cloud '.join(others)} reads the others without it" if others else ""
    try:
        done = subprocess.run(
            [CLIENTS if CLIENTS.exists() else sys.executable, "-m", f"fleet.catalogs.{cloud}"],
            cwd=Path(__file__).parents[1],
            input=json.dumps(asdict(request)),
            capture_output=True,
            text=True,
            timeout=READ_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise _unread(cloud, f"no whole answer within {READ_SECONDS} s", f"try again later{alone}") from None
    if done.returncode == UNREADABLE:
        refusal = json.loads(done.stdout)
        raise _unread(cloud, refusal["what"], f"{refusal['fix']}{alone}")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        missing = "make catalog-clients" if "ModuleNotFoundError" in said else "try again later"
        raise _unread(cloud, said, f"{missing}{alone}")
    answer = json.loads(done.stdout)
    regions = {name: Region(**found) for name, found in answer.pop("regions").items()}
    return Reading(regions=regions, **answer)


def _unread(cloud: str, what: str, fix: str) -> PlanError:
    return PlanError([Problem(key=cloud, what=what, consequence=INTACT, fix=fix)])


def _save(out: Path, types: Sequence[Row], zones: Mapping[str, Sequence[Row]]) -> None:
    """Replaces the files whole, one after another, and only with what the planner reads without complaint."""
    # At each moment the types cover the zones.
    steps = [(TYPES, _text(types)), *((f"{cloud}_zones.csv", _text(rows)) for cloud, rows in zones.items())]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".refresh-", dir=out) as scratch:
            for step, (name, text) in enumerate(steps):
                (Path(scratch) / f"{step}-{name}").write_text(text, encoding="utf-8", newline="")
            known = read_instances(Path(scratch) / f"0-{TYPES}")
            for step, (name, _) in enumerate(steps[1:], start=1):
                cloud = name.partition("_")[0]
                read_zones(
                    Path(scratch) / f"{step}-{name}", cloud, types={name for where, name in known if where == cloud}
                )
            _replace(out, {name: Path(scratch) / f"{step}-{name}" for step, (name, _) in enumerate(steps)})
    except OSError as error:
        what = f"{out} cannot be written: {error.strerror or type(error).__name__}"
        fix = "give a folder that you may write with --out"
        raise PlanError([Problem(key="--out", what=what, consequence=INTACT, fix=fix)]) from error
    except ValueError as error:
        fix = "the clouds' answers make no catalogue: try again later"
        raise PlanError([Problem(key=TYPES, what=str(error), consequence=INTACT, fix=fix)]) from error


def _replace(out: Path, files: Mapping[str, Path]) -> None:
    """Puts the files into the folder one after another; where one cannot be, those before it are as they were."""
    before = {name: (out / name).read_bytes() if (out / name).exists() else None for name in files}
    done: list[str] = []
    try:
        for name, path in files.items():
            os.replace(path, out / name)
            done.append(name)
    except OSError:
        for name in done:
            content = before[name]
            (out / name).unlink() if content is None else (out / name).write_bytes(content)
        raise


def _text(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _report(merged: Mapping[str, Merged], out: Path, today: str, *, as_json: bool) -> None:
    if as_json:
        clouds = {
            cloud: {
                "changed": [asdict(change) for change in each.changed],
                "new": each.new,
                "vanished": each.vanished,
                "unread": each.unread,
            }
            for cloud, each in merged.items()
        }
        print(json.dumps({"catalog": str(out), "as_of": today, "clouds": clouds}, indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False, markup=False)
    for cloud, each in merged.items():
        console.print(f"{cloud}: {len(each.changed)} changed, {len(each.new)} new, {len(each.vanished)} vanished")
        if each.changed:
            table = Table(box=box.SIMPLE)
            for heading in ("type", "region", "what", "before", "after"):
                table.add_column(
                    heading, justify="right" if heading in ("before", "after") else "left", overflow="fold"
                )
            for change in each.changed:
                table.add_row(change.instance_type, change.region, change.column, change.before, change.after)
            console.print(table)
        for heading, names in (("new", each.new), ("vanished", each.vanished)):
            if names:
                console.print(f"{heading}: {', '.join(names)}", soft_wrap=True)
        for text in each.unread:
            console.print(f"not read: {text}", soft_wrap=True)
    console.print(f"saved in {out}, as of {today}", soft_wrap=True)
