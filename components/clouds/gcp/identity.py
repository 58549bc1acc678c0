"""Who may read what of the model bucket: service accounts as principals of the project's workload identity pool."""

import pulumi
from pulumi_gcp import projects, storage

from components.clouds.base import Identity, Way
from planner.object_sources import ObjectSource

# GKE's metadata server, where pods get tokens: Dataplane V2 looks at the address that the pod calls (GKE documentation,
# "Network policy and Workload Identity Federation for GKE").
METADATA_SERVER = tuple(Way(cidr="169.254.169.254/32", port=port) for port in (80, 8080))


class Identities:
    """Rights of one cluster's service accounts. A principal has both of the project's names, its id and its number.

    It does not have the cluster's: accounts of the same name and namespace are one principal in all of the project.
    """

    def __init__(
        self,
        name: str,
        *,
        cluster_name: str,
        project: str,
        project_number: pulumi.Input[str],
        bucket: pulumi.Input[str],
        cluster: pulumi.Resource,
        parent: pulumi.Resource,
    ) -> None:
        """`cluster` makes the pool of identities. Nothing is made before somebody reads the bucket."""
        self._prefix, self._cluster_name, self._bucket = name, cluster_name, bucket
        self._project, self._project_number = project, project_number
        self._child = pulumi.ResourceOptions(parent=parent)
        # The project's first cluster brings the pool, and no right can be given before.
        self._pooled = pulumi.ResourceOptions(parent=parent, depends_on=[cluster])
        self._lister: projects.IAMCustomRole | None = None
        self._folders: dict[str, storage.ManagedFolder] = {}

    def read_prefix(self, name: str, *, namespace: str, service_account: str, prefix: str) -> Identity:
        """Lets a service account read what lies below one prefix, and list the bucket's names.

        On every mount the CSI driver, its sidecar and Cloud Storage FUSE ask for the bucket's layout with an empty
        prefix (gcs-fuse-csi-driver, `CheckBucketExists`; gcsfuse before August 2026, `getStorageLayout`), which takes
        storage.objects.list on the whole bucket. The sidecar can be told not to since v1.24 alone, and IAM conditions
        cannot narrow listing. So that one permission, which reads nothing, is given in a role of its own.
        """
        member = self._member(namespace, service_account)
        lists = storage.BucketIAMMember(
            f"{name}-list", bucket=self._bucket, role=self._list_role().name, member=member, opts=self._pooled
        )
        reads = storage.ManagedFolderIamMember(
            f"{name}-read",
            bucket=self._bucket,
            managed_folder=self._folder(prefix).name,
            role="roles/storage.objectViewer",
            member=member,
            opts=self._pooled,
        )
        return Identity(resources=[lists, reads])

    def read_source(self, name: str, *, namespace: str, service_account: str, source: ObjectSource) -> Identity:
        """Lets a service account read what lies below a prefix of a bucket that somebody else made.

        Nothing is made in that bucket. Objects are listed by right of the bucket, whatever prefix they are listed by
        (Cloud Storage documentation, "IAM Conditions": the resource is the bucket), so their names are seen, all of
        them, and nothing else. Conditions need the bucket's uniform bucket-level access.
        """
        bucket = f"projects/_/buckets/{source.bucket}"
        below = f'resource.name == "{bucket}" || resource.name.startsWith("{bucket}/objects/{source.prefix}/")'
        condition = storage.BucketIAMMemberConditionArgs(title=f"Below {source.prefix}"[:100], expression=below)
        reads = storage.BucketIAMMember(
            f"{name}-read",
            bucket=source.bucket,
            role="roles/storage.objectViewer",
            member=self._member(namespace, service_account),
            condition=condition if source.prefix else None,
            opts=self._pooled,
        )
        return Identity(resources=[reads], egress=METADATA_SERVER)

    def _member(self, namespace: str, service_account: str) -> pulumi.Output[str]:
        return pulumi.Output.concat(
            "principal://iam.googleapis.com/projects/",
            self._project_number,
            f"/locations/global/workloadIdentityPools/{self._project}.svc.id.goog",
            f"/subject/ns/{namespace}/sa/{service_account}",
        )

    def _list_role(self) -> projects.IAMCustomRole:
        if self._lister is None:
            self._lister = projects.IAMCustomRole(
                f"{self._prefix}-bucket-lister",
                role_id=f"{self._cluster_name.replace('-', '_')}_bucket_lister",
                title=f"Lists the model bucket of {self._cluster_name}",
                permissions=["storage.objects.list"],
                opts=self._child,
            )
        return self._lister

    def _folder(self, prefix: str) -> storage.ManagedFolder:
        """One for a prefix, however many read it: builds of an engine, and models that serve the same weights."""
        if prefix not in self._folders:
            self._folders[prefix] = storage.ManagedFolder(
                f"{self._prefix}-{prefix}",
                bucket=self._bucket,
                name=f"{prefix}/",
                # Objects stay where they are: only what carries the rights goes.
                force_destroy=True,
                opts=self._child,
            )
        return self._folders[prefix]
