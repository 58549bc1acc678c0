"""docs/configuration.md is what the configuration's types say today, and says something of every key."""

import re
from pathlib import Path

import pytest

from planner.reference import MEANING, meanings, reference

CAPACITY = "`spot`, `on-demand`, `reserved`, `flex-start`"
WRITTEN = Path(__file__).parents[2] / "docs" / "configuration.md"


def rows(section: str) -> dict[str, list[str]]:
    """The table of a section: key -> its other cells."""
    _, _, rest = reference().partition(f"\n## {section}\n")
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {first.strip("`"): others for first, *others in cells}


def test_the_written_reference_is_of_today() -> None:
    assert WRITTEN.read_text(encoding="utf-8") == reference(), (
        "docs/configuration.md is stale: run python -m planner.reference > docs/configuration.md"
    )


def test_every_key_has_one_meaning() -> None:
    found = dict(meanings())
    assert [key for key, meaning in found.items() if not meaning] == []
    assert MEANING.keys() <= found.keys()
    assert [key for key, meaning in MEANING.items() if found[key] != meaning] == [], "its field says so itself"


@pytest.mark.parametrize(
    ("section", "key", "cells"),
    [
        ("The stack", "cloud", ["`existing`, `aws`, `gcp`, `azure`", "**required**", ""]),
        ("The stack", "models", ["list of [models[]](#models)", "**required**", "at least 1 of them"]),
        ("The stack", "cluster", ["[cluster](#cluster)", "its defaults", ""]),
        ("The stack", "hugging_face_token", ["secret", "none", ""]),
        ("network", "zones", ["list of string", "**required**", "1 to 6 of them"]),
        ("network", "existing", ["[network.existing](#networkexisting)", "none", ""]),
        ("network.existing", "private_subnets", ["mapping", "**required**", ""]),
        ("pools[]", "capacity", [f"list of {CAPACITY}", "`[spot, on-demand]`", "1 to 4 of them"]),
        ("pools[]", "time_slicing", ["integer", "none", "2 to 48"]),
        ("storage", "node_cache", ["boolean", "`true`", ""]),
        ("models[]", "dtype", ["`float32`, `float16`, `bfloat16`", "`bfloat16`; `float32` for `backend: cpu`", ""]),
        ("models[]", "max_batch_size", ["integer", "`2048`; `8` for `backend: cpu`", "1 to 1048576"]),
        ("models[].serving", "kv_cache_free_gpu_mem_fraction", ["number", "`0.9`", "above 0, at most 1"]),
        ("The stack", "existing", ["[existing](#existing)", "none", ""]),
        ("The stack", "allow_replacement", ["list of string", "`[]`", ""]),
        ("gcp", "project", ["string", "none", r"`^[a-z][-a-z0-9]{4,28}[a-z0-9]$`"]),
        ("existing", "nodes", ["list of [existing.nodes[]](#existingnodes)", "none", ""]),
        ("existing.nodes[]", "memory_gib", ["number", "**required**", "above 0, at most 1000000"]),
        ("existing.nodes[]", "node_selector", ["mapping", "`{}`", ""]),
        ("existing.nodes[].tolerations[]", "value", ["string", "none", "at most 63 characters"]),
        ("cluster", "kubernetes_version", ["string", "`1.35`", r"`^1\.[0-9]{2}$`"]),
    ],
)
def test_type_default_and_limits(section: str, key: str, cells: list[str]) -> None:
    assert rows(section)[key][:3] == cells


def test_every_link_leads_to_a_heading() -> None:
    text = reference()
    headings = {re.sub(r"[^a-z0-9 _-]", "", line[3:].lower()).replace(" ", "-") for line in re.findall("## .*", text)}
    links = re.findall(r"\]\(#([^)]*)\)", text)
    assert len(links) >= 10
    assert set(links) <= headings
