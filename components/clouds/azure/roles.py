"""Rights in Azure: built-in roles, given to managed identities."""

from enum import StrEnum

import pulumi
from pulumi_azure_native import authorization


class Role(StrEnum):
    """Ids of built-in roles (Azure documentation, "Azure built-in roles")."""

    BLOB_READER = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"  # Storage Blob Data Reader
    CONTRIBUTOR = "b24988ac-6180-42a0-ab88-20f7382dd24c"
    IDENTITY_OPERATOR = "f1a07417-d97a-45cb-824c-7a7467783830"
    KEY_USER = "e147488a-f6f5-4113-8e2d-b22465e65bf6"  # Key Vault Crypto Service Encryption User
    NETWORK_CONTRIBUTOR = "4d97b98b-1d4f-4787-a291-c67834d212e7"
    READER = "acdd72a7-3385-48ef-bd42-f606fba81ae7"


def assign(
    name: str,
    role: Role,
    principal: pulumi.Input[str],
    *,
    scope: pulumi.Input[str],
    subscription: pulumi.Input[str],
    condition: str | None = None,
    opts: pulumi.ResourceOptions,
) -> authorization.RoleAssignment:
    """Gives a managed identity a role on one resource, as far as `condition` goes."""
    definitions = "/providers/Microsoft.Authorization/roleDefinitions/"
    return authorization.RoleAssignment(
        name,
        scope=scope,
        role_definition_id=pulumi.Output.concat("/subscriptions/", subscription, definitions, role),
        principal_id=principal,
        # Without it Azure looks the identity up in its directory, which does not know a new one yet.
        principal_type="ServicePrincipal",
        condition=condition,
        condition_version="2.0" if condition else None,
        opts=opts,
    )
