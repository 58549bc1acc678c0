"""The project: the APIs that the stack calls, and the names that it gives to things there."""

import hashlib
import re

import pulumi
import pulumi_gcp as gcp

from planner.fleet import CloudPlan

_APIS = (
    "cloudkms",
    "cloudresourcemanager",
    "compute",
    "container",
    "dns",
    "iam",
    "logging",
    "monitoring",
    "servicenetworking",
    "storage",
)
STORAGE_APIS = {"nfs": "file", "lustre": "lustre"}


def provider(name: str, plan: CloudPlan, cluster_name: str) -> gcp.Provider:
    """The provider of everything but the APIs: it waits for them, and so does all that is made with it."""
    opening = gcp.Provider(f"{name}-apis", project=plan.gcp.project, region=plan.region)
    enabled = [
        gcp.projects.Service(
            f"{name}-{api}",
            service=f"{api}.googleapis.com",
            # Others in the project may use it too.
            disable_on_destroy=False,
            opts=pulumi.ResourceOptions(provider=opening),
        )
        for api in (*_APIS, STORAGE_APIS[plan.storage.kind])
    ]
    return gcp.Provider(
        name,
        project=plan.gcp.project,
        region=plan.region,
        default_labels={"tritonfleet-cluster": cluster_name, "managed-by": "pulumi"},
        opts=pulumi.ResourceOptions(depends_on=enabled),
    )


def cluster_name(project: str, stack: str) -> str:
    """The cluster's name in Google Cloud, at most 40 letters (GKE API, Cluster.name). Known before anything exists."""
    return shortened(re.sub("[^a-z0-9]+", "-", f"{project}-{stack}".lower()).strip("-"), 40)


def shortened(name: str, length: int) -> str:
    """The name, or so much of it as leaves room for a hash of the whole."""
    if len(name) <= length:
        return name
    return f"{name[: length - 7].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
