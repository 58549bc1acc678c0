"""A real tritonserver over the stub engine, and frontends before it."""

# pyright: basic
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.frontend.serving import FrontendProcess, stub_repository
from tests.model_repo.triton_process import TritonProcess


@pytest.fixture(scope="session")
def engine(cpu_engine_dir) -> Path:
    return cpu_engine_dir(1, 1)


@pytest.fixture(scope="session")
def triton(engine: Path, tmp_path_factory) -> Iterator[TritonProcess]:
    folder = tmp_path_factory.mktemp("frontend")
    process = TritonProcess(stub_repository(engine, folder / "repository"), folder / "cache")
    try:
        yield process.wait_ready()
    finally:
        process.stop()


@pytest.fixture
def start_frontend(triton: TritonProcess, engine: Path) -> Iterator[Callable[..., FrontendProcess]]:
    """A function of command-line flags and FrontendProcess' options."""
    started: list[FrontendProcess] = []

    def start(*flags: str, **options: Any) -> FrontendProcess:
        started.append(FrontendProcess(triton.ports[1], engine / "tokenizer", *flags, **options))
        return started[-1]

    yield start
    for process in started:
        print(process.stop())


@pytest.fixture(scope="session")
def frontend(triton: TritonProcess, engine: Path) -> Iterator[FrontendProcess]:
    process = FrontendProcess(triton.ports[1], engine / "tokenizer")
    yield process
    output = process.stop()
    assert "Traceback" not in output, output


@pytest.fixture
def client(frontend: FrontendProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{frontend.url}/v1", api_key="any", max_retries=0)
