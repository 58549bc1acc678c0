"""Who else than its maker administers the cluster."""

import pulumi
from pulumi_gcp import projects
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs
from pulumi_kubernetes.rbac.v1 import ClusterRoleBinding, RoleRefArgs, SubjectArgs

from components.clouds.gcp.project import shortened
from components.labels import LABELS

_FIND_CLUSTERS = "roles/container.clusterViewer"


def administer(name: str, principal: str, project: str, *, parent: pulumi.Resource) -> None:
    """Makes a principal such as `user:a@example.com` one, by RBAC: IAM would let it administer every cluster of the
    project. IAM lets it find this one."""
    kind, _, email = principal.partition(":")
    # By whom it admits, so that another order of administrators changes nothing.
    name = f"{name}-{shortened(email.replace('@', '-').replace('.', '-'), 40)}"
    child = pulumi.ResourceOptions(parent=parent)
    projects.IAMMember(name, project=project, role=_FIND_CLUSTERS, member=principal, opts=child)
    ClusterRoleBinding(
        name,
        metadata=ObjectMetaArgs(name=f"tritonfleet:{email}", labels=LABELS),
        role_ref=RoleRefArgs(api_group="rbac.authorization.k8s.io", kind="ClusterRole", name="cluster-admin"),
        subjects=[
            SubjectArgs(api_group="rbac.authorization.k8s.io", kind="Group" if kind == "group" else "User", name=email)
        ],
        opts=child,
    )
