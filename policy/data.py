"""What holds data is protected: no update and no destroy takes it away by accident."""

from collections.abc import Iterator

from planner.errors import Problem
from policy.settings import Data
from policy.stack import Resource, at, is_true, matches

HOLDS_DATA = frozenset(
    {
        "aws:efs/fileSystem:FileSystem",
        "aws:fsx/lustreFileSystem:LustreFileSystem",
        "aws:kms/key:Key",
        "aws:s3/bucket:Bucket",
        "azure-native:keyvault:Key",
        "azure-native:keyvault:Vault",
        "azure-native:storage:BlobContainer",
        "azure-native:storage:FileShare",
        "azure-native:storage:StorageAccount",
        "azure-native:storagecache:AmlFilesystem",
        "gcp:filestore/instance:Instance",
        "gcp:kms/cryptoKey:CryptoKey",
        "gcp:lustre/instance:Instance",
        "gcp:storage/bucket:Bucket",
        "kubernetes:core/v1:PersistentVolumeClaim",
    }
)
"""Stores, and the keys without which nobody reads them again."""


def unprotected(resource: Resource, settings: Data) -> Iterator[Problem]:
    """What of a store is not protected, unless the stack's data may go with it."""
    production = matches(resource.stack, settings.production)
    if resource.type not in HOLDS_DATA or (matches(resource.stack, settings.disposable) and not production):
        return
    fix = "give storage.keep_data: true, and take storage out of allow_replacement"
    faults = {
        "is not protected": not resource.protect,
        "is deleted with all that is in it (forceDestroy)": is_true(at(resource.inputs, "forceDestroy")),
    }
    for what in (what for what, found in faults.items() if found):
        cost = "one edit of the stack file, or one destroy, loses weights and engines for good"
        yield Problem(key=resource.name, what=f"{resource.type.rpartition(':')[2]} {what}", consequence=cost, fix=fix)
