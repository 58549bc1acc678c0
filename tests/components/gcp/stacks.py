"""The example stacks as Google Cloud sees them: their plans, variants of these, and what a run of one registers."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pulumi

from components.clouds.gcp.cloud import Gcp
from planner.fleet import CloudPlan, NodeGroupPlan, PoolPlan
from planner.plan import FleetPlan, ModelPlan, plan_file, plan_values
from planner.stack_file import read_stack_file
from tests.components.world import Recorded, Registered, run

STACKS = Path(__file__).parents[3] / "stacks"
EXAMPLES = tuple(sorted(path.name.split(".")[1] for path in STACKS.glob("Pulumi.gcp-*.yaml")))
RDMA, MIG = "gcp-llama-405b", "gcp-small-mig"


@cache
def example(stack: str) -> FleetPlan:
    """The plan of an example stack, read once."""
    return plan_file(STACKS / f"Pulumi.{stack}.yaml")


def site(stack: str) -> CloudPlan:
    """What an example stack needs beyond its models."""
    return _site(example(stack))


@cache
def over(machine_type: str, zone: str, *, capacity: tuple[str, ...] = ("spot", "flex-start")) -> CloudPlan:
    """The 405B stack on two of these machines instead, come by in one of these ways."""
    values = dict(read_stack_file(STACKS / f"Pulumi.{RDMA}.yaml"))
    (pool,) = values["pools"]
    values["pools"] = [pool | {"instance_types": [machine_type], "zones": [zone], "capacity": list(capacity)}]
    return _site(plan_values(values, base_dir=STACKS))


def with_cluster(plan: CloudPlan, **changes: object) -> CloudPlan:
    return replace(plan, cluster=plan.cluster.model_copy(update=changes))


def with_pool(plan: CloudPlan, **changes: object) -> CloudPlan:
    """The plan, its first pool changed."""
    pool: PoolPlan = replace(plan.pools[0], **changes)  # pyright: ignore[reportArgumentType]
    return replace(plan, pools=(pool, *plan.pools[1:]))


def with_group(plan: CloudPlan, **changes: object) -> CloudPlan:
    """The plan, its first pool having one node group: its first, changed."""
    group: NodeGroupPlan = replace(plan.pools[0].node_groups[0], **changes)  # pyright: ignore[reportArgumentType]
    return with_pool(plan, node_groups=(group,))


def from_bucket(model: ModelPlan, prefix: str) -> ModelPlan:
    """The same model, its weights in the stack's bucket."""
    return replace(model, config=model.config.model_copy(update={"source": f"bucket://{prefix}"}))


def build(
    plan: CloudPlan,
    models: tuple[ModelPlan, ...] = (),
    use: Callable[[Gcp], object] = lambda _: None,
    *,
    preview: bool = False,
) -> Recorded:
    """What the cloud of a plan registers; `use` calls what other rooms would."""

    def program() -> None:
        use(Gcp("fleet", plan, models))

    return run(program, preview=preview)


@cache
def built(stack: str, *, preview: bool = False) -> Recorded:
    """An example stack's cloud, used as the platform and the models use it."""
    plan = example(stack)

    def use(cloud: Gcp) -> None:
        cloud.autoscaling()
        cloud.volumes("serving", plan.models)
        pulumi.export("kubeconfig", cloud.kubeconfig)

    return build(site(stack), plan.models, use, preview=preview)


def only_gpu_pool(recorded: Recorded) -> Registered:
    """The one node pool beside the system nodes'."""
    (pool,) = [pool for pool in recorded.of("NodePool") if pool.inputs["name"] != "system"]
    return pool


def _site(plan: FleetPlan) -> CloudPlan:
    assert plan.infrastructure is not None
    return plan.infrastructure
