"""The Job that builds one engine: named by the engine's key, run on the very pool that serves it.

An unchanged key is an unchanged Job, and a new key is a new one beside it, whose engine is published beside the old
engine; groups move to it only when it is there. Decisions behind that:

- Pulumi ignores changes of the Job's spec. A Job's pod template is immutable, so that a new image digest, a fix in
  runtime/ or another request of memory would replace the Job, and claim a GPU node only to find the engine built. What
  decides the engine's content is in its key. So a build keeps the spec that it began with, and one that failed begins
  anew, with today's spec, after `pulumi destroy --target URN`. The annotation `pulumi.com/replaceUnready` would begin
  it anew at each `pulumi up`, with the old spec, and would also end a build that runs in its third hour when an
  interrupted `pulumi up` is repeated.
- Pulumi waits for the Job, and groups depend on it: their pods would hold the very GPUs that the build needs. The
  Job's own deadline is what ends the waiting; Pulumi's is a little longer, so that the reason is the Job's.
- There is no ttlSecondsAfterFinished: `pulumi refresh` would forget a Job that is gone, and the next `pulumi up` make
  it again and claim a GPU node for nothing. A finished Job costs nothing, and goes when its key leaves the plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.batch.v1 import (
    Job,
    JobSpecArgs,
    PodFailurePolicyArgs,
    PodFailurePolicyOnExitCodesRequirementArgs,
    PodFailurePolicyOnPodConditionsPatternArgs,
    PodFailurePolicyRuleArgs,
)
from pulumi_kubernetes.core.v1 import ContainerArgs, PodSpecArgs, PodTemplateSpecArgs
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs

from components.serving import pods
from components.serving.common import Common, config_map, service_account
from components.serving.config_maps import SPEC_FILE, spec_file
from components.serving.labels import BUILDER, ENGINE_LABEL, NAME_LABEL, common_labels
from components.serving.policies import fetch_policy
from planner.fleet import ServingPlan
from planner.plan import ModelPlan
from planner.sources import checkpoint_folder

HUB, BUCKET = "hf://", "bucket://"
TOKEN_FOLDER = "/etc/tritonfleet/hugging-face"
TOKEN_KEY = "token"

# Allowances, not measurements; a build that is done ends by itself, so they only bound one that is stuck.
_NODE_WAIT_SECONDS = 3600
_FETCH_SECONDS_PER_GB = 10
_COMPILE_SECONDS_PER_GB = 20
# A conversion reads the checkpoint and writes its own; the compiler reads that and writes the engine.
_PASSES = 4
_RETRIES = 2
_PULUMI_MARGIN_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class EngineBuildArgs:
    """`model` is one of those that run the engine. `identity` annotates the service account; `token_secret` holds a
    Hugging Face token under `token`."""

    model: ModelPlan
    serving: ServingPlan
    common: Common
    identity: Mapping[str, pulumi.Input[str]]
    token_secret: str | None
    depends_on: Sequence[pulumi.Resource]


class EngineBuild(pulumi.ComponentResource):
    """One engine's build. What needs the engine depends on `job`."""

    job: Job

    def __init__(self, name: str, args: EngineBuildArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:serving:EngineBuild", name, None, opts)
        model, common = args.model, args.common
        engine, deadline = model.engine.id, deadline_seconds(model, args.serving)
        needs: list[pulumi.Resource] = [
            *args.depends_on,
            config_map(f"{name}-spec", spec_file(model), common, parent=self),
            service_account(f"{name}-account", account_name(model), args.identity, common, parent=self),
        ]
        if model.config.source.startswith(HUB):
            opts = common.child(self)
            needs.append(fetch_policy(f"{name}-fetch", engine=engine, namespace=common.namespace, opts=opts))
        wait = f"{deadline + _PULUMI_MARGIN_SECONDS}s"
        self.job = Job(
            f"{name}-job",
            metadata=ObjectMetaArgs(name=f"engine-{engine}", namespace=common.namespace, labels=_labels(model)),
            spec=job_spec(args),
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=needs,
                ignore_changes=["spec"],
                custom_timeouts=pulumi.CustomTimeouts(create=wait, update=wait),
            ),
        )
        self.register_outputs({})


def account_name(model: ModelPlan) -> str:
    """The service account of the model's build."""
    return f"{model.name}-build"


def checkpoint_path(model: ModelPlan) -> str:
    """Where a pod finds the weights that the engine is built from."""
    source = model.config.source
    if source.startswith(BUCKET):
        return pods.WEIGHTS
    return f"{pods.CHECKPOINTS}/{checkpoint_folder(source, _revision(model))}"


def bucket_prefix(model: ModelPlan) -> str | None:
    """The part of the stack's bucket that holds the model's weights."""
    source = model.config.source
    return source.removeprefix(BUCKET).strip("/") if source.startswith(BUCKET) else None


