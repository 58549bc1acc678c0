"""Where weights and engines lie: the model bucket, and the file system that every pod of a model mounts."""

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_gcp import compute, filestore, lustre, storage

from planner.fleet import StoragePlan

_SHARE = "tritonfleet"
_SOFT_DELETE_SECONDS = 7 * 24 * 3600  # the shortest that Cloud Storage has, but none


@dataclass(frozen=True, kw_only=True)
class StorageArgs:
    """`private_services` connects `network` to Google's file systems, which nodes, in `nodes_cidr`, mount.

    `key_id` encrypts everything at rest; `key_grants` let Google's agents for bucket and file system use it. What holds
    data is not to be replaced where `protect` says so.
    """

    plan: StoragePlan
    project: str
    region: str
    network: compute.Network
    private_services: pulumi.Resource
    nodes_cidr: str
    key_id: pulumi.Input[str]
    key_grants: Sequence[pulumi.Resource]
    protect: bool


@dataclass(frozen=True, kw_only=True)
class SharedFiles:
    """How pods mount the shared file system: the CSI driver's name, handle and attributes, and mount options."""

    driver: str
    handle: pulumi.Input[str]
    attributes: dict[str, pulumi.Input[str]]
    mount_options: Sequence[str]
    ready: Sequence[pulumi.Resource]


class Storage(pulumi.ComponentResource):
    """The model bucket, by name, and the shared file system; kept when the stack is destroyed unless the stack says
    otherwise."""

    bucket: pulumi.Output[str]
    files: SharedFiles

    def __init__(self, name: str, args: StorageArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:GcpStorage", name, None, opts)
        self._prefix, self._args = name, args
        keep = args.plan.keep_data
        self._data = pulumi.ResourceOptions(
            parent=self, protect=args.protect, retain_on_delete=keep, depends_on=args.key_grants
        )
        self.bucket = self._bucket(keep=keep).name
        self.files = self._nfs(keep=keep) if args.plan.kind == "nfs" else self._lustre()
        self.register_outputs({"bucket": self.bucket})

    def _bucket(self, *, keep: bool) -> storage.Bucket:
        return storage.Bucket(
            f"{self._prefix}-models",
            location=self._args.region,
            # Managed folders, which carry the rights to a prefix, need it too.
            uniform_bucket_level_access=True,
            public_access_prevention="enforced",
            versioning=storage.BucketVersioningArgs(enabled=True),
            encryption=storage.BucketEncryptionArgs(default_kms_key_name=self._args.key_id),
            soft_delete_policy=storage.BucketSoftDeletePolicyArgs(
                retention_duration_seconds=_SOFT_DELETE_SECONDS if keep else 0
            ),
            force_destroy=not keep,
            opts=self._data,
        )

    def _nfs(self, *, keep: bool) -> SharedFiles:
        args, plan = self._args, self._args.plan
        assert plan.capacity_gib is not None
        files = filestore.Instance(
            f"{self._prefix}-files",
            tier="ZONAL",
            location=plan.zone,
            file_shares=filestore.InstanceFileSharesArgs(
                name=_SHARE,
                capacity_gb=plan.capacity_gib,
                nfs_export_options=[
                    # NFS believes whatever user a client claims to be: nodes alone may connect, pods may not. The
                    # kubelet gives the root folder to the pods' group, and has to be root for it.
                    filestore.InstanceFileSharesNfsExportOptionArgs(
                        ip_ranges=[args.nodes_cidr], access_mode="READ_WRITE", squash_mode="NO_ROOT_SQUASH"
                    )
                ],
            ),
            networks=[
                filestore.InstanceNetworkArgs(
                    network=args.network.name, modes=["MODE_IPV4"], connect_mode="PRIVATE_SERVICE_ACCESS"
                )
            ],
            kms_key_name=args.key_id,
            deletion_protection_enabled=keep,
            opts=self._in_network(),
        )
        return SharedFiles(
            driver="filestore.csi.storage.gke.io",
            handle=pulumi.Output.concat(f"modeInstance/{plan.zone}/", files.name, f"/{_SHARE}"),
            # Its networks are known before it is made, but their addresses are not.
            attributes={"ip": files.id.apply(lambda _: files.networks[0].ip_addresses[0]), "volume": _SHARE},
            # What its single client's throughput is measured with (Filestore documentation, "Test performance").
            mount_options=("nconnect=2",),
            ready=[files],
        )

    def _lustre(self) -> SharedFiles:
        args, plan = self._args, self._args.plan
        tier = str(plan.throughput_mb_s_per_tib)
        files = lustre.Instance(
            f"{self._prefix}-files",
            # Pulumi makes no name for it. A bucket's is never used twice, even when the stack is destroyed, its data
            # kept, and made anew. Another tier is another file system, made while the old one is there.
            instance_id=pulumi.Output.concat(self.bucket, "-", tier),
            location=plan.zone,
            filesystem="fleet",  # at most eight letters
            capacity_gib=str(plan.capacity_gib),
            per_unit_storage_throughput=tier,
            network=args.network.id,
            kms_key=args.key_id,
            opts=self._in_network(),
        )
        return SharedFiles(
            driver="lustre.csi.storage.gke.io",
            handle=pulumi.Output.concat(f"{args.project}/{plan.zone}/", files.instance_id),
            attributes={"mountpoint": files.mount_point},
            # Without it Lustre clients before 2.16 refuse flock, which the engine store locks with.
            mount_options=("flock",),
            ready=[files],
        )

    def _in_network(self) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions.merge(
            self._data, pulumi.ResourceOptions(depends_on=[self._args.private_services])
        )
