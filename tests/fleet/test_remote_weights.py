"""`fleet serve` fetches the weights of a CPU model, once: from a Hub, and from a server that speaks S3."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planner.plan import plan_values
from runtime.store import EngineStore
from tests import tiny_llama
from tests.e2e.conftest import ROOT
from tests.hub import COMMIT, Hub
from tests.object_stores import s3_store

# What `fleet serve` does before it starts ranks. Libraries read their environment when they are imported.
PREPARE = """
import json, sys
from pathlib import Path
from fleet.local import prepare
from planner.plan import plan_values
from runtime.errors import Refusal
try:
    prepare(plan_values(json.loads(sys.argv[1]), base_dir=Path()).models[0], Path(), Path(sys.argv[2]), print)
except Refusal as refusal:
    sys.exit(str(refusal))
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tiny_llama.write(tmp_path / "published").iterdir()}


def stack(tmp_path: Path, source: str, revision: str, **more: object) -> dict[str, Any]:
    entry = {"name": "tiny", "source": source, "revision": revision, "backend": "cpu", "max_seq_len": 64}
    entry |= {"config": str(tmp_path / "published" / "config.json"), **more}
    return {"cloud": "existing", "models": [entry]}


def prepared(
    values: dict[str, Any], state: Path, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PREPARE, json.dumps(values), str(state)]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT, env=environment)


def is_built(values: dict[str, Any], state: Path) -> bool:
    engine = plan_values(values, base_dir=Path()).models[0].engine
    return EngineStore(state / "store").verify(engine.id) == []


def test_from_a_bucket(tmp_path: Path, files: dict[str, bytes]) -> None:
    state = tmp_path / "state"
    with s3_store() as store:
        store.put(files)
        values = stack(tmp_path, store.source, "v1")
        done = prepared(values, state, store.env)
        assert done.returncode == 0, done.stderr
        assert is_built(values, state)
        assert "fetching" in done.stdout, "a download shows its progress"
        asked = store.proxy.gets.total()
        assert asked
        assert prepared(values, state, store.env).returncode == 0
        assert store.proxy.gets.total() == asked, "what is there is not asked for again"

        done = prepared(stack(tmp_path, f"{store.source}/none", "v1"), state, store.env)
        assert done.returncode == 1
        assert "has no files" in done.stderr
        assert "Traceback" not in done.stderr


def test_from_the_hub(tmp_path: Path, files: dict[str, bytes]) -> None:
    values = stack(tmp_path, "hf://org/tiny", COMMIT)
    with Hub({"org/tiny": files}).serving() as hub:
        done = prepared(values, tmp_path / "state", {"HF_ENDPOINT": hub.url})
        assert done.returncode == 0, done.stderr
        assert is_built(values, tmp_path / "state")


def test_a_model_for_gpus_is_not_fetched_to_a_laptop(tmp_path: Path, files: dict[str, bytes]) -> None:
    assert files
    done = prepared(stack(tmp_path, "s3://weights/tiny", "v1", backend="tensorrt", gpu="L4"), tmp_path / "state")
    assert done.returncode == 1
    assert "s3://weights/tiny is not on this machine" in done.stderr