def deadline_seconds(model: ModelPlan, serving: ServingPlan) -> int:
    """When a build is given up, retries and the wait for a node included: twice an estimate from the weights' size and
    what the shared storage reads."""
    gigabytes = sum(rank.weights_bytes for rank in model.memory) / 1e9
    fetch = _FETCH_SECONDS_PER_GB * gigabytes if model.config.source.startswith(HUB) else serving.load_seconds
    work = fetch + _PASSES * serving.load_seconds + _COMPILE_SECONDS_PER_GB * gigabytes
    return _NODE_WAIT_SECONDS + 2 * round(work)


def job_spec(args: EngineBuildArgs) -> JobSpecArgs:
    """The whole Job: fetch from the Hub where the source is there, then build."""
    model, serving = args.model, args.serving
    parts = [
        pods.runtime_code(args.common.runtime),
        pods.single_file("spec", spec_file(model)),
        pods.claim("shared", args.common.volumes.engines_rw, pods.SHARED, read_only=False),
        *pods.scratch(serving),
    ]
    if bucket_prefix(model):
        parts.append(pods.claim("weights", args.common.volumes.weights[model.name], pods.WEIGHTS, read_only=True))
    from_hub = model.config.source.startswith(HUB)
    token = pods.secret("hugging-face", args.token_secret, TOKEN_FOLDER) if from_hub and args.token_secret else None
    template = PodSpecArgs(
        service_account_name=account_name(model),
        automount_service_account_token=False,
        enable_service_links=False,
        security_context=pods.pod_security(),
        node_selector=serving.pool.node_selector,
        tolerations=pods.tolerations(serving.pool),
        init_containers=[_fetch(args, parts, token)] if from_hub else None,
        containers=[_build(args, parts)],
        volumes=pods.volumes([*parts, *([token] if token else [])]),
        restart_policy="Never",
        # The build cleans up its staging folder when it is told to end.
        termination_grace_period_seconds=serving.grace_seconds,
    )
    return JobSpecArgs(
        backoff_limit=_RETRIES,
        active_deadline_seconds=deadline_seconds(model, serving),
        pod_failure_policy=_failure_policy(),
        # Two pods at once would only wait for each other's lock.
        pod_replacement_policy="Failed",
        template=PodTemplateSpecArgs(metadata=ObjectMetaArgs(labels=_labels(model)), spec=template),
    )


def _failure_policy() -> PodFailurePolicyArgs:
    """A reclaimed spot node is no failure of the build; what the build refuses, it would refuse again."""
    disrupted = PodFailurePolicyOnPodConditionsPatternArgs(type="DisruptionTarget", status="True")
    refused = PodFailurePolicyOnExitCodesRequirementArgs(container_name="build", operator="In", values=[1, 2])
    return PodFailurePolicyArgs(
        rules=[
            PodFailurePolicyRuleArgs(action="Ignore", on_pod_conditions=[disrupted]),
            PodFailurePolicyRuleArgs(action="FailJob", on_exit_codes=refused),
        ]
    )


def _fetch(args: EngineBuildArgs, parts: Sequence[pods.Mounted], token: pods.Mounted | None) -> ContainerArgs:
    config = args.model.config
    command = ["python3", "-m", "runtime.fetch", "--source", config.source, "--revision", _revision(args.model)]
    # Read by huggingface_hub; the token is in no other container.
    where = {"HF_TOKEN_PATH": f"{TOKEN_FOLDER}/{TOKEN_KEY}"} if token else {}
    return ContainerArgs(
        name="fetch",
        image=args.common.image,
        image_pull_policy="Always",
        command=[*command, "--into", pods.CHECKPOINTS],
        working_dir=pods.ROOT,
        env=pods.environment(where),
        # A pod gets what its most demanding container asks for, so the GPUs stand idle meanwhile.
        resources=pods.resources(args.serving),
        security_context=pods.container_security(),
        volume_mounts=pods.mounts([*parts, *([token] if token else [])]),
    )


def _build(args: EngineBuildArgs, parts: Sequence[pods.Mounted]) -> ContainerArgs:
    command = ["python3", "-m", "runtime.build", "--spec", f"{pods.ROOT}/{SPEC_FILE}"]
    return ContainerArgs(
        name="build",
        image=args.common.image,
        image_pull_policy="Always",
        command=[*command, "--checkpoint", checkpoint_path(args.model), "--store", pods.STORE],
        working_dir=pods.ROOT,
        env=pods.environment(),
        resources=pods.resources(args.serving),
        security_context=pods.container_security(),
        volume_mounts=pods.mounts(parts),
    )


def _revision(model: ModelPlan) -> str:
    # The Hub's own default; the plan warns of a revision that can move.
    return model.config.revision or "main"


def _labels(model: ModelPlan) -> dict[str, str]:
    return common_labels(model.name) | {NAME_LABEL: BUILDER, ENGINE_LABEL: model.engine.id}
