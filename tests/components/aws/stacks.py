"""The example stacks as AWS sees them: their plans, variants of these, and what a run of one registers."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pulumi

from components.clouds.aws.cloud import Aws
from planner.fleet import CloudPlan
from planner.plan import FleetPlan, ModelPlan, plan_file
from tests.components.world import Recorded, Registered, run

STACKS = Path(__file__).parents[3] / "stacks"
EXAMPLES = tuple(sorted(path.name.split(".")[1] for path in STACKS.glob("Pulumi.aws-*.yaml")))


@cache
def example(stack: str) -> FleetPlan:
    """The plan of an example stack, read once."""
    return plan_file(STACKS / f"Pulumi.{stack}.yaml")


def site(stack: str) -> CloudPlan:
    """What an example stack needs beyond its models."""
    found = example(stack).infrastructure
    assert found is not None
    return found


def with_pod_identity(plan: CloudPlan) -> CloudPlan:
    return replace(plan, aws=plan.aws.model_copy(update={"identity": "pod-identity"}))


def from_bucket(model: ModelPlan, prefix: str) -> ModelPlan:
    """The same model, its weights in the stack's bucket."""
    return replace(model, config=model.config.model_copy(update={"source": f"bucket://{prefix}"}))


def build(
    plan: CloudPlan,
    models: tuple[ModelPlan, ...] = (),
    use: Callable[[Aws], object] = lambda _: None,
    *,
    preview: bool = False,
) -> Recorded:
    """What the cloud of a plan registers; `use` calls what other rooms would."""

    def program() -> None:
        use(Aws("fleet", plan, models))

    return run(program, preview=preview)


@cache
def built(stack: str, *, preview: bool = False) -> Recorded:
    """An example stack's cloud, used as the platform and the models use it."""
    plan = example(stack)

    def use(cloud: Aws) -> None:
        cloud.autoscaling()
        cloud.volumes("serving", plan.models)
        pulumi.export("kubeconfig", cloud.kubeconfig)

    return build(site(stack), plan.models, use, preview=preview)


def document(resource: Registered, key: str = "policy") -> list[dict[str, Any]]:
    """The statements of an IAM policy among a resource's inputs."""
    return json.loads(resource.inputs[key])["Statement"]


def script(template: Registered) -> str:
    """A launch template's user data, decoded."""
    return base64.b64decode(template.inputs["userData"]).decode()
