"""Where weights and engines lie: the model bucket, and the file system that every pod of a model mounts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from components.clouds.aws.identity import policy
from components.clouds.aws.network import NetworkIds
from components.clouds.base import POD_USER
from planner.fleet import StoragePlan

LUSTRE_PORTS = ((988, 988), (1018, 1023))
"""Between clients and servers, in both directions (FSx for Lustre User Guide, "access control with Amazon VPC")."""


@dataclass(frozen=True, kw_only=True)
class StorageArgs:
    """`security_group_id` is the nodes'; `key_arn` encrypts everything at rest. What holds data is not to be replaced
    where `protect` says so."""

    plan: StoragePlan
    network: NetworkIds
    security_group_id: pulumi.Input[str]
    key_arn: pulumi.Input[str]
    protect: bool


@dataclass(frozen=True, kw_only=True)
class SharedFiles:
    """How pods mount the shared file system: the CSI driver's name, handle and attributes, and mount options.

    `group_from_pod` lets the kubelet give the file system's root to the pod's group: a new Lustre belongs to root.
    """

    driver: str
    handle: pulumi.Input[str]
    attributes: dict[str, pulumi.Input[str]]
    mount_options: Sequence[str]
    group_from_pod: bool
    ready: Sequence[pulumi.Resource]


class Storage(pulumi.ComponentResource):
    """The model bucket and the shared file system; kept when the stack is destroyed unless the stack says otherwise."""

    bucket: aws.s3.Bucket
    files: SharedFiles

    def __init__(self, name: str, args: StorageArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AwsStorage", name, None, opts)
        self._prefix, self._args = name, args
        self._child = pulumi.ResourceOptions(parent=self)
        keep = args.plan.keep_data
        self._data = pulumi.ResourceOptions(parent=self, protect=args.protect, retain_on_delete=keep)
        self.bucket = self._bucket()
        self.files = self._nfs() if args.plan.kind == "nfs" else self._lustre()
        self.register_outputs({"bucket": self.bucket.bucket})

    def _bucket(self) -> aws.s3.Bucket:
        # Its settings stay with it: what is kept must not become public, mutable or readable without TLS.
        name, data = self._prefix, self._data
        bucket = aws.s3.Bucket(f"{name}-models", force_destroy=not self._args.plan.keep_data, opts=data)
        aws.s3.BucketOwnershipControls(
            f"{name}-models",
            bucket=bucket.bucket,
            rule=aws.s3.BucketOwnershipControlsRuleArgs(object_ownership="BucketOwnerEnforced"),
            opts=data,
        )
        closed = aws.s3.BucketPublicAccessBlock(
            f"{name}-models",
            bucket=bucket.bucket,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
            opts=data,
        )
        aws.s3.BucketVersioning(
            f"{name}-models",
            bucket=bucket.bucket,
            versioning_configuration=aws.s3.BucketVersioningVersioningConfigurationArgs(status="Enabled"),
            opts=data,
        )
        aws.s3.BucketServerSideEncryptionConfiguration(
            f"{name}-models",
            bucket=bucket.bucket,
            rules=[
                aws.s3.BucketServerSideEncryptionConfigurationRuleArgs(
                    apply_server_side_encryption_by_default=aws.s3.BucketServerSideEncryptionConfigurationRuleApplyServerSideEncryptionByDefaultArgs(
                        sse_algorithm="aws:kms", kms_master_key_id=self._args.key_arn
                    ),
                    # One data key for many objects: weights are read by every rank at once, and KMS has quotas.
                    bucket_key_enabled=True,
                )
            ],
            opts=data,
        )
        aws.s3.BucketPolicy(
            f"{name}-models",
            bucket=bucket.bucket,
            policy=policy(_only_tls("s3:*", [bucket.arn, pulumi.Output.concat(bucket.arn, "/*")])),
            opts=pulumi.ResourceOptions.merge(data, pulumi.ResourceOptions(depends_on=[closed])),
        )
        return bucket

    def _nfs(self) -> SharedFiles:
        name, child, args = self._prefix, self._child, self._args
        files = aws.efs.FileSystem(
            f"{name}-files",
            encrypted=True,
            kms_key_id=args.key_arn,
            performance_mode="generalPurpose",
            # Bursting throughput would grow with what is stored, and a fleet's first start comes before that.
            throughput_mode="elastic",
            opts=self._data,
        )
        aws.efs.FileSystemPolicy(
            f"{name}-files",
            file_system_id=files.id,
            # Whoever may reach a mount target may mount, but not as root; who may reach one is the security group's.
            policy=policy(
                {
                    "Effect": "Allow",
                    "Principal": {"AWS": "*"},
                    "Action": ["elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"],
                    "Resource": files.arn,
                    "Condition": {"Bool": {"elasticfilesystem:AccessedViaMountTarget": "true"}},
                },
                _only_tls("*", files.arn),
            ),
            opts=self._data,
        )
        entry = aws.efs.AccessPoint(
            f"{name}-files",
            file_system_id=files.id,
            posix_user=aws.efs.AccessPointPosixUserArgs(uid=POD_USER, gid=POD_USER),
            root_directory=aws.efs.AccessPointRootDirectoryArgs(
                path="/tritonfleet",
                creation_info=aws.efs.AccessPointRootDirectoryCreationInfoArgs(
                    owner_uid=POD_USER, owner_gid=POD_USER, permissions="0750"
                ),
            ),
            opts=self._data,
        )
        group, rules = self._security_group([(2049, 2049)], keep=False)
        targets = [
            aws.efs.MountTarget(
                f"{name}-files-{zone}",
                file_system_id=files.id,
                subnet_id=subnet,
                security_groups=[group.id],
                opts=child,
            )
            for zone, subnet in args.network.private_subnets.items()
        ]
        return SharedFiles(
            driver="efs.csi.aws.com",
            handle=pulumi.Output.concat(files.id, "::", entry.id),
            attributes={"encryptInTransit": "true"},
            mount_options=(),
            group_from_pod=False,
            ready=[*targets, entry, *rules],
        )

    def _lustre(self) -> SharedFiles:
        args, plan, keep = self._args, self._args.plan, self._args.plan.keep_data
        group, rules = self._security_group(LUSTRE_PORTS, keep=keep)
        for low, high in LUSTRE_PORTS:
            # Servers talk to one another, and call their clients back.
            rules.append(self._rule(f"peers-{low}", group.id, group.id, low, high, keep=keep))
            rules.append(self._rule(f"callback-{low}", args.security_group_id, group.id, low, high))
            rules += [
                aws.vpc.SecurityGroupEgressRule(
                    f"{self._prefix}-files-{name}-{low}",
                    security_group_id=group.id,
                    referenced_security_group_id=target,
                    ip_protocol="tcp",
                    from_port=low,
                    to_port=high,
                    opts=pulumi.ResourceOptions(parent=self, retain_on_delete=kept),
                )
                for name, target, kept in (("peers", group.id, keep), ("callback", args.security_group_id, False))
            ]
        files = aws.fsx.LustreFileSystem(
            f"{self._prefix}-files",
            deployment_type="PERSISTENT_2",
            storage_type="SSD",
            # The clients of Amazon Linux 2023's kernels speak to servers of 2.12 and newer.
            file_system_type_version="2.15",
            storage_capacity=plan.capacity_gib,
            per_unit_storage_throughput=plan.throughput_mb_s_per_tib,
            subnet_ids=args.network.private_subnets[plan.zone],
            security_group_ids=[group.id],
            kms_key_id=args.key_arn,
            # Engines can be built again and weights fetched again; a backup would be as large as both.
            automatic_backup_retention_days=0,
            skip_final_backup=True,
            # FSx looks for open ports in the group when it makes the file system, and refuses without them.
            opts=pulumi.ResourceOptions.merge(self._data, pulumi.ResourceOptions(depends_on=rules)),
        )
        return SharedFiles(
            driver="fsx.csi.aws.com",
            handle=files.id,
            attributes={"dnsname": files.dns_name, "mountname": files.mount_name},
            # Without it Lustre refuses flock, which the engine store locks with.
            mount_options=("flock",),
            group_from_pod=True,
            ready=[files, *rules],
        )

    def _security_group(
        self, ports: Sequence[tuple[int, int]], *, keep: bool
    ) -> tuple[aws.ec2.SecurityGroup, list[pulumi.Resource]]:
        """The file system's group: nodes come in and nobody else; by itself it opens no connection."""
        group = aws.ec2.SecurityGroup(
            f"{self._prefix}-files",
            vpc_id=self._args.network.vpc,
            description="The shared file system, from nodes only",
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=keep),
        )
        return group, [
            self._rule(f"nodes-{low}", group.id, self._args.security_group_id, low, high) for low, high in ports
        ]

    def _rule(
        self,
        name: str,
        into: pulumi.Input[str],
        source: pulumi.Input[str],
        low: int,
        high: int,
        *,
        keep: bool = False,
    ) -> pulumi.Resource:
        return aws.vpc.SecurityGroupIngressRule(
            f"{self._prefix}-files-{name}",
            security_group_id=into,
            referenced_security_group_id=source,
            ip_protocol="tcp",
            from_port=low,
            to_port=high,
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=keep),
        )


def kept_zone(plan: StoragePlan) -> str | None:
    """The zone whose private subnet has to outlive the stack; None where nothing that is kept lies in the network.

    A Lustre file system has network interfaces of its own, which hold its subnet, VPC and security group: a `destroy`
    that keeps the one and deletes the others never ends. So these are kept with it, and so are the rules between its
    servers; rules that name the nodes' group go, for they would hold that group in turn. Of EFS only the mount targets
    are in the network, and they hold no data.
    """
    return plan.zone if plan.kind == "lustre" and plan.keep_data else None


def _only_tls(actions: str, resources: Any) -> dict[str, Any]:
    return {
        "Effect": "Deny",
        "Principal": {"AWS": "*"},
        "Action": actions,
        "Resource": resources,
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
