"""What stores data encrypts it, by a key of the stack's own where the cloud takes one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planner.errors import Problem
from policy.settings import NoSettings
from policy.stack import UNKNOWN, Resource, Stack, at, is_true, items

_COST = "whoever gets at the disk, or at a copy of it, reads weights, engines and keys"


@dataclass(frozen=True, kw_only=True)
class Needed:
    """A property that has to be there: one of `values`, or true, or (neither) anything at all.

    `each` is the list whose every item has to have it; `least` is how many items there have to be.
    """

    path: str
    each: str | None = None
    least: int = 0
    values: tuple[str, ...] = ()
    true: bool = False


NEEDED: Mapping[str, tuple[Needed, ...]] = {
    "aws:cloudwatch/logGroup:LogGroup": (Needed(path="kmsKeyId"),),
    "aws:ec2/launchTemplate:LaunchTemplate": (
        # Without one the image's own mapping holds, which says nothing of encryption.
        Needed(each="blockDeviceMappings", least=1, path="ebs.encrypted", true=True),
    ),
    "aws:efs/fileSystem:FileSystem": (Needed(path="encrypted", true=True), Needed(path="kmsKeyId")),
    "aws:eks/cluster:Cluster": (Needed(path="encryptionConfig.provider.keyArn"),),
    "aws:eks/nodeGroup:NodeGroup": (Needed(path="launchTemplate"),),
    "aws:fsx/lustreFileSystem:LustreFileSystem": (Needed(path="kmsKeyId"),),
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": (
        Needed(
            each="rules",
            least=1,
            path="applyServerSideEncryptionByDefault.sseAlgorithm",
            values=("aws:kms", "aws:kms:dsse"),
        ),
    ),
    "eks:index:Cluster": (Needed(path="encryptionConfigKeyArn"),),
    "gcp:container/cluster:Cluster": (
        Needed(path="databaseEncryption.state", values=("ENCRYPTED",)),
        Needed(path="databaseEncryption.keyName"),
    ),
    "gcp:container/nodePool:NodePool": (Needed(path="nodeConfig.bootDiskKmsKey"),),
    "gcp:filestore/instance:Instance": (Needed(path="kmsKeyName"),),
    "gcp:lustre/instance:Instance": (Needed(path="kmsKey"),),
    "gcp:storage/bucket:Bucket": (Needed(path="encryption.defaultKmsKeyName"),),
    "azure-native:containerservice:AgentPool": (Needed(path="enableEncryptionAtHost", true=True),),
    "azure-native:containerservice:ManagedCluster": (
        Needed(path="diskEncryptionSetID"),
        Needed(each="agentPoolProfiles", path="enableEncryptionAtHost", true=True),
    ),
    "azure-native:storage:StorageAccount": (
        Needed(path="enableHttpsTrafficOnly", true=True),
        Needed(path="encryption.keySource", values=("Microsoft.Keyvault",)),
        Needed(path="encryption.keyVaultProperties.keyName"),
    ),
    "azure-native:storagecache:AmlFilesystem": (Needed(path="encryptionSettings.keyEncryptionKey.keyUrl"),),
}
"""By the type of everything in a stack that stores."""

_BUCKET = "aws:s3/bucket:Bucket"
_OF_BUCKET = "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration"


def unencrypted(resource: Resource, _: NoSettings) -> Iterator[Problem]:
    """What one resource leaves out. A component that its provider makes has no inputs: its children are judged."""
    for needed in NEEDED.get(resource.type, ()) if resource.inputs else ():
        found = items(resource.inputs, needed.each) if needed.each else [resource.inputs]
        unknown = needed.each and at(resource.inputs, needed.each) is UNKNOWN
        if (len(found) < needed.least and not unknown) or not all(_has(item, needed) for item in found):
            where = f"{needed.each}[].{needed.path}" if needed.each else needed.path
            wanted = "true" if needed.true else " or ".join(needed.values) or "the stack's own key"
            yield Problem(
                key=resource.name, what=f"{where} is not {wanted}", consequence=_COST, fix=f"set {where} to {wanted}"
            )


def without_default(stack: Stack, _: NoSettings) -> Iterator[tuple[Resource, Problem]]:
    """Buckets of S3 whose encryption nothing sets; what does is a resource of its own."""
    set_ = frozenset[str]().union(*(resource.dependencies for resource in stack if resource.type == _OF_BUCKET))
    for bucket in stack:
        if bucket.type == _BUCKET and bucket.urn not in set_:
            fix = "give it a BucketServerSideEncryptionConfiguration with the stack's own key"
            yield bucket, Problem(key=bucket.name, what="a bucket without a key", consequence=_COST, fix=fix)


def _has(item: object, needed: Needed) -> bool:
    value = at(item, needed.path)
    if value is UNKNOWN:
        return True  # something of the cloud's: a key's id
    if needed.true:
        return is_true(value)
    return value in needed.values if needed.values else bool(value)
