"""The example stacks as Azure sees them: their plans, variants of these, and what a run of one registers."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pulumi

from components.clouds.azure.cloud import Azure
from planner.fleet import CloudPlan, NodeGroupPlan, PoolPlan
from planner.plan import FleetPlan, ModelPlan, plan_file
from tests.components.world import Recorded, run

STACKS = Path(__file__).parents[3] / "stacks"
EXAMPLES = tuple(sorted(path.name.split(".")[1] for path in STACKS.glob("Pulumi.azure-*.yaml")))


@cache
def example(stack: str) -> FleetPlan:
    """The plan of an example stack, read once."""
    return plan_file(STACKS / f"Pulumi.{stack}.yaml")


def site(stack: str) -> CloudPlan:
    """What an example stack needs beyond its models."""
    found = example(stack).infrastructure
    assert found is not None
    return found


def with_cluster(plan: CloudPlan, **changes: object) -> CloudPlan:
    return replace(plan, cluster=plan.cluster.model_copy(update=changes))


def with_pool(plan: CloudPlan, **changes: object) -> CloudPlan:
    """The plan, its only pool changed."""
    pool: PoolPlan = replace(plan.pools[0], **changes)  # pyright: ignore[reportArgumentType]
    return replace(plan, pools=(pool,))


def with_group(plan: CloudPlan, **changes: object) -> CloudPlan:
    """The plan, its only pool's first node group changed and the others gone."""
    group: NodeGroupPlan = replace(plan.pools[0].node_groups[0], **changes)  # pyright: ignore[reportArgumentType]
    return with_pool(plan, node_groups=(group,))


def without_kept_data(plan: CloudPlan) -> CloudPlan:
    return replace(plan, storage=replace(plan.storage, keep_data=False))


def from_bucket(model: ModelPlan, prefix: str) -> ModelPlan:
    """The same model, its weights in the stack's bucket."""
    return replace(model, config=model.config.model_copy(update={"source": f"bucket://{prefix}"}))


def build(
    plan: CloudPlan,
    models: tuple[ModelPlan, ...] = (),
    use: Callable[[Azure], object] = lambda _: None,
    *,
    preview: bool = False,
) -> Recorded:
    """What the cloud of a plan registers; `use` calls what other rooms would."""

    def program() -> None:
        use(Azure("fleet", plan, models))

    return run(program, preview=preview)


@cache
def built(stack: str, *, preview: bool = False) -> Recorded:
    """An example stack's cloud, used as the platform and the models use it."""
    plan = example(stack)

    def use(cloud: Azure) -> None:
        cloud.volumes("serving", plan.models)
        pulumi.export("kubeconfig", cloud.kubeconfig)

    return build(site(stack), plan.models, use, preview=preview)
