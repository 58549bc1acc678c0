"""images/cpu.Dockerfile against what it is for; it is built where a container engine is."""

import re
from pathlib import Path

import pytest

from components.clouds.base import POD_USER
from planner.stack_file import read_stack_file
from runtime.triton import PYTHON_MINOR

ROOT = Path(__file__).parents[1]


@pytest.fixture
def dockerfile() -> str:
    return (ROOT / "images" / "cpu.Dockerfile").read_text(encoding="utf-8")


def test_it_is_the_python_that_the_bundled_triton_works_with(dockerfile: str) -> None:
    assert re.findall(r"^FROM \S+/python:(\S+)$", dockerfile, re.MULTILINE) == [f"{PYTHON_MINOR}-slim-bookworm"]


def test_it_installs_what_the_laptop_has_and_nothing_unpinned(dockerfile: str) -> None:
    installs = re.findall(r"pip install (.*?)(?:&&|$)", dockerfile.replace("\\\n", " "), re.MULTILINE)

    assert [re.findall(r"-r /requirements/(\S+)", line) for line in installs] == [["local.txt"], ["wheels.txt"]]
    assert all("--require-hashes" in line and "--only-binary :all:" in line for line in installs)
    # The wheels' own dependencies would compile llama.cpp.
    assert ["--no-deps" in line for line in installs] == [False, True]


def test_it_runs_as_the_pods_do(dockerfile: str) -> None:
    assert dockerfile.rstrip().endswith(f"USER {POD_USER}:{POD_USER}")


def test_the_local_stack_names_the_image_as_it_is_built(dockerfile: str) -> None:
    stack = read_stack_file(ROOT / "stacks" / "Pulumi.local.yaml")

    assert f"--tag {stack['images']['triton']} " in dockerfile
