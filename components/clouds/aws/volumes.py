"""Claims of the serving namespace on storage that exists already: static volumes, nothing is provisioned from pods."""

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.core.v1 import CSIPersistentVolumeSourceArgs

from components.clouds.aws.storage import SharedFiles
from components.clouds.base import POD_USER, Volumes
from components.clouds.claims import static_claim
from planner.plan import ModelPlan
from planner.sources import bucket_prefix


@dataclass(frozen=True, kw_only=True)
class ClaimsArgs:
    """`bucket` and `region` are the model bucket's; with `protect` the shared file system's volumes are not replaced.
    `depends_on` is what makes the namespace and the CSI drivers."""

    namespace: str
    models: Sequence[ModelPlan]
    files: SharedFiles
    bucket: pulumi.Input[str]
    region: str
    protect: bool
    depends_on: Sequence[pulumi.Input[pulumi.Resource]]


class Claims(pulumi.ComponentResource):
    """The shared file system twice, for writing and for reading, and every prefix of the bucket that a model names."""

    volumes: Volumes

    def __init__(self, name: str, args: ClaimsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AwsClaims", name, None, opts)
        self._args = args
        self._claims: list[pulumi.Resource] = []
        files = args.files
        self._volume(
            "engines",
            CSIPersistentVolumeSourceArgs(
                driver=files.driver,
                volume_handle=files.handle,
                volume_attributes=files.attributes,
                # The kubelet hands a volume to the pod's group (CSI's ReadWriteOnceWithFSType) when it has a type and
                # ReadWriteOnce among its modes. The driver is asked for the first, the one it knows for many nodes.
                fs_type="lustre" if files.group_from_pod else None,
            ),
            modes=["ReadWriteMany", "ReadWriteOnce"] if files.group_from_pod else ["ReadWriteMany"],
            mount_options=list(files.mount_options),
            protect=args.protect,
        )
        self._volume(
            "engines-readonly",
            CSIPersistentVolumeSourceArgs(
                driver=files.driver,
                volume_handle=files.handle,
                volume_attributes=files.attributes,
                read_only=True,
            ),
            # Of all ways to say read-only this is the one that reaches the mount, whatever the pod says.
            mount_options=["ro", *files.mount_options],
            modes=["ReadWriteMany"],
            protect=args.protect,
        )
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

    def _bucket_volume(self, name: str, prefix: str) -> None:
        """A prefix as files. The mount uses the rights of the pod's service account, not of the node or the driver."""
        region = self._args.region
        self._volume(
            name,
            CSIPersistentVolumeSourceArgs(
                driver="s3.csi.aws.com",
                volume_handle=f"{self._args.namespace}-{name}",
                # The region is given because the driver would ask the node's metadata, which pods cannot reach.
                volume_attributes={
                    "bucketName": self._args.bucket,
                    "authenticationSource": "pod",
                    "stsRegion": region,
                },
                read_only=True,
            ),
            modes=["ReadOnlyMany"],
            mount_options=[
                "read-only",
                "allow-other",
                f"uid={POD_USER}",
                f"gid={POD_USER}",
                f"region {region}",
                f"prefix {prefix}/",
            ],
        )

    def _volume(
        self,
        name: str,
        source: CSIPersistentVolumeSourceArgs,
        *,
        modes: list[str],
        mount_options: list[str],
        protect: bool = False,
    ) -> None:
        claim = static_claim(
            name,
            source,
            namespace=self._args.namespace,
            modes=modes,
            mount_options=mount_options,
            parent=self,
            depends_on=self._args.depends_on,
            protect=protect,
        )
        self._claims.append(claim)
