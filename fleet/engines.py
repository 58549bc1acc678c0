"""`engines list|verify|gc`: what the engine store holds, whether it is sound, and what of it may go."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from runtime.errors import Refusal
from runtime.files import human
from runtime.store import EngineInfo, EngineStore, Removal

DEFAULT_STORE = Path(".fleet/store")


def add_parser(subparsers: Any) -> None:
    """Add `engines` and its actions; `subparsers` is argparse's special action, which has no public type."""
    engines = subparsers.add_parser("engines", help="list, verify and remove engines of the store")
    engines.set_defaults(run=run)
    actions = engines.add_subparsers(dest="action", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", type=Path, default=DEFAULT_STORE, help="folder of the store (default: %(default)s)")
    common.add_argument("--json", action="store_true", help="print JSON")
    actions.add_parser("list", parents=[common], help="every engine with its size and whether a group runs it")
    verify = actions.add_parser("verify", parents=[common], help="read engines whole and compare their checksums")
    verify.add_argument("ids", nargs="*", metavar="ID", help="an id or its beginning (default: every engine)")
    gc = actions.add_parser("gc", parents=[common], help="remove what dead builds left and engines long unused")
    gc.add_argument(
        "--older-than-days", type=_days, default=30.0, metavar="N", help="unused for longer (default: %(default)g)"
    )
    gc.add_argument("--keep", action="append", default=[], metavar="ID", help="never remove this one; may be repeated")
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def run(args: argparse.Namespace) -> int:
    """0 done and sound, 1 refused or an engine is damaged."""
    store = EngineStore(args.store)
    try:
        if args.action == "list":
            return _list(store, args.json)
        if args.action == "verify":
            return _verify(store, args.ids, args.json)
        return _gc(store, args)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1


def _list(store: EngineStore, as_json: bool) -> int:
    engines = store.list()
    if as_json:
        print(json.dumps([_plain(info) for info in engines], indent=2))
        return 0
    if not engines:
        print(f"no engines in {store.root}")
        return 0
    table = Table(box=None, header_style="bold")
    for heading in ("id", "model", "backend", "TP x PP", "GPU", "size", "in use", "state"):
        # In a narrow terminal the model's name is broken over lines; nothing is cut off.
        table.add_column(heading, no_wrap=heading != "model", overflow="fold")
    for info in engines:
        table.add_row(*_row(info))
    # Into a file or a pipe, one engine is one line.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0


def _row(info: EngineInfo) -> list[str]:
    if not info.key:
        return [info.id, "?", "?", "?", "?", human(info.bytes), "yes" if info.in_use else "no", "damaged"]
    model, mapping, target = info.key["model"], info.key["mapping"], info.key["target"]
    revision = f"@{model['revision']}" if model["revision"] else ""
    slice_ = f" MIG {target['mig_profile']}" if target["mig_profile"] else ""
    return [
        info.id,
        f"{model['source']}{revision}",
        info.key["backend"],
        f"{mapping['tensor_parallel']} x {mapping['pipeline_parallel']}",
        f"{target['gpu']}{slice_}" if target["gpu"] else "none (CPU)",
        human(info.bytes),
        "yes" if info.in_use else "no",
        "damaged" if info.problem else "whole",
    ]


def _verify(store: EngineStore, ids: list[str], as_json: bool) -> int:
    engines = {info.id: info for info in store.list()}
    chosen = [engines[store.open(id_).name] for id_ in ids] if ids else list(engines.values())
    problems: dict[str, list[str]] = {}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        for info in chosen:
            task = progress.add_task(info.id, total=info.bytes)
            problems[info.id] = list(store.verify(info.id, lambda read, task=task: progress.advance(task, read)))
            progress.remove_task(task)
    if as_json:
        print(json.dumps(problems, indent=2))
    else:
        for id_, found in problems.items():
            print(f"{id_}  {'; '.join(found) if found else f'sound, {human(engines[id_].bytes)} read'}")
    damaged = [id_ for id_, found in problems.items() if found]
    if damaged:
        print(
            f"{len(damaged)} of {len(problems)} engines damaged\n"
            "  consequence: a rank would fail while loading, or answer nonsense\n"
            f"  fix: remove {', '.join(str(store.root / 'engines' / id_) for id_ in damaged)} and build again",
            file=sys.stderr,
        )
    return 1 if damaged else 0


def _gc(store: EngineStore, args: argparse.Namespace) -> int:
    keep = {store.open(id_).name for id_ in args.keep}
    removals = store.gc(keep, args.older_than_days * 86400, args.dry_run)
    if args.json:
        print(json.dumps([_plain(removal) for removal in removals], indent=2))
        return 0
    verb = "would remove" if args.dry_run else "removed"
    for removal in removals:
        print(f"{verb} {removal.path.relative_to(store.root)}  {human(removal.bytes)}  {removal.why}")
    print(f"{verb} {len(removals)}, {human(sum(removal.bytes for removal in removals))}")
    return 0


def _plain(value: EngineInfo | Removal) -> dict[str, Any]:
    return dataclasses.asdict(value) | {"path": str(value.path)}


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a number of days from 0 to a million")
    return days
