"""What all fetches, builds and groups of a stack share, and the objects that both have."""

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.core.v1 import ConfigMap, ServiceAccount
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs

from components.clouds.base import Identity, Volumes
from components.serving.config_maps import Files
from components.serving.labels import common_labels


@dataclass(frozen=True, kw_only=True)
class Common:
    """`ready` is what must be there before any object: the namespace and its rules, and what makes pods of sets.
    `image` builds and serves; in `python_image` runs what needs no GPU, with the packages of the environment.
    `file_system` names the shared file system: another name is another file system, with nothing on it.
    `file_provider` makes ConfigMaps, and takes over one that is there already."""

    namespace: str
    ready: Sequence[pulumi.Resource]
    image: str
    python_image: pulumi.Input[str]
    runtime: Files
    volumes: Volumes
    file_system: str
    file_provider: pulumi.ProviderResource

    def child(self, parent: pulumi.Resource) -> pulumi.ResourceOptions:
        """The options of an object in the namespace."""
        return pulumi.ResourceOptions(parent=parent, depends_on=self.ready)


def config_map(name: str, files: Files, common: Common, *, parent: pulumi.Resource) -> ConfigMap:
    """The files as an object. It outlives the plan that made it: a group that starts again in the middle of an update
    mounts the files of its own revision, and so does a build that began before."""
    return ConfigMap(
        name,
        metadata=ObjectMetaArgs(name=files.name, namespace=common.namespace, labels=common_labels()),
        immutable=True,
        data=files.data,
        opts=pulumi.ResourceOptions.merge(
            common.child(parent), pulumi.ResourceOptions(provider=common.file_provider, retain_on_delete=True)
        ),
    )


def service_account(
    name: str, account: str, identity: Identity, common: Common, *, parent: pulumi.Resource
) -> ServiceAccount:
    """An identity in the cloud at most: no pod of ours talks to Kubernetes. Pods that wait for it have their rights."""
    return ServiceAccount(
        name,
        metadata=ObjectMetaArgs(
            name=account,
            namespace=common.namespace,
            labels=common_labels(),
            annotations=dict(identity.annotations) or None,
        ),
        automount_service_account_token=False,
        opts=pulumi.ResourceOptions.merge(common.child(parent), pulumi.ResourceOptions(depends_on=identity.resources)),
    )
