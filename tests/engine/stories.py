"""What is asked of every stack that lives and dies on a simulated cloud."""

from typing import Any

from fleet.synthesis import synthesize
from planner.stack_file import read_stack_file
from tests.engine.conftest import Project


def assert_synth_shows_the_same(project: Project, stack: str, planned: list[tuple[str, str]]) -> None:
    """What `fleet synth` writes is what the engine plans."""
    values = read_stack_file(project.folder / "stacks" / f"Pulumi.{stack}.yaml")
    shown = {resource.urn for resource in synthesize(values, stack=stack).recording.resources}
    urns = {urn for _, urn in planned}
    assert shown <= urns
    # Besides the stack itself, the engine knows what the EKS component makes inside its provider.
    assert all("eks:index:Cluster$" in urn or "pulumi:pulumi:Stack" in urn for urn in urns - shown)


def assert_dependents_went_first(state: list[dict[str, Any]], events: list[tuple[str, str]]) -> None:
    """Everything was deleted before what it depended on."""
    assert {operation for operation, _ in events} == {"delete"}
    order = {urn: index for index, (_, urn) in enumerate(events)}
    for resource in state:
        for dependency in resource.get("dependencies", []):
            if resource["urn"] in order and dependency in order:
                assert order[resource["urn"]] < order[dependency], f"{dependency} went before {resource['urn']}"
