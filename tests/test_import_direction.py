"""Imports point one way: planner knows nobody, components and model_repo know planner, the runtime ships alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"planner", "components", "model_repo", "runtime", "frontend", "policy", "fleet"}
MAY_IMPORT = {
    "planner": set[str](),
    "model_repo": {"planner"},
    "components": {"planner", "model_repo"},
    "runtime": set[str](),
    "frontend": set[str](),
    "policy": {"planner"},
    "fleet": ROOMS,
}
CLOUD_SDKS = {
    "pulumi",
    "pulumi_aws",
    "pulumi_eks",
    "pulumi_gcp",
    "pulumi_azure_native",
    "pulumi_kubernetes",
    "kubernetes",
}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def room_files() -> list[Path]:
    return [path for room in sorted(ROOMS) for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("path", room_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_before_it(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    names = imported(path)

    assert not (names & ROOMS) - {room} - MAY_IMPORT[room]
    if room in ("planner", "model_repo", "runtime", "frontend"):
        assert not names & CLOUD_SDKS, "pure rooms and containers carry no cloud SDK"


def test_the_checker_sees_imports_in_functions(tmp_path: Path) -> None:
    source = tmp_path / "late.py"
    source.write_text("def late():\n    from planner.plan import ModelPlan\n    import pulumi_aws.eks\n")

    assert imported(source) == {"planner", "pulumi_aws"}
