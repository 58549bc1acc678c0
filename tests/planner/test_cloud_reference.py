"""docs/clouds.md is what the clouds' facts say."""

from pathlib import Path

from planner.cloud_reference import reference
from planner.clouds import CLOUDS

PAGE = Path(__file__).parents[2] / "docs" / "clouds.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `python -m planner.cloud_reference > docs/clouds.md`"


def test_every_cloud_has_a_column_and_its_reasons() -> None:
    lines = reference().splitlines()
    (head,) = [line for line in lines if line.startswith("| | ") and "Key" not in line]
    assert [cell.strip() for cell in head.strip("|").split("|")][1:] == [cloud.title for cloud in CLOUDS.values()]
    for cloud in CLOUDS.values():
        for key, why in cloud.unsupported.items():
            assert f"| {cloud.title} | `{key}` | {why.reason} | {why.instead} |" in lines
            assert why.reason
            assert why.instead
