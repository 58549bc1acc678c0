"""Everything one model needs on this machine before its ranks start: weights, memory, engine, model repository."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from model_repo import render
from planner.config import ModelConfig
from planner.memory import GIB
from planner.plan import ModelPlan
from planner.sources import BUCKET, local_path
from runtime.build import Progress, build_engine
from runtime.errors import Refusal
from runtime.fetch import fetch
from runtime.packaged import SCHEME, packaged_file

STATE = Path(".fleet")
"""Where the local fleet keeps its engines, rendered repositories, logs and state."""


@dataclass(frozen=True)
class Prepared:
    """Folders that the launcher is given."""

    engine: Path
    repository: Path
    run_dir: Path


def prepare(model: ModelPlan, base_dir: Path, state: Path, progress: Progress) -> Prepared:
    """Build the engine, or find it built, and render the model repository. Raises Refusal."""
    require_memory(model)
    checkpoint = checkpoint_path(model.config, base_dir, state, progress)
    progress(f"engine {model.engine.id}: {model.config.source}, {_sharding(model)}")
    engine = build_engine(model.engine.document(), checkpoint, state / "store", progress)
    run_dir = state / "run" / model.name
    repository = run_dir / "model_repository"
    render.write(render.render(model, str(engine.resolve())), repository)
    return Prepared(engine, repository, run_dir)


def require_memory(model: ModelPlan) -> None:
    """Raises Refusal when this machine's free memory cannot hold all ranks (weights exact, the rest estimated)."""
    if model.config.backend != "cpu":
        return
    needed, free = sum(rank.total_bytes for rank in model.memory), psutil.virtual_memory().available
    if needed > free:
        raise Refusal(
            f"{model.name} needs about {needed / GIB:.1f} GiB for {model.world_size} ranks (estimate), "
            f"{free / GIB:.1f} GiB are free",
            "the kernel would kill a rank, or the machine would swap to a standstill",
            "free memory, lower serving.kv_cache_tokens or max_seq_len, or serve a smaller model",
        )


def checkpoint_path(
    model: ModelConfig, base_dir: Path, state: Path = STATE, progress: Progress = lambda _: None
) -> Path:
    """The file or folder of the model's weights on this machine; those of a CPU model are fetched. Raises Refusal."""
    path = local_path(model.source, base_dir)
    if path is not None:
        return path
    if model.source.startswith(SCHEME):
        return packaged_file(model.source, model.revision)
    if model.backend == "cpu" and model.revision and not model.source.startswith(BUCKET):
        anonymous = model.source_access == "anonymous"
        return fetch(model.source, model.revision, state / "checkpoints", progress, anonymous=anonymous)
    raise Refusal(
        f"{model.source} is not on this machine",
        "there are no weights to build the engine from",
        "download it, and give `source: file:///its/folder`",
    )


def read_state(run_dir: Path) -> dict[str, Any] | None:
    """What the launcher of `run_dir` last wrote of its group, or None when there is none that lives."""
    try:
        state = json.loads((run_dir / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if state["phase"] != "stopped" and psutil.pid_exists(state["launcher"]) else None


def _sharding(model: ModelPlan) -> str:
    config = model.config
    return f"TP {config.tensor_parallel} x PP {config.pipeline_parallel} = {model.world_size} ranks"
