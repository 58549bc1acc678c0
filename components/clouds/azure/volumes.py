"""Claims of the serving namespace on storage that exists already: static volumes, nothing is provisioned from pods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.core.v1 import CSIPersistentVolumeSourceArgs

from components.clouds.azure.identity import Readers
from components.clouds.azure.storage import Bucket, SharedFiles
from components.clouds.base import POD_USER, Volumes
from components.clouds.claims import static_claim
from planner.plan import ModelPlan
from planner.sources import bucket_prefix

_BLOCK_CACHE = ("--block-cache", "--block-cache-pool-size=2048", "--block-cache-prefetch=32")
"""Weights stream through 2 GiB of the node's memory, 32 blocks of 16 MiB ahead of whoever reads a file. By default
blobfuse2 downloads each file that is opened onto the node's disk, and a large model would fill it; by itself this cache
takes 60 % of the memory."""


@dataclass(frozen=True, kw_only=True)
class ClaimsArgs:
    """With `protect` the shared file system's volumes are not replaced. `depends_on` is what makes the namespace and
    the CSI drivers."""

    namespace: str
    models: Sequence[ModelPlan]
    files: SharedFiles
    bucket: Bucket
    readers: Readers
    protect: bool
    depends_on: Sequence[pulumi.Input[pulumi.Resource]]


class Claims(pulumi.ComponentResource):
    """The shared file system twice, for writing and for reading, and every prefix of the bucket that a model names."""

    volumes: Volumes

    def __init__(self, name: str, args: ClaimsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AzureClaims", name, None, opts)
        self._args = args
        self._claims: list[pulumi.Resource] = []
        files = args.files
        self._files_volume("engines", "ReadWriteMany", files.writer_attributes, files.mount_options)
        # Of all ways to say read-only this is the one that reaches the mount, whatever the pod says.
        self._files_volume("engines-readonly", "ReadOnlyMany", files.reader_attributes, ["ro", *files.mount_options])
        weights: dict[str, str] = {}
        for model in args.models:
            prefix = bucket_prefix(model.config.source)
            if prefix is not None:
                weights[model.name] = f"weights-{model.name}"
                self._bucket_volume(weights[model.name], prefix)
        self.volumes = Volumes(
            engines_rw="engines", engines_ro="engines-readonly", weights=weights, resources=self._claims
        )
        self.register_outputs({})

    def _files_volume(self, name: str, mode: str, attributes: Mapping[str, str], mount_options: Sequence[str]) -> None:
        files = self._args.files
        source = CSIPersistentVolumeSourceArgs(
            driver=files.driver,
            # A node mounts all volumes of one handle as it mounted the first: these two must not be one.
            volume_handle=pulumi.Output.concat(files.handle, "-", name),
            volume_attributes={**files.attributes, **attributes},
            read_only=mode == "ReadOnlyMany",
        )
        self._volume(name, source, mode, mount_options, self._args.files.ready, protect=self._args.protect)

    def _bucket_volume(self, name: str, prefix: str) -> None:
        """A prefix as files. The mount uses the rights of the pod's service account, not of the node or the driver."""
        bucket = self._args.bucket
        source = CSIPersistentVolumeSourceArgs(
            driver="blob.csi.azure.com",
            volume_handle=pulumi.Output.concat(bucket.account, "-", name),
            volume_attributes={
                "storageAccount": bucket.account,
                "containerName": bucket.name,
                "protocol": "fuse2",
                "clientID": self._args.readers.client_id(prefix),
                # Otherwise the driver would ask for the account's key in the pod's name, which opens everything.
                "mountWithWorkloadIdentityToken": "true",
            },
            read_only=True,
        )
        options = [
            "-o allow_other",
            f"-o uid={POD_USER}",
            f"-o gid={POD_USER}",
            # With the slash: blobfuse2 lists exactly this when it mounts, and may list nothing that is shorter.
            f"--subdirectory={prefix}/",
            # The driver's default shows empty folders for the first ten seconds.
            "--cancel-list-on-mount-seconds=0",
            *_BLOCK_CACHE,
        ]
        self._volume(name, source, "ReadOnlyMany", options, bucket.ready)

    def _volume(
        self,
        name: str,
        source: CSIPersistentVolumeSourceArgs,
        mode: str,
        mount_options: Sequence[str],
        ready: Sequence[pulumi.Resource],
        *,
        protect: bool = False,
    ) -> None:
        claim = static_claim(
            name,
            source,
            namespace=self._args.namespace,
            modes=[mode],
            mount_options=mount_options,
            parent=self,
            depends_on=[*self._args.depends_on, *ready],
            protect=protect,
        )
        self._claims.append(claim)
