"""Where a model's facts come from: a config.json, a GGUF header, or what is known of a public model by its source."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from planner.config import ModelConfig
from planner.errors import PlanError, Problem, did_you_mean, shown
from planner.gguf_header import read_gguf_config
from planner.model import ModelFacts, facts_from_hf
from planner.object_sources import object_source
from planner.untyped import as_mapping

KNOWN_MODELS = Path(__file__).parent / "known_models"
MAX_CONFIG_BYTES = 8 << 20
SAMPLE_BYTES = 1 << 20

BUCKET = "bucket://"
PYPI = "pypi://"

_COST = "the model's dimensions are unknown; neither memory nor sharding can be computed"


def facts_of(model: ModelConfig, base_dir: Path, key: str) -> ModelFacts:
    """The facts of a model; relative paths start at `base_dir`. Raises PlanError naming the key at fault."""
    if model.config is not None:
        return facts_of_file(base_dir / model.config, f"{key}.config")
    path = local_path(model.source, base_dir)
    if path is not None:
        return facts_of_file(path, f"{key}.source")
    name = known_by_source().get(model.source)
    if name is None:
        fix = "give `config:` with the path of its config.json"
        if object_source(model.source) is None:  # a copy of a known model is no slip of its name
            fix = did_you_mean(model.source, known_by_source(), fix)
        what = f"{shown(model.source)} is not a model known by its source, and there is no config"
        raise PlanError([Problem(key=f"{key}.source", what=what, consequence=_COST, fix=fix)])
    return facts_of_file(KNOWN_MODELS / f"{name}.json", f"{key}.source")


def facts_of_file(path: Path, key: str) -> ModelFacts:
    """Facts from a config.json, a folder that holds one, or a GGUF file."""
    try:
        if path.is_dir():
            path = path / "config.json"
        with path.open("rb") as file:
            magic = file.read(4)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        fix = "give the path of a config.json, of a folder that holds one, or of a GGUF file"
        raise PlanError(
            [Problem(key=key, what=f"{shown(str(path))[1:-1]}: {reason}", consequence=_COST, fix=fix)]
        ) from None
    config = read_gguf_config(path, key) if magic == b"GGUF" else _read_json(path, key)
    return facts_from_hf(config, key)


def local_path(source: str, base_dir: Path) -> Path | None:
    """The file or folder that a source names, or None when it is remote."""
    if source.startswith("file://"):
        return Path(source.removeprefix("file://"))
    return None if "://" in source else base_dir / source


def fingerprint(model: ModelConfig, base_dir: Path) -> str | None:
    """Stands in for the revision of local weights: sizes, and the first and last MiB of each file.

    Not a full checksum, which would read hundreds of GB at every plan; weights trained differently differ in both.
    """
    path = local_path(model.source, base_dir)
    if path is None:
        return None
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        try:
            size = file.stat().st_size
            with file.open("rb") as data:
                digest.update(f"{file.name}:{size}:".encode() + data.read(SAMPLE_BYTES))
                data.seek(max(0, size - SAMPLE_BYTES))
                digest.update(data.read(SAMPLE_BYTES))
        except OSError:
            return None
    return f"sampled-sha256:{digest.hexdigest()[:32]}"


def checkpoint_folder(source: str, revision: str) -> str:
    """The folder that `runtime.fetch` makes for a source's weights, below the one of all fetched checkpoints."""
    return hashlib.sha256(f"{source}@{revision}".encode()).hexdigest()[:16]


def bucket_prefix(source: str) -> str | None:
    """Where in the stack's model bucket the weights lie; None when they come from elsewhere."""
    return source.removeprefix(BUCKET).strip("/") if source.startswith(BUCKET) else None


@cache
def known_by_source() -> dict[str, str]:
    """The names of known models by every source that has the same config.json."""
    known: dict[str, str] = {}
    for path in sorted(KNOWN_MODELS.glob("*.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        known |= dict.fromkeys([config["_source"], *config["_same_config"]], path.stem)
    return known


def _read_json(path: Path, key: str) -> dict[str, Any]:
    def refuse(what: str) -> PlanError:
        fix = "give the config.json that the model was published with"
        return PlanError([Problem(key=key, what=f"{shown(str(path))[1:-1]}: {what}", consequence=_COST, fix=fix)])

    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise refuse(f"larger than {MAX_CONFIG_BYTES >> 20} MiB")
        config = json.loads(content)
    except OSError as error:
        raise refuse(error.strerror or "cannot be read") from None
    except (ValueError, RecursionError):
        raise refuse("not JSON") from None
    if not isinstance(config, dict):
        raise refuse("not a JSON object")
    return as_mapping(config)
