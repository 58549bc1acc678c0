"""The Job that installs the Python packages of pods without a GPU, once, into the shared file system.

These pods run in the small Python image, which carries none of them, and a stack has no registry for an image of its
own. So the packages are treated as an engine is: a folder named by what decides its content, published whole, mounted
read-only. Every wheel is pinned by its hash (requirements/pods.txt).
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.batch.v1 import Job
from pulumi_kubernetes.core.v1 import ResourceRequirementsArgs

from components.clouds.base import Identity
from components.serving import jobs, pods
from components.serving.common import Common, config_map, service_account
from components.serving.config_maps import requirements_file
from components.serving.labels import INSTALLER, NAME_LABEL, common_labels
from components.serving.policies import internet_policy
from planner.versions import PYTHON_IMAGE

FOLDER = f"{pods.SHARED}/environments"
_PODS = {NAME_LABEL: INSTALLER}

# Allowances: pip takes 0.2 GiB, and 0.6 GiB of disk for what it unpacks.
_CPU, _MEMORY_MIB, _DISK_MIB = "250m", 1024, 1024
_WORK_SECONDS = 1200
# As of a download of weights: nobody can tell the index's bad hour from a package that is gone.
_RETRIES, _WRONG_USAGE, _GRACE_SECONDS = 6, 2, 30


@dataclass(frozen=True, kw_only=True)
class EnvironmentArgs:
    """`depends_on` has the claims and what makes the namespace."""

    common: Common
    depends_on: Sequence[pulumi.Resource]


class Environment(pulumi.ComponentResource):
    """The installation of one set of packages. What imports them depends on `job`."""

    job: Job

    def __init__(self, name: str, args: EnvironmentArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:serving:Environment", name, None, opts)
        common, files = args.common, requirements_file()
        needs: list[pulumi.Resource] = [
            *args.depends_on,
            config_map(f"{name}-requirements", files, common, parent=self),
            # No rights in the cloud: of that, it writes to a mounted file system only.
            service_account(f"{name}-account", INSTALLER, Identity(), common, parent=self),
            internet_policy(
                f"{name}-internet", pods=_PODS, policy=INSTALLER, namespace=common.namespace, opts=common.child(self)
            ),
        ]
        self.job = jobs.once(f"{name}-job", _job(common), common, parent=self, depends_on=needs)
        self.register_outputs({})


def environment_name() -> str:
    """The folder's name: what is installed, and for which Python."""
    (text,) = requirements_file().data.values()
    return hashlib.sha256(f"{_python()}\0{text}".encode()).hexdigest()[:10]


def variables() -> Mapping[str, str]:
    """What a container that mounts the shared file system needs to import the packages."""
    return {"PYTHONPATH": f"{pods.ROOT}:{FOLDER}/{environment_name()}"}


def _python() -> str:
    found = re.search(r"/python:(\d+\.\d+)", PYTHON_IMAGE)
    assert found, f"{PYTHON_IMAGE} does not say which Python it has"
    return found[1]


def _job(common: Common) -> jobs.OnceArgs:
    files = requirements_file()
    (path,) = files.paths.values()
    exact = {"memory": pods.mebibytes(_MEMORY_MIB), "ephemeral-storage": pods.mebibytes(_DISK_MIB)}
    command = ["python3", "-m", "runtime.environment", "--requirements", f"{pods.ROOT}/{path}"]
    return jobs.OnceArgs(
        name=f"{INSTALLER}-{environment_name()}",
        labels=common_labels() | _PODS,
        account=INSTALLER,
        container="install",
        image=common.python_image,
        command=[*command, "--into", FOLDER, "--name", environment_name()],
        resources=ResourceRequirementsArgs(requests={"cpu": _CPU} | exact, limits=exact),
        parts=[
            pods.runtime_code(common.runtime),
            pods.single_file("requirements", files),
            pods.claim("shared", common.volumes.engines_rw, pods.SHARED, read_only=False),
            *pods.scratch_folders(_DISK_MIB),
        ],
        pool=None,
        grace_seconds=_GRACE_SECONDS,
        deadline_seconds=jobs.START_SECONDS + _WORK_SECONDS,
        retries=_RETRIES,
        final_statuses=[_WRONG_USAGE],
    )
