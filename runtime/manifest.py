"""An engine's manifest.json: its id and key, and every file with its size and sha256. It makes a folder an engine."""

import json
import re
from pathlib import Path
from typing import Any, cast

from runtime.errors import Refusal
from runtime.files import regular_files, sha256, sync, sync_tree
from runtime.spec import Spec, check_spec

MANIFEST = "manifest.json"


def read_manifest(engine_dir: Path) -> dict[str, Any]:
    """An engine's manifest, its key checked against its id; raises Refusal."""
    half = "a half-built or damaged engine would have been loaded"
    try:
        raw = json.loads((engine_dir / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise unloadable(engine_dir, f"it has no {MANIFEST}", half) from None
    except (OSError, ValueError, RecursionError) as error:
        raise unloadable(engine_dir, f"its {MANIFEST} cannot be read: {error}", half) from None
    manifest = check_spec(raw, f"engine folder {engine_dir}")
    if re.fullmatch("[0-9a-f]{16}", engine_dir.name) and engine_dir.name != manifest["engine"]:
        raise unloadable(engine_dir, f"its manifest is that of engine {manifest['engine']}", half)
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(map(_is_entry, cast(dict[str, object], files).values())):
        raise unloadable(engine_dir, f"its {MANIFEST} has no valid list of files", half)
    return manifest


def check_sizes(engine_dir: Path, manifest: dict[str, Any]) -> None:
    """Raise Refusal for the first file that is missing or of another size than the manifest says."""
    for name, entry in manifest["files"].items():
        try:
            size = (engine_dir / name).stat().st_size
        except OSError as error:
            raise unloadable(engine_dir, f"{name}: {error.strerror}", "a rank would fail while loading") from None
        if size != entry["bytes"]:
            raise unloadable(
                engine_dir, f"{name} has {size} bytes, not {entry['bytes']}", "a rank would fail or compute nonsense"
            )


def write_manifest(staging: Path, spec: Spec) -> None:
    """Flush what was built in `staging`, then write its manifest, last and flushed too."""
    files = {
        name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in regular_files(staging).items()
    }
    sync_tree(staging)
    manifest = staging / MANIFEST
    text = json.dumps({"engine": spec["engine"], "key": spec["key"], "files": files}, indent=2)
    manifest.write_text(text + "\n", encoding="utf-8")
    sync(manifest)
    sync(staging)


def unloadable(engine_dir: Path, what: str, consequence: str) -> Refusal:
    """The refusal of an engine that is not whole."""
    return Refusal(
        f"engine {engine_dir} cannot be loaded: {what}", consequence, "remove that folder and build the engine again"
    )


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    fields = cast(dict[str, object], entry)
    return isinstance(fields.get("bytes"), int) and isinstance(fields.get("sha256"), str)
