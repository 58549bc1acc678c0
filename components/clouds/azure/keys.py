"""The keys that everything at rest is encrypted with: one for the nodes' disks, one for data."""

from dataclasses import dataclass

import pulumi
from pulumi_azure_native import authorization, compute, keyvault, managedidentity

from components.clouds.azure.computed import computed
from components.clouds.azure.roles import Role, assign
from components.clouds.azure.storage import DataKey

_ROTATION = keyvault.RotationPolicyArgs(
    lifetime_actions=[
        keyvault.LifetimeActionArgs(
            action=keyvault.ActionArgs(type=keyvault.KeyRotationPolicyActionType.ROTATE),
            trigger=keyvault.TriggerArgs(time_after_create="P1Y"),
        )
    ]
)
"""A new version each year. No version expires: a Lustre file system keeps the one that it was made with."""


@dataclass(frozen=True, kw_only=True)
class KeysArgs:
    """`keep` keeps the keys when the stack is destroyed: what they encrypt is kept too, and worth nothing without.
    `lustre` says that a Lustre file system is among it."""

    region: str
    resource_group: pulumi.Input[str]
    subscription: pulumi.Input[str]
    keep: bool
    lustre: bool


class Keys(pulumi.ComponentResource):
    """`disks` is what the nodes' disks are encrypted by, once it is granted its key, and `data` what bucket and file
    system are.

    Secrets in etcd have Azure's own key. A key of the customer's takes, in the API version that this program speaks
    (2025-09-01), a vault open to every network, or an API server inside the network; its rotation is by hand, and
    Microsoft recommends another way for Kubernetes 1.33 and newer that this version does not have (AKS documentation,
    "Add KMS etcd encryption (legacy)").
    """

    disks: compute.DiskEncryptionSet
    disks_granted: pulumi.Resource
    data: DataKey

    def __init__(self, name: str, args: KeysArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AzureKeys", name, None, opts)
        self._prefix, self._args = name, args
        self._kept = pulumi.ResourceOptions(parent=self, protect=args.keep, retain_on_delete=args.keep)
        keeper = managedidentity.UserAssignedIdentity(
            f"{name}-data",
            resource_group_name=args.resource_group,
            location=args.region,
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=args.keep),
        )
        self._vault = keyvault.Vault(
            # Vaults' names have 24 letters at most, and the last eight are Pulumi's.
            f"{name}-vault",
            resource_group_name=args.resource_group,
            location=args.region,
            properties=keyvault.VaultPropertiesArgs(
                tenant_id=keeper.tenant_id,
                sku=keyvault.SkuArgs(family="A", name=keyvault.SkuName.STANDARD),
                enable_rbac_authorization=True,
                # What encrypts disks and storage may not vanish for good (Azure refuses a vault without both).
                enable_soft_delete=True,
                enable_purge_protection=True,
                soft_delete_retention_in_days=90,
                # Storage, disks and Lustre are trusted services, and come past both. Lustre takes no vault whose public
                # endpoint is off (Azure Managed Lustre documentation, "Use customer-managed encryption keys"): there,
                # the rules below turn everybody else away.
                public_network_access="Enabled" if args.lustre else "Disabled",
                network_acls=keyvault.NetworkRuleSetArgs(bypass="AzureServices", default_action="Deny"),
            ),
            opts=self._kept,
        )
        disks, data = self._key("disks"), self._key("data")
        self.disks = compute.DiskEncryptionSet(
            f"{name}-disks",
            resource_group_name=args.resource_group,
            location=args.region,
            encryption_type="EncryptionAtRestWithCustomerKey",
            active_key=compute.KeyForDiskEncryptionSetArgs(
                key_url=disks.key_uri_with_version, source_vault=compute.SourceVaultArgs(id=self._vault.id)
            ),
            rotation_to_latest_key_version_enabled=True,
            # Its own, which it can only be granted afterwards: then nothing is refused for want of a right that
            # Azure does not know of everywhere yet.
            identity=compute.EncryptionSetIdentityArgs(type="SystemAssigned"),
            # Which version it is now is the rotation's.
            opts=pulumi.ResourceOptions(parent=self, ignore_changes=["activeKey.keyUrl"]),
        )
        principal = computed(
            self.disks, self.disks.identity, lambda identity: identity.principal_id if identity else None
        )
        self.disks_granted = self._grant("disks", disks, principal)
        self.data = DataKey(
            vault_id=self._vault.id,
            vault_uri=computed(self._vault, self._vault.properties, lambda properties: properties.vault_uri),
            name=data.name,
            url=data.key_uri_with_version,
            identity_id=keeper.id,
            granted=[self._grant("data", data, keeper.principal_id)],
        )
        self.register_outputs({})

    def _key(self, name: str) -> keyvault.Key:
        return keyvault.Key(
            f"{self._prefix}-{name}",
            resource_group_name=self._args.resource_group,
            vault_name=self._vault.name,
            properties=keyvault.KeyPropertiesArgs(
                # The size that Azure Managed Lustre takes.
                kty="RSA",
                key_size=2048,
                key_ops=["wrapKey", "unwrapKey"],
                rotation_policy=_ROTATION,
            ),
            opts=self._kept,
        )

    def _grant(self, name: str, key: keyvault.Key, principal: pulumi.Input[str]) -> authorization.RoleAssignment:
        """The right of a key's one user to wrap and unwrap other keys with it."""
        return assign(
            f"{self._prefix}-{name}",
            Role.KEY_USER,
            principal,
            scope=key.id,
            subscription=self._args.subscription,
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=self._args.keep),
        )
