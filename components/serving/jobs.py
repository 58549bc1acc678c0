"""Jobs that make one thing once: the weights of a source, an engine. Named by what they make.

What is there already is an unchanged Job, and something new is a new Job beside it. Decisions behind that:

- Pulumi ignores changes of the Job's spec. A Job's pod template is immutable, so that a new image digest, a fix in
  runtime/ or another request of memory would replace the Job, and claim a node and pull an image only to find the work
  done, or end a download in its second hour. So a Job keeps the spec that it began with, and one that failed begins
  anew, with today's spec (a token that was missing, say), at the first `pulumi up` after `kubectl delete job`.
  The annotation `pulumi.com/replaceUnready` would begin it anew at each `pulumi up`, with the old spec, and would also
  end a build that runs in its third hour when an interrupted `pulumi up` is repeated.
- Pulumi waits for the Job. The Job's own deadline is what ends the waiting; Pulumi's is a little longer, so that the
  reason is the Job's.
- Another shared file system is empty, so each Job of the stack begins anew there. An annotation names the file system,
  and a change of it replaces the Job, with today's spec. The old one goes first, since the new one has its name.
- There is no ttlSecondsAfterFinished: `pulumi refresh` would forget a Job that is gone, and the next `pulumi up` make
  it again, for nothing. A finished Job costs nothing, and goes when what it made leaves the plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pulumi
from pulumi_kubernetes.batch.v1 import (
    Job,
    JobSpecArgs,
    PodFailurePolicyArgs,
    PodFailurePolicyOnExitCodesRequirementArgs,
    PodFailurePolicyOnPodConditionsPatternArgs,
    PodFailurePolicyRuleArgs,
)
from pulumi_kubernetes.core.v1 import ContainerArgs, PodSpecArgs, PodTemplateSpecArgs, ResourceRequirementsArgs
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs

from components.serving import pods
from components.serving.common import Common
from planner.fleet import PoolPlan

START_SECONDS = 3600
"""Part of every deadline: waiting for a node and for the image on it. An allowance, not a measurement."""

FILE_SYSTEM = "tritonfleet.io/file-system"

_PULUMI_MARGIN_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class OnceArgs:
    """A Job of one container. Without a `pool` its pod tolerates nothing, and so runs on nodes without GPUs.

    `image` is the serving one unless given. Its pods get `deadline_seconds`, retries and waiting included. A pod that
    fails is replaced `retries` times, unless its container ends with one of `final_statuses`: those would come again.
    """

    name: str
    labels: Mapping[str, str]
    account: str
    container: str
    image: pulumi.Input[str] | None = None
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    resources: ResourceRequirementsArgs
    parts: Sequence[pods.Mounted]
    pool: PoolPlan | None
    grace_seconds: int
    deadline_seconds: int
    retries: int
    final_statuses: Sequence[int]
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])


def once(
    name: str, args: OnceArgs, common: Common, *, parent: pulumi.Resource, depends_on: Sequence[pulumi.Resource]
) -> Job:
    """The Job; whatever depends on it waits until it is done."""
    wait = f"{args.deadline_seconds + _PULUMI_MARGIN_SECONDS}s"
    return Job(
        name,
        metadata=ObjectMetaArgs(
            name=args.name,
            namespace=common.namespace,
            labels=dict(args.labels),
            annotations={FILE_SYSTEM: common.file_system},
        ),
        spec=_spec(args, args.image or common.image),
        opts=pulumi.ResourceOptions(
            parent=parent,
            depends_on=depends_on,
            ignore_changes=["spec"],
            replace_on_changes=[f'metadata.annotations["{FILE_SYSTEM}"]'],
            delete_before_replace=True,
            custom_timeouts=pulumi.CustomTimeouts(create=wait, update=wait),
        ),
    )


def _spec(args: OnceArgs, image: pulumi.Input[str]) -> JobSpecArgs:
    container = ContainerArgs(
        name=args.container,
        image=image,
        image_pull_policy="Always",
        command=list(args.command),
        working_dir=pods.ROOT,
        env=pods.environment(args.environment),
        resources=args.resources,
        security_context=pods.container_security(),
        volume_mounts=pods.mounts(args.parts),
    )
    template = PodSpecArgs(
        service_account_name=args.account,
        automount_service_account_token=False,
        enable_service_links=False,
        security_context=pods.pod_security(),
        node_selector=(args.pool.node_selector or None) if args.pool else None,
        tolerations=(pods.tolerations(args.pool) or None) if args.pool else None,
        containers=[container],
        volumes=pods.volumes(args.parts),
        restart_policy="Never",
        termination_grace_period_seconds=args.grace_seconds,
    )
    return JobSpecArgs(
        backoff_limit=args.retries,
        active_deadline_seconds=args.deadline_seconds,
        pod_failure_policy=_failure_policy(args),
        # Two pods at once would only wait for each other's lock.
        pod_replacement_policy="Failed",
        template=PodTemplateSpecArgs(
            metadata=ObjectMetaArgs(labels=dict(args.labels), annotations={**pods.ANNOTATIONS, **args.annotations}),
            spec=template,
        ),
    )


def _failure_policy(args: OnceArgs) -> PodFailurePolicyArgs:
    """A reclaimed or drained node is no failure of the work."""
    disrupted = PodFailurePolicyOnPodConditionsPatternArgs(type="DisruptionTarget", status="True")
    final = PodFailurePolicyOnExitCodesRequirementArgs(
        container_name=args.container, operator="In", values=list(args.final_statuses)
    )
    return PodFailurePolicyArgs(
        rules=[
            PodFailurePolicyRuleArgs(action="Ignore", on_pod_conditions=[disrupted]),
            PodFailurePolicyRuleArgs(action="FailJob", on_exit_codes=final),
        ]
    )
