"""Who pods are in Azure: one identity for each prefix of a bucket, which may read that prefix and no other."""

import hashlib
import re
from dataclasses import dataclass

import pulumi
from pulumi_azure_native import managedidentity

from components.clouds.azure.roles import Role, assign
from components.clouds.azure.storage import Bucket
from components.clouds.base import Identity
from planner.object_sources import ObjectSource

_BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs"


@dataclass(frozen=True, kw_only=True)
class ReadersArgs:
    """`subscription` is its id, `issuer` the URL of the cluster's OIDC issuer."""

    subscription: pulumi.Input[str]
    resource_group: pulumi.Input[str]
    region: str
    issuer: pulumi.Input[str]
    bucket: Bucket


@dataclass(kw_only=True)
class _Reader:
    """The identity of a prefix, and what it waits for: its right, and the last service account that may be it."""

    identity: managedidentity.UserAssignedIdentity
    right: pulumi.Resource
    last: pulumi.Resource


class Readers(pulumi.ComponentResource):
    """Identities that read the model bucket, each made when its prefix is first asked for.

    One for each prefix and not for each service account, because a volume names the identity that mounts it.
    """

    def __init__(self, name: str, args: ReadersArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AzureReaders", name, None, opts)
        self._prefix, self._args = name, args
        self._child = pulumi.ResourceOptions(parent=self)
        self._readers: dict[str, _Reader] = {}
        self.register_outputs({})

    def client_id(self, bucket_prefix: str) -> pulumi.Output[str]:
        """Of the identity that reads a prefix."""
        return self._reader(bucket_prefix.strip("/")).identity.client_id

    def identity(self, name: str, *, namespace: str, service_account: str, bucket_prefix: str | None) -> Identity:
        """Lets a service account be the prefix's reader; nobody where the prefix is None."""
        if bucket_prefix is None:
            return Identity()
        reader = self._reader(bucket_prefix.strip("/"))
        # The CSI driver takes the pod's token to the identity that the volume names; the account needs no annotation.
        return Identity(resources=self._trust(name, reader, namespace, service_account))

    def source_identity(
        self, name: str, *, namespace: str, service_account: str, source: ObjectSource, account_id: str
    ) -> Identity:
        """Lets a service account be the reader of a prefix of a container that the stack did not make."""
        container = f"{account_id}/blobServices/default/containers/{source.bucket}"
        place = f"{source.account}/{source.bucket}/{source.prefix}"
        reader = self._make(place, container, account_id.split("/")[2], source.prefix)
        # AKS documentation, "Microsoft Entra Workload ID overview": by these two its webhook knows pods.
        return Identity(
            annotations={"azure.workload.identity/client-id": reader.identity.client_id},
            resources=self._trust(name, reader, namespace, service_account),
            pod_labels={"azure.workload.identity/use": "true"},
        )

    def _trust(self, name: str, reader: _Reader, namespace: str, service_account: str) -> list[pulumi.Resource]:
        reader.last = managedidentity.FederatedIdentityCredential(
            f"{self._prefix}-{name}",
            resource_group_name=self._args.resource_group,
            resource_name_=reader.identity.name,
            issuer=self._args.issuer,
            subject=f"system:serviceaccount:{namespace}:{service_account}",
            audiences=["api://AzureADTokenExchange"],
            # Azure refuses to write two of one identity at once.
            opts=pulumi.ResourceOptions(parent=self, depends_on=[reader.last]),
        )
        return [reader.right, reader.last]

    def _reader(self, prefix: str) -> _Reader:
        if prefix not in self._readers:
            self._readers[prefix] = self._make(prefix, self._args.bucket.id, self._args.subscription, prefix)
        return self._readers[prefix]

    def _make(self, place: str, scope: pulumi.Input[str], subscription: pulumi.Input[str], prefix: str) -> _Reader:
        words = re.sub("[^a-z0-9]+", "-", place.lower())[:40].strip("-")
        name = f"{self._prefix}-{words}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
        identity = managedidentity.UserAssignedIdentity(
            name, resource_group_name=self._args.resource_group, location=self._args.region, opts=self._child
        )
        right = assign(
            name,
            Role.BLOB_READER,
            identity.principal_id,
            scope=scope,
            subscription=subscription,
            condition=_below(prefix) if prefix else None,
            opts=self._child,
        )
        return _Reader(identity=identity, right=right, last=identity)


def _below(prefix: str) -> str:
    """The condition of a role assignment by which it reads and lists what lies below `prefix`, and nothing else.

    ("Example Azure role assignment conditions for Blob Storage": "Read or list blobs in named containers with a path".)
    """
    path = f"'{prefix}/'"
    read, listing = f"ActionMatches{{'{_BLOBS}/read'}}", "SubOperationMatches{'Blob.List'}"
    return (
        f"((!({read} AND NOT {listing})) OR (@Resource[{_BLOBS}:path] StringStartsWith {path}))"
        f" AND ((!({read} AND {listing})) OR (@Request[{_BLOBS}:prefix] StringStartsWith {path}))"
    )
