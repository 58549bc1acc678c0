"""Static volumes: a claim of the serving namespace on storage that exists already. Nothing is provisioned from pods."""

from collections.abc import Sequence

import pulumi
from pulumi_kubernetes.core.v1 import (
    CSIPersistentVolumeSourceArgs,
    ObjectReferenceArgs,
    PersistentVolume,
    PersistentVolumeClaim,
    PersistentVolumeClaimSpecArgs,
    PersistentVolumeSpecArgs,
    VolumeResourceRequirementsArgs,
)
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs

from components.labels import LABELS

_CAPACITY = "1Ti"
"""Of every volume. Kubernetes wants a size, and refuses another one later; here it limits nothing: buckets and elastic
file systems have none, and the others grow in place."""


def static_claim(
    name: str,
    source: CSIPersistentVolumeSourceArgs,
    *,
    namespace: str,
    modes: Sequence[str],
    mount_options: Sequence[str],
    parent: pulumi.Resource,
    depends_on: Sequence[pulumi.Input[pulumi.Resource]],
    protect: bool = False,
) -> PersistentVolumeClaim:
    """The claim `name`, bound to a volume of its own that `source` mounts; it asks for the first of the `modes`."""
    volume = PersistentVolume(
        f"{namespace}-{name}",
        metadata=ObjectMetaArgs(name=f"{namespace}-{name}", labels=LABELS),
        spec=PersistentVolumeSpecArgs(
            capacity={"storage": _CAPACITY},
            access_modes=list(modes),
            csi=source,
            mount_options=list(mount_options) or None,
            # No class provisioned it, and nobody else may claim it.
            storage_class_name="",
            claim_ref=ObjectReferenceArgs(namespace=namespace, name=name),
            persistent_volume_reclaim_policy="Retain",
        ),
        opts=pulumi.ResourceOptions(parent=parent, depends_on=list(depends_on), protect=protect),
    )
    return PersistentVolumeClaim(
        f"{namespace}-{name}",
        metadata=ObjectMetaArgs(name=name, namespace=namespace, labels=LABELS),
        spec=PersistentVolumeClaimSpecArgs(
            access_modes=[modes[0]],
            storage_class_name="",
            volume_name=f"{namespace}-{name}",
            resources=VolumeResourceRequirementsArgs(requests={"storage": _CAPACITY}),
        ),
        opts=pulumi.ResourceOptions(parent=parent, depends_on=[volume], protect=protect),
    )
