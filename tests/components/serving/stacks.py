"""The example stacks, served on a cloud that makes nothing."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pulumi
import pulumi_kubernetes as kubernetes
from pulumi_kubernetes.core.v1 import Namespace
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs

from components.clouds.base import Autoscaling, Cloud, Identity, Volumes, Way
from components.platform.charts import ChartValues
from components.platform.platform import Platform
from components.serving import Serving, ServingArgs
from planner.errors import Problem
from planner.fleet import CloudPlan
from planner.object_sources import ObjectSource
from planner.plan import FleetPlan, ModelPlan, plan_values
from planner.stack_file import read_stack_file
from tests.components.world import Recorded, Registered, run

FOLDER = Path(__file__).parents[3] / "stacks"
EXAMPLES = sorted(path.name.removeprefix("Pulumi.").removesuffix(".yaml") for path in FOLDER.glob("Pulumi.aws-*.yaml"))
LARGE, SMALL, MIG, TWO_REPLICAS = "aws-llama-405b", "aws-dev", "aws-small-mig", "aws-llama-70b"

Values = dict[str, Any]


class StillCloud(Cloud):
    """Names claims and identities, and makes one resource that stands for the volumes."""

    def __init__(
        self,
        name: str,
        plan: CloudPlan,
        models: Sequence[ModelPlan],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        del plan, models  # nothing is made of them
        pulumi.ComponentResource.__init__(self, "test:clouds:Still", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        self.kubeconfig = pulumi.Output.secret("kubeconfig")
        self.kubernetes = kubernetes.Provider(f"{name}-kubernetes", kubeconfig=self.kubeconfig, opts=child)
        self.mirrors = {}
        self.prefixes: dict[str, str | None] = {}

    def identity(self, name: str, *, namespace: str, service_account: str, bucket_prefix: str | None) -> Identity:
        assert name == service_account
        self.prefixes[f"{namespace}/{service_account}"] = bucket_prefix
        if bucket_prefix is None:
            return Identity()
        right = pulumi.CustomResource("test:index:Right", f"right-{name}", {}, pulumi.ResourceOptions(parent=self))
        return Identity(annotations={"cloud.example/reads": bucket_prefix}, resources=[right])

    def source_reader(self, name: str, *, namespace: str, service_account: str, source: ObjectSource) -> Identity:
        assert name == service_account
        right = pulumi.CustomResource("test:index:Right", f"right-{name}", {}, pulumi.ResourceOptions(parent=self))
        return Identity(
            annotations={"cloud.example/reads": f"{source.bucket}/{source.prefix} in {namespace}"},
            resources=[right],
            pod_labels={"cloud.example/somebody": "true"},
            egress=[Way(cidr="169.254.1.2/32", port=80)],
        )

    def volumes(
        self, namespace: str, models: Sequence[ModelPlan], *, opts: pulumi.ResourceOptions | None = None
    ) -> Volumes:
        self.volumes_in = namespace
        merged = pulumi.ResourceOptions.merge(pulumi.ResourceOptions(parent=self, provider=self.kubernetes), opts)
        claims = Namespace("claims", metadata=ObjectMetaArgs(name="claims"), opts=merged)
        weights = {model.name: f"{model.name}-weights" for model in models}
        return Volumes(engines_rw="engines-rw", engines_ro="engines-ro", weights=weights, resources=[claims])

    def autoscaling(self) -> Autoscaling:
        raise NotImplementedError

    def charts(self) -> Sequence[ChartValues]:
        raise NotImplementedError

    @classmethod
    def unreachable(cls, plan: CloudPlan) -> list[Problem]:
        raise NotImplementedError


def planned(stack: str = LARGE, edit: Callable[[Values], object] = lambda _: None) -> FleetPlan:
    """The plan of an example stack, its values edited before."""
    values = copy.deepcopy(read_stack_file(FOLDER / f"Pulumi.{stack}.yaml"))
    edit(values)
    return plan_values(values, base_dir=FOLDER)


def served(
    plan: FleetPlan | None = None,
    *,
    preview: bool = False,
    token: str | None = "hf_secret",
    api_keys: str | None = None,
) -> Recorded:
    """What serving a plan registers."""
    whole = plan or planned()

    def program() -> None:
        site = whole.infrastructure
        assert site is not None
        cloud = StillCloud("cloud", site, whole.models)
        ready = Namespace(
            "ready", metadata=ObjectMetaArgs(name="ready"), opts=pulumi.ResourceOptions(provider=cloud.kubernetes)
        )
        platform = cast(Platform, SimpleNamespace(namespace="tritonfleet", ready=[ready]))
        secret = pulumi.Output.secret(token) if token else None
        serving = Serving(
            "serving",
            ServingArgs(cloud=cloud, platform=platform, plan=whole, hugging_face_token=secret, api_keys=api_keys),
        )
        pulumi.export("endpoints", serving.endpoints)
        pulumi.export("generated", serving.generated_keys)

    return run(program, preview=preview)


def with_source(plan: FleetPlan, source: str, backend: str | None = None) -> FleetPlan:
    """The plan with all weights from elsewhere, under the engine keys that it has."""

    def moved(model: ModelPlan) -> ModelPlan:
        update = {"source": source} | ({"backend": backend} if backend else {})
        return replace(model, config=model.config.model_copy(update=update))

    return replace(plan, models=tuple(moved(model) for model in plan.models))


def model_values(values: Values, index: int = 0) -> Values:
    """One model's part of a stack's values."""
    return values["models"][index]


def build_of(recorded: Recorded) -> Registered:
    """The Job of the only engine."""
    return recorded.one("Job", "-engine-")


def fetch_of(recorded: Recorded) -> Registered:
    """The Job of the only source."""
    return recorded.one("Job", "-weights-")


def templates(recorded: Recorded, model: str) -> dict[str, Values]:
    """The pod templates of a model's groups: leader and worker."""
    spec = recorded.one("LeaderWorkerSet", f"serving-{model}-set").inputs["spec"]["leaderWorkerTemplate"]
    return {"leader": spec["leaderTemplate"], "worker": spec["workerTemplate"]}


def container(template: Values, name: str = "triton") -> Values:
    """A container or init container of a pod template."""
    spec = template["spec"]
    return next(c for c in (*spec.get("initContainers", []), *spec["containers"]) if c["name"] == name)


def variables(one: Values) -> dict[str, str]:
    """A container's environment."""
    return {variable["name"]: variable["value"] for variable in one["env"]}


def every_template(recorded: Recorded) -> list[Values]:
    """Every pod template of fetches, builds and groups."""
    jobs = [job.inputs["spec"]["template"] for job in recorded.of("Job")]
    sets = [one.inputs["spec"]["leaderWorkerTemplate"] for one in recorded.of("LeaderWorkerSet")]
    return [*jobs, *(template for one in sets for template in (one["leaderTemplate"], one["workerTemplate"]))]


def objects(recorded: Recorded) -> list[Registered]:
    """The Kubernetes objects that serving made."""
    return [r for r in recorded if r.type.startswith("kubernetes:") and r.name.startswith("serving-")]
