"""The Job that downloads the weights of one source: once for all engines built from it, and without a GPU.

It runs before the builds, on the nodes that run the cluster's controllers: hundreds of gigabytes take hours, and GPUs
would stand idle meanwhile. Pods that build or serve have no way out of the cluster and know no token. It runs in the
small Python image: huggingface_hub and obstore come from the environment that is installed before (environment.py).
Weights that were removed from the shared file system come back as something that failed does (see jobs.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.batch.v1 import Job
from pulumi_kubernetes.core.v1 import ResourceRequirementsArgs

from components.clouds.base import Identity
from components.serving import environment, jobs, pods
from components.serving.common import Common, service_account
from components.serving.labels import common_labels, fetch_of
from components.serving.policies import fetch_policy
from planner.object_sources import object_source
from planner.plan import ModelPlan
from planner.sources import checkpoint_folder
from planner.tensors import parameters

HUB = "hf://"
TOKEN_FOLDER = "/etc/tritonfleet/hugging-face"
TOKEN_KEY = "token"

# A system node of 2 vCPUs and 8 GiB (m7i.large) has room for two of these beside the controllers. Eight files at once
# by plain HTTPS take 0.4 GiB (measured with huggingface_hub 2.4); the rest is for pages not yet written to the share.
_CPU, _MEMORY_MIB, _DISK_MIB = "250m", 2048, 1024
# hf_xet would take 2 to 8 GB for buffers (huggingface_hub#3300, xet-core#927), and gain nothing on so small a network.
_ENVIRONMENT = {"HF_HUB_DISABLE_XET": "1"}

# 100 MB/s in, which m7i.large has in the long run, and once more to read all of it back for its checksums.
_SECONDS_PER_GB = 2 * 10
# Published checkpoints have two bytes for each weight or fewer; the deadline's doubling allows for float32.
_BYTES_PER_WEIGHT = 2

# A refusal is tried again: nobody can tell the Hub's bad hour from a repository that is gone. What is there stays, so
# that each try goes on from the one before. Kubernetes waits 10 s before the first and doubles that: 10 min in all.
_RETRIES = 6
_WRONG_USAGE = 2
# The fetch ends at once when it is told to.
_GRACE_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class WeightsFetchArgs:
    """`model` is one of those that have the source, and `identity` is the service account's. `token_secret` holds a
    Hugging Face token under `token`. `depends_on` has the environment's installation."""

    model: ModelPlan
    identity: Identity
    common: Common
    token_secret: str | None
    deadline_seconds: int
    depends_on: Sequence[pulumi.Resource]


class WeightsFetch(pulumi.ComponentResource):
    """The download of one source at one revision. What reads the weights depends on `job`."""

    job: Job

    def __init__(self, name: str, args: WeightsFetchArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:serving:WeightsFetch", name, None, opts)
        folder, common = _folder(args.model), args.common
        account = object_name(folder)
        needs: list[pulumi.Resource] = [
            *args.depends_on,
            service_account(f"{name}-account", account, args.identity, common, parent=self),
            fetch_policy(
                f"{name}-internet",
                checkpoint=folder,
                ways=args.identity.egress,
                namespace=common.namespace,
                opts=common.child(self),
            ),
        ]
        self.job = jobs.once(f"{name}-job", _job(args, folder), common, parent=self, depends_on=needs)
        self.register_outputs({})


def fetched(model: ModelPlan) -> str | None:
    """The checkpoint's folder, below all that are fetched; None for weights that lie in the cloud already."""
    source = model.config.source
    return _folder(model) if source.startswith(HUB) or object_source(source) else None


def checkpoint_path(model: ModelPlan) -> str:
    """Where pods find what is fetched."""
    return f"{pods.CHECKPOINTS}/{_folder(model)}"


def object_name(folder: str) -> str:
    """The name of a fetch's Job, service account and network policy."""
    return f"weights-{folder}"


def deadline_seconds(models: Sequence[ModelPlan]) -> int:
    """When a fetch is given up, retries included: twice an estimate for all weights of the stack, whose downloads share
    the network of the same few nodes."""
    weights = {folder: parameters(model.facts) for model in models if (folder := fetched(model))}
    gigabytes = _BYTES_PER_WEIGHT * sum(weights.values()) / 1e9
    return jobs.START_SECONDS + 2 * round(_SECONDS_PER_GB * gigabytes)


def _job(args: WeightsFetchArgs, folder: str) -> jobs.OnceArgs:
    config, common, name = args.model.config, args.common, object_name(folder)
    command = ["python3", "-m", "runtime.fetch", "--source", config.source, "--revision", _revision(args.model)]
    command += ["--into", pods.CHECKPOINTS] + (["--anonymous"] if config.source_access == "anonymous" else [])
    parts = [
        pods.runtime_code(common.runtime),
        pods.claim("shared", common.volumes.engines_rw, pods.SHARED, read_only=False),
        *pods.scratch_folders(_DISK_MIB),
    ]
    variables = dict(environment.variables())
    if config.source.startswith(HUB):
        variables |= _ENVIRONMENT
    if config.source.startswith(HUB) and args.token_secret:
        parts.append(pods.secret("hugging-face", args.token_secret, TOKEN_FOLDER))
        # Read by huggingface_hub.
        variables["HF_TOKEN_PATH"] = f"{TOKEN_FOLDER}/{TOKEN_KEY}"
    exact = {"memory": pods.mebibytes(_MEMORY_MIB), "ephemeral-storage": pods.mebibytes(_DISK_MIB)}
    return jobs.OnceArgs(
        name=name,
        labels={**common_labels(), **fetch_of(folder), **args.identity.pod_labels},
        account=name,
        container="fetch",
        image=common.python_image,
        command=command,
        environment=variables,
        resources=ResourceRequirementsArgs(requests={"cpu": _CPU} | exact, limits=exact),
        parts=parts,
        pool=None,
        grace_seconds=_GRACE_SECONDS,
        deadline_seconds=args.deadline_seconds,
        retries=_RETRIES,
        final_statuses=[_WRONG_USAGE],
    )


def _folder(model: ModelPlan) -> str:
    return checkpoint_folder(model.config.source, _revision(model))


def _revision(model: ModelPlan) -> str:
    revision = model.config.revision
    assert revision, f"{model.name}: the plan has a source that is fetched, without a revision"
    return revision
