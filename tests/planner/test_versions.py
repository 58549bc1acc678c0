"""One pin, one value: planner/versions.py against every requirements file that repeats it."""

import re
from pathlib import Path

from planner import versions

ROOT = Path(__file__).parents[2]


def pins(name: str) -> dict[str, str | None]:
    """Package (without extras) -> pinned version, None where the file leaves it open."""
    found: dict[str, str | None] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        requirement = line.split("#")[0].strip()
        if requirement:
            package, _, version = requirement.partition("==")
            found[re.sub(r"\[.*\]", "", package)] = version or None
    return found


def test_requirements_txt_is_exactly_the_pinned_packages() -> None:
    assert pins("requirements.txt") == versions.PYTHON_PACKAGES


def test_laptop_requirements_agree_with_the_pins_they_share() -> None:
    local = pins("requirements/local.in")
    shared = local.keys() & versions.PYTHON_PACKAGES.keys()
    assert {"pydantic", "ruamel.yaml", "tritonclient"} <= shared
    assert {name: local[name] for name in shared} == {name: versions.PYTHON_PACKAGES[name] for name in shared}


def test_pods_have_the_laptops_versions() -> None:
    pods, local = pins("requirements/pods.in"), pins("requirements/local.in") | pins("requirements/test.in")
    # It has no wheels for the pods' Python, and the laptop's Triton needs it.
    assert (pods.pop("numpy") or "").startswith("2.")
    assert (local.pop("numpy") or "").startswith("1.26.")
    assert {name: local.get(name) for name in pods} == pods


def test_what_pods_install_is_what_is_asked_for() -> None:
    installed = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements/pods.txt").read_text(), re.MULTILINE))
    asked = pins("requirements/pods.in")
    assert {name: installed.get(name) for name in asked} == asked


def test_image_requirements_pin_tensorrt_llm_alone() -> None:
    image = pins("requirements-image.txt")
    assert image.pop("tensorrt-llm") == versions.TENSORRT_LLM == versions.TRITON_IMAGE.tensorrt_llm
    assert set(image.values()) == {None}, "the image decides the versions of what it carries"
    # The same libraries are what the laptop installs for runtime/.
    assert image.keys() <= pins("requirements/local.in").keys()


def test_engines_are_built_and_served_by_one_tensorrt() -> None:
    assert versions.TRITON_IMAGE.tensorrt == versions.TENSORRT
    assert versions.TRITON_IMAGE.reference.endswith("-trtllm-python-py3")
