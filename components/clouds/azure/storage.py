"""Where weights and engines lie: the model bucket, and the file system that every pod of a model mounts."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

import pulumi
from pulumi_azure_native import network, privatedns, storage, storagecache

from planner.fleet import StoragePlan

_DAYS = 7
"""What is deleted or overwritten in the bucket can be had back for as long."""


@dataclass(frozen=True, kw_only=True)
class DataKey:
    """The RSA key that encrypts data, in a vault of the same region, and the full id of an identity that may use it.

    `url` names a version of the key. What is encrypted waits for `granted`, the identity's rights.
    """

    vault_id: pulumi.Input[str]
    vault_uri: pulumi.Input[str]
    name: pulumi.Input[str]
    url: pulumi.Input[str]
    identity_id: pulumi.Input[str]
    granted: Sequence[pulumi.Resource]


@dataclass(frozen=True, kw_only=True)
class StorageArgs:
    """Private endpoints lie in `endpoint_subnet_id`, Lustre in `lustre_subnet_id`, a subnet of its own; names resolve
    in `network_id`. `api_cidrs` may reach the bucket from outside, to fill it. What holds data is not to be replaced
    where `protect` says so."""

    plan: StoragePlan
    resource_group: pulumi.Input[str]
    region: str
    zones: Sequence[str]
    api_cidrs: Sequence[str]
    network_id: pulumi.Input[str]
    endpoint_subnet_id: pulumi.Input[str]
    lustre_subnet_id: pulumi.Input[str] | None
    key: DataKey
    protect: bool


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """The model bucket: the container `name` of a storage account. `id` is the container's full one, and whoever fills
    it goes to `url`."""

    account: pulumi.Output[str]
    name: pulumi.Output[str]
    id: pulumi.Output[str]
    url: pulumi.Output[str]
    ready: Sequence[pulumi.Resource]


@dataclass(frozen=True, kw_only=True)
class SharedFiles:
    """How pods mount the shared file system: the CSI driver's name and attributes, and mount options.

    `handle` begins the handles of its volumes. `writer_attributes` and `reader_attributes` are of those that are
    mounted to write, or only to read.
    """

    driver: str
    handle: pulumi.Input[str]
    attributes: dict[str, pulumi.Input[str]]
    mount_options: Sequence[str]
    ready: Sequence[pulumi.Resource]
    writer_attributes: dict[str, str] = field(default_factory=dict[str, str])
    reader_attributes: dict[str, str] = field(default_factory=dict[str, str])


class Storage(pulumi.ComponentResource):
    """The model bucket and the shared file system; kept when the stack is destroyed unless the stack says otherwise."""

    bucket: Bucket
    files: SharedFiles

    def __init__(self, name: str, args: StorageArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AzureStorage", name, None, opts)
        self._prefix, self._args = name, args
        self._child = pulumi.ResourceOptions(parent=self)
        self._data = pulumi.ResourceOptions(
            parent=self, protect=args.protect, retain_on_delete=args.plan.keep_data, depends_on=args.key.granted
        )
        self.bucket = self._bucket()
        self.files = self._nfs() if args.plan.kind == "nfs" else self._lustre()
        self.register_outputs({"bucket": self.bucket.url})

    def _bucket(self) -> Bucket:
        name, group = self._prefix, self._args.resource_group
        account = self._account("models", "StorageV2", "Standard", self._args.api_cidrs)
        storage.BlobServiceProperties(
            f"{name}-models",
            resource_group_name=group,
            account_name=account.name,
            blob_services_name="default",
            is_versioning_enabled=True,
            delete_retention_policy=storage.DeleteRetentionPolicyArgs(enabled=True, days=_DAYS),
            container_delete_retention_policy=storage.DeleteRetentionPolicyArgs(enabled=True, days=_DAYS),
            opts=self._data,
        )
        container = storage.BlobContainer(
            f"{name}-models",
            resource_group_name=group,
            account_name=account.name,
            container_name="models",
            public_access=storage.PublicAccess.NONE,
            opts=self._data,
        )
        ready = [container, *self._private_endpoint("models", account, "blob")]
        url = pulumi.Output.concat("https://", account.name, ".blob.core.windows.net/", container.name)
        return Bucket(account=account.name, name=container.name, id=container.id, url=url, ready=ready)

    def _nfs(self) -> SharedFiles:
        account = self._account("files", "FileStorage", "Premium", ())
        share = storage.FileShare(
            f"{self._prefix}-files",
            resource_group_name=self._args.resource_group,
            account_name=account.name,
            share_name="files",
            enabled_protocols=storage.EnabledProtocols.NFS,
            share_quota=self._args.plan.capacity_gib,
            # The driver, root of the node, gives the share to the pods' group.
            root_squash=storage.RootSquashType.NO_ROOT_SQUASH,
            opts=self._data,
        )
        return SharedFiles(
            driver="file.csi.azure.com",
            handle=account.name,
            attributes={
                "storageAccount": account.name,
                "shareName": share.name,
                "protocol": "nfs",
                # TLS. The account refuses NFS without it, since it requires secure transfer.
                "encryptInTransit": "true",
            },
            # More connections gain nothing (azurefile-csi-driver, docs/driver-parameters.md).
            mount_options=("nconnect=4", "noresvport"),
            ready=[share, *self._private_endpoint("files", account, "file")],
            # The driver applies fsGroup itself, whatever a volume's type and modes are (VOLUME_MOUNT_GROUP), but first
            # the mode of the root, which is open to everybody by default. It fails in both where it may not write.
            writer_attributes={"mountPermissions": "0770"},
            reader_attributes={"mountPermissions": "0", "fsGroupChangePolicy": "None"},
        )

    def _lustre(self) -> SharedFiles:
        args, plan = self._args, self._args.plan
        if args.lustre_subnet_id is None or plan.capacity_gib is None:
            raise ValueError("the plan has Lustre, but no subnet or no capacity for it")
        key = storagecache.KeyVaultKeyReferenceArgs(
            key_url=args.key.url, source_vault=storagecache.KeyVaultKeyReferenceSourceVaultArgs(id=args.key.vault_id)
        )
        zone = plan.zone.rpartition("-")[2]
        files = storagecache.AmlFilesystem(
            f"{self._prefix}-files",
            resource_group_name=args.resource_group,
            location=args.region,
            sku=storagecache.SkuNameArgs(name=f"AMLFS-Durable-Premium-{plan.throughput_mb_s_per_tib}"),
            storage_capacity_ti_b=plan.capacity_gib / 1024,
            # A region without zones has one, and it is called 0.
            zones=[zone] if zone != "0" else None,
            filesystem_subnet=args.lustre_subnet_id,
            identity=storagecache.AmlFilesystemIdentityArgs(
                type=storagecache.AmlFilesystemIdentityType.USER_ASSIGNED,
                user_assigned_identities=[args.key.identity_id],
            ),
            encryption_settings=storagecache.AmlFilesystemEncryptionSettingsArgs(key_encryption_key=key),
            # Azure wants one named; mounts wait through it.
            maintenance_window=storagecache.AmlFilesystemMaintenanceWindowArgs(
                day_of_week=storagecache.MaintenanceDayOfWeekType.SUNDAY, time_of_day_utc="03:00"
            ),
            opts=self._data,
        )
        return SharedFiles(
            driver="azurelustre.csi.azure.com",
            handle=files.name,
            attributes={"mgs-ip-address": files.client_info.mgs_address},
            # Without it Lustre refuses flock, which the engine store locks with.
            mount_options=("flock", "noatime"),
            ready=[files],
        )

    def _account(self, what: str, kind: str, tier: str, allowed: Sequence[str]) -> storage.StorageAccount:
        """A storage account that knows no shared keys and no anonymous readers, open to `allowed` and endpoints."""
        args, key = self._args, self._args.key
        # Where a region has zones, a kind of storage that is in all of them: an account cannot easily change it later.
        zonal = not any(zone.endswith("-0") for zone in args.zones)
        return storage.StorageAccount(
            # Pulumi adds eight characters, and Azure wants at most 24, letters and digits.
            f"{self._prefix.partition('-')[0]}{what}"[:16],
            resource_group_name=args.resource_group,
            location=args.region,
            kind=kind,
            sku=storage.SkuArgs(name=f"{tier}_{'ZRS' if zonal else 'LRS'}"),
            allow_blob_public_access=False,
            allow_shared_key_access=False,
            allow_cross_tenant_replication=False,
            default_to_o_auth_authentication=True,
            enable_https_traffic_only=True,
            minimum_tls_version=storage.MinimumTlsVersion.TLS1_2,
            public_network_access="Enabled" if allowed else "Disabled",
            network_rule_set=storage.NetworkRuleSetArgs(
                default_action=storage.DefaultAction.DENY,
                bypass=storage.Bypass.NONE,
                ip_rules=[
                    storage.IPRuleArgs(i_p_address_or_range=range_) for cidr in allowed for range_ in _ranges(cidr)
                ],
            ),
            identity=storage.IdentityArgs(
                type=storage.IdentityType.USER_ASSIGNED, user_assigned_identities=[key.identity_id]
            ),
            encryption=storage.EncryptionArgs(
                key_source=storage.KeySource.MICROSOFT_KEYVAULT,
                # Without a version the account follows the key as it is rotated.
                key_vault_properties=storage.KeyVaultPropertiesArgs(key_vault_uri=key.vault_uri, key_name=key.name),
                encryption_identity=storage.EncryptionIdentityArgs(encryption_user_assigned_identity=key.identity_id),
            ),
            opts=self._data,
        )

    def _private_endpoint(self, what: str, account: storage.StorageAccount, service: str) -> list[pulumi.Resource]:
        """An address of the account in the network, and the name by which its clients find it."""
        name, args, child = f"{self._prefix}-{what}", self._args, self._child
        zone = privatedns.PrivateZone(
            name,
            resource_group_name=args.resource_group,
            private_zone_name=f"privatelink.{service}.core.windows.net",
            location="Global",
            opts=child,
        )
        link = privatedns.VirtualNetworkLink(
            name,
            resource_group_name=args.resource_group,
            private_zone_name=zone.name,
            location="Global",
            virtual_network=privatedns.SubResourceArgs(id=args.network_id),
            registration_enabled=False,
            # Accounts of others that have endpoints elsewhere keep their public addresses.
            resolution_policy=privatedns.ResolutionPolicy.NX_DOMAIN_REDIRECT,
            opts=child,
        )
        endpoint = network.PrivateEndpoint(
            name,
            resource_group_name=args.resource_group,
            location=args.region,
            subnet=network.SubnetArgs(id=args.endpoint_subnet_id),
            private_link_service_connections=[
                network.PrivateLinkServiceConnectionArgs(
                    name=service, private_link_service_id=account.id, group_ids=[service]
                )
            ],
            opts=child,
        )
        record = network.PrivateDnsZoneGroup(
            name,
            resource_group_name=args.resource_group,
            private_endpoint_name=endpoint.name,
            private_dns_zone_group_name="default",
            private_dns_zone_configs=[network.PrivateDnsZoneConfigArgs(name=service, private_dns_zone_id=zone.id)],
            opts=child,
        )
        return [link, record]


def _ranges(cidr: str) -> list[str]:
    """A storage firewall takes single addresses only as such, not as /31 or /32."""
    found = ipaddress.ip_network(cidr)
    return [cidr] if found.prefixlen <= found.max_prefixlen - 2 else [str(address) for address in found]
