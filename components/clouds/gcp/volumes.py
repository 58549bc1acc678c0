"""Claims of the serving namespace on storage that exists already: static volumes, nothing is provisioned from pods."""

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.core.v1 import CSIPersistentVolumeSourceArgs

from components.clouds.base import Volumes, Way
from components.clouds.claims import static_claim
from components.clouds.gcp.identity import METADATA_SERVER
from components.clouds.gcp.network import GOOGLE_APIS
from components.clouds.gcp.storage import SharedFiles
from planner.plan import ModelPlan
from planner.sources import bucket_prefix

# Cloud Storage FUSE runs beside the pod's containers. Its limits, a quarter of a CPU and 256 MiB unless the pod says
# otherwise, would be what loading waits for (GKE documentation, "Configure the Cloud Storage FUSE CSI driver sidecar").
_ANNOTATIONS = {
    "gke-gcsfuse/volumes": "true",
    "gke-gcsfuse/cpu-limit": "0",
    "gke-gcsfuse/memory-limit": "0",
    "gke-gcsfuse/ephemeral-storage-limit": "0",
}

_EGRESS = (*METADATA_SERVER, Way(cidr=GOOGLE_APIS, port=443))


@dataclass(frozen=True, kw_only=True)
class ClaimsArgs:
    """`bucket` is the model bucket's name; with `protect` the shared file system's volumes are not replaced.
    `depends_on` is what makes the namespace and the CSI drivers."""

    namespace: str
    models: Sequence[ModelPlan]
    files: SharedFiles
    bucket: pulumi.Input[str]
    protect: bool
    depends_on: Sequence[pulumi.Input[pulumi.Resource]]


class Claims(pulumi.ComponentResource):
    """The shared file system twice, for writing and for reading, and every prefix of the bucket that a model names.

    Pods write as a group, fsGroup, which is given the root of a new file system: by the kubelet on Filestore, whose
    CSIDriver has the fsGroupPolicy File, and by the Lustre driver itself (VOLUME_MOUNT_GROUP), whenever a pod mounts it
    for writing.
    """

    volumes: Volumes

    def __init__(self, name: str, args: ClaimsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:GcpClaims", name, None, opts)
        self._args = args
        self._claims: list[pulumi.Resource] = []
        self._file_volume("engines", "ReadWriteMany", read_only=False)
        self._file_volume("engines-readonly", "ReadOnlyMany", read_only=True)
        weights: dict[str, str] = {}
        for model in args.models:
            prefix = bucket_prefix(model.config.source)
            if prefix is not None:
                weights[model.name] = f"weights-{model.name}"
                self._bucket_volume(weights[model.name], prefix)
        self.volumes = Volumes(
            engines_rw="engines",
            engines_ro="engines-readonly",
            weights=weights,
            resources=self._claims,
            weights_annotations=_ANNOTATIONS,
            weights_egress=_EGRESS,
        )
        self.register_outputs({})

    def _file_volume(self, name: str, mode: str, *, read_only: bool) -> None:
        """Both volumes have one handle: the Lustre driver mounts a file system once on a node, and no second time.

        The kubelet stages a handle with the options of whichever volume comes first, so that `ro` among them would keep
        the next build on that node from writing. Pods say it where they name the claim, and it reaches their own mount.
        """
        files = self._args.files
        self._volume(
            name,
            CSIPersistentVolumeSourceArgs(
                driver=files.driver,
                volume_handle=files.handle,
                volume_attributes=files.attributes,
                read_only=read_only,
            ),
            mode=mode,
            mount_options=files.mount_options,
            protect=self._args.protect,
        )

    def _bucket_volume(self, name: str, prefix: str) -> None:
        """A prefix as files, read with the rights of the pod's service account and owned by its group."""
        self._volume(
            name,
            CSIPersistentVolumeSourceArgs(
                driver="gcsfuse.csi.storage.gke.io",
                # The driver takes what stands before the colon for the bucket; the whole is this volume's alone.
                volume_handle=pulumi.Output.concat(self._args.bucket, f":{self._args.namespace}-{name}"),
                read_only=True,
            ),
            mode="ReadOnlyMany",
            # Nobody makes objects for folders when uploading weights.
            mount_options=["ro", "implicit-dirs", f"only-dir={prefix}"],
        )

    def _volume(
        self,
        name: str,
        source: CSIPersistentVolumeSourceArgs,
        *,
        mode: str,
        mount_options: Sequence[str],
        protect: bool = False,
    ) -> None:
        claim = static_claim(
            name,
            source,
            namespace=self._args.namespace,
            modes=[mode],
            mount_options=mount_options,
            parent=self,
            depends_on=self._args.depends_on,
            protect=protect,
        )
        self._claims.append(claim)
