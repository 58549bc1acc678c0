"""A stack of each cloud as the program deploys it, and what its cloud answers to everything that it can be asked."""

import copy
import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pulumi

from components.clouds import cloud_class
from components.clouds.base import Autoscaling, Cloud, Identity, Volumes
from components.platform import Platform, PlatformArgs
from components.platform.charts import ChartValues
from components.serving import Serving, ServingArgs
from planner.fleet import CloudPlan
from planner.object_sources import object_source
from planner.plan import FleetPlan, plan_values
from planner.sources import KNOWN_MODELS, known_by_source
from planner.stack_file import read_stack_file
from tests.components.world import Recorded, run
from tests.contract.fake import Fake

STACKS = Path(__file__).parents[2] / "stacks"
CASES = (
    *(f"{cloud}-{kind}" for cloud in ("aws", "gcp", "azure") for kind in ("llama-405b", "small-mig")),
    "existing",
    "fake-llama-405b",
    "fake-small-mig",
)
"""A cloud, and which of its stacks: of the fake cloud those of AWS."""

MANAGED = tuple(case for case in CASES if case != "existing")
PREFIX = "llama/3.1"
STORAGE_ACCOUNT = (
    "/subscriptions/89abcdef-89ab-cdef-0123-456789abcdef/resourceGroups/data"
    "/providers/Microsoft.Storage/storageAccounts/weights1"
)
SOURCES = {
    "aws": f"s3://elsewhere/{PREFIX}",
    "gcp": f"gs://elsewhere/{PREFIX}",
    "azure": f"az://elsewhere@weights1/{PREFIX}",
    "fake": f"s3://elsewhere/{PREFIX}",
}
"""Of each cloud, weights in a bucket that the stack did not make."""

Values = dict[str, Any]


def cloud_of(case: str) -> str:
    return case.partition("-")[0]


def class_of(case: str) -> type[Cloud]:
    return Fake if cloud_of(case) == "fake" else cloud_class(cloud_of(case))


@functools.cache
def plan_of(case: str) -> FleetPlan:
    return edited(case, lambda _: None)


def edited(case: str, edit: Callable[[Values], object]) -> FleetPlan:
    """The plan of a case, the values of its stack file edited before."""
    values = values_of(case)
    edit(values)
    return plan_values(values, base_dir=STACKS)


def values_of(case: str) -> Values:
    """The values of a case's stack file; an existing cluster's kubeconfig is one of nowhere."""
    if case == "existing":
        values = copy.deepcopy(read_stack_file(STACKS / "Pulumi.local.yaml"))
        values["existing"] = {"kubeconfig": str(_kubeconfig()), "storage_class": "standard"}
        values["images"] = {"triton": "registry.example/tritonfleet-cpu:1"}
        return values
    return copy.deepcopy(read_stack_file(STACKS / f"Pulumi.{case.replace('fake-', 'aws-')}.yaml"))


def from_source(case: str) -> FleetPlan:
    """The plan of a case with all weights in a bucket that the stack did not make."""

    def edit(values: Values) -> None:
        _storage_account(values)
        for model in values["models"]:
            config = KNOWN_MODELS / f"{known_by_source()[model['source']]}.json"
            source = f"{SOURCES[cloud_of(case)]}/{model['name']}"
            model |= {"source": source, "revision": "v1", "config": str(config)}

    return edited(case, edit)


def _storage_account(values: Values) -> None:
    if values["cloud"] == "azure":
        values.setdefault("azure", {})["storage_accounts"] = [STORAGE_ACCOUNT]


def site(plan: FleetPlan) -> CloudPlan:
    assert plan.infrastructure is not None
    return plan.infrastructure


def from_bucket(plan: FleetPlan, backend: str | None = None) -> FleetPlan:
    """The plan with all weights in the stack's bucket; engines that load as they are, with backend pytorch."""
    update = {"source": f"bucket://{PREFIX}"} | ({"backend": backend} if backend else {})
    models = (replace(model, config=model.config.model_copy(update=update)) for model in plan.models)
    return replace(plan, models=tuple(models))


def deployed(plan: FleetPlan, made: type[Cloud], *, preview: bool = False) -> Recorded:
    """What the whole program registers: cloud, platform and models, as `__main__.py` puts them together."""

    def program() -> None:
        cloud = made("cloud", site(plan), plan.models)
        platform = Platform("platform", PlatformArgs(cloud=cloud, plan=site(plan)))
        token = pulumi.Output.secret("hf_secret")
        args = ServingArgs(cloud=cloud, platform=platform, plan=plan, hugging_face_token=token, api_keys=None)
        Serving("serving", args)
        pulumi.export("kubeconfig", cloud.kubeconfig)
        pulumi.export("nodes", [resource.urn for resource in cloud.nodes])

    return run(program, preview=preview)


@functools.cache
def whole(case: str, *, preview: bool = False) -> Recorded:
    """A case as it is, deployed once."""
    return deployed(plan_of(case), class_of(case), preview=preview)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a cloud said, and what was registered meanwhile; outputs hold the URNs of what each answer names."""

    recorded: Recorded
    nobody: Identity
    reader: Identity
    fetcher: Identity | None
    volumes: Volumes
    autoscaling: Autoscaling
    charts: Sequence[ChartValues]
    attributes: frozenset[str]


@functools.cache
def asked(case: str) -> Answers:
    """A case's cloud alone, all models from the bucket where it has one, asked for everything once."""
    plan = plan_of(case) if case == "existing" else from_bucket(edited(case, _storage_account))
    found: dict[str, Any] = {}

    def program() -> None:
        cloud = class_of(case)("cloud", site(plan), plan.models)
        found["attributes"] = frozenset(name for name in Cloud.__annotations__ if hasattr(cloud, name))
        nobody, reader = (
            cloud.identity(name, namespace="ns", service_account=name, bucket_prefix=prefix)
            for name, prefix in (("nobody", None), ("reader", PREFIX))
        )
        fetcher = None
        if source := object_source(SOURCES.get(cloud_of(case), "")):
            fetcher = cloud.source_reader("fetcher", namespace="ns", service_account="fetcher", source=source)
        volumes, autoscaling = cloud.volumes("ns", plan.models), cloud.autoscaling()
        found.update(
            nobody=nobody,
            reader=reader,
            fetcher=fetcher,
            volumes=volumes,
            autoscaling=autoscaling,
            charts=cloud.charts(),
        )
        pulumi.export("kubeconfig", cloud.kubeconfig)
        pulumi.export("annotations", dict(reader.annotations))
        for name, resources in (
            ("nodes", cloud.nodes),
            ("nobody", nobody.resources),
            ("reader", reader.resources),
            ("fetcher", fetcher.resources if fetcher else ()),
            ("volumes", volumes.resources),
            ("autoscaling", autoscaling.resources),
        ):
            pulumi.export(name, [resource.urn for resource in resources])

    recorded = run(program)
    return Answers(recorded=recorded, **found)


@functools.cache
def _kubeconfig() -> Path:
    file = Path(tempfile.mkdtemp()) / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": "https://127.0.0.1:6443", "insecure-skip-tls-verify": True}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    user = {"name": "u", "user": {"token": "t"}}
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "c"}
    file.write_text(json.dumps(config | {"clusters": [cluster], "contexts": [context], "users": [user]}))
    return file


def closure(recorded: Recorded, urn: str) -> set[str]:
    """Everything that a resource waits for, by way of others too."""
    found: set[str] = set()
    pending = [urn]
    while pending:
        for needed in recorded.resources[pending.pop()].depends_on - found:
            found.add(needed)
            if needed in recorded.resources:
                pending.append(needed)
    return found
