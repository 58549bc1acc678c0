"""Who pods are in Azure: one identity for each prefix of the model bucket, which may read that prefix and no other."""

import hashlib
import re
from dataclasses import dataclass

import pulumi
from pulumi_azure_native import managedidentity

from components.clouds.azure.roles import Role, assign
from components.clouds.azure.storage import Bucket
from components.clouds.base import Identity

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
        # The CSI driver takes the pod's token to the identity that the volume names; the account needs no annotation.
        return Identity(resources=[reader.right, reader.last])

    def _reader(self, prefix: str) -> _Reader:
        if prefix not in self._readers:
            words = re.sub("[^a-z0-9]+", "-", prefix.lower())[:40].strip("-")
            name = f"{self._prefix}-{words}-{hashlib.sha256(prefix.encode()).hexdigest()[:8]}"
            args = self._args
            identity = managedidentity.UserAssignedIdentity(
                name, resource_group_name=args.resource_group, location=args.region, opts=self._child
            )
            right = assign(
                name,
                Role.BLOB_READER,
                identity.principal_id,
                scope=args.bucket.id,
                subscription=args.subscription,
                condition=_below(prefix),
                opts=self._child,
            )
            self._readers[prefix] = _Reader(identity=identity, right=right, last=identity)
        return self._readers[prefix]


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
