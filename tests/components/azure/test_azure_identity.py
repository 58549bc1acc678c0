"""Who may read what of the bucket: the named service accounts their prefix, and nobody anything else."""

import re
from typing import Any

import pulumi
import pytest

from components.clouds.azure.identity import Readers
from components.clouds.base import Identity
from planner.object_sources import object_source
from tests.components.azure.storage_world import ISSUER, LUSTRE, Parts, build, models
from tests.components.world import SUBSCRIPTION, Recorded

READER = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"


def granted(*asked: tuple[str, str | None], mounts: tuple[str | None, ...] = ()) -> Recorded:
    """A world in which each service account of the namespace `serving` asked to read a prefix."""

    def use(parts: Parts) -> None:
        for account, prefix in asked:
            identity = _ask(parts.readers, account, prefix)
            pulumi.export(account, [resource.urn for resource in identity.resources])
            pulumi.export(f"{account}-annotations", dict(identity.annotations))

    return build(LUSTRE, models(*mounts), use)


def _ask(readers: Readers, account: str, prefix: str | None) -> Any:
    return readers.identity(account, namespace="serving", service_account=account, bucket_prefix=prefix)


def test_a_service_account_of_this_cluster_is_trusted_and_no_other() -> None:
    recorded = granted(("model", "llama/8b"))
    (reader,) = recorded.of("UserAssignedIdentity")

    assert recorded.one("FederatedIdentityCredential").inputs == {
        "resourceGroupName": "group",
        "resourceName": f"{reader.name}-name",
        "issuer": ISSUER,
        "subject": "system:serviceaccount:serving:model",
        "audiences": ["api://AzureADTokenExchange"],
    }


@pytest.mark.parametrize("prefix", ["llama/8b", "llama/8b/", "/llama/8b"])
def test_a_reader_reads_and_lists_its_prefix_and_nothing_else(prefix: str) -> None:
    recorded = granted(("model", prefix))
    right = recorded.one("RoleAssignment").inputs
    (reader,) = recorded.of("UserAssignedIdentity")
    blobs = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs"
    read, listing = f"ActionMatches{{'{blobs}/read'}}", "SubOperationMatches{'Blob.List'}"

    assert right["roleDefinitionId"] == (
        f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Authorization/roleDefinitions/{READER}"
    )
    # The container, not the account, which has other data.
    assert right["scope"].endswith("/fleet-storage-models")
    assert (right["principalId"], right["principalType"]) == (f"{reader.name}-principalId", "ServicePrincipal")
    assert right["conditionVersion"] == "2.0"
    assert right["condition"] == (
        f"((!({read} AND NOT {listing})) OR (@Resource[{blobs}:path] StringStartsWith 'llama/8b/'))"
        f" AND ((!({read} AND {listing})) OR (@Request[{blobs}:prefix] StringStartsWith 'llama/8b/'))"
    )


@pytest.mark.parametrize(
    ("operation", "path", "allowed"),
    [
        ("read", "llama/8b/config.json", True),
        ("read", "llama/8b-chat/config.json", False),
        ("read", "llama/70b/config.json", False),
        ("read", "llama/8b", False),
        ("list", "llama/8b/", True),
        ("list", "llama/8b/sub/", True),
        ("list", "llama/8b", False),
        ("list", "llama/", False),
        ("list", "", False),
    ],
)
def test_the_condition_means_what_it_should(operation: str, path: str, allowed: bool) -> None:
    condition = granted(("model", "llama/8b")).one("RoleAssignment").inputs["condition"]

    assert holds(condition, operation, path) is allowed


def holds(condition: str, operation: str, path: str) -> bool:
    """What Azure would make of the condition: for a listing, `path` is the request's prefix, else the blob's."""
    words = re.sub(r"ActionMatches\{'[^']*/blobs/read'\}", " True ", condition)
    words = words.replace("SubOperationMatches{'Blob.List'}", f" {operation == 'list'} ")
    kinds = {"@Resource": "read", "@Request": "list"}
    for source, kind in kinds.items():
        # An attribute that the request does not have makes a comparison false.
        known = repr(path if operation == kind else "")
        words = re.sub(rf"{source}\[[^\]]*\] StringStartsWith ('[^']*')", rf"({known}.startswith(\1))", words)
    words = words.replace("!(", " not (").replace("AND NOT", "and not").replace("AND", "and").replace("OR", "or")
    return bool(eval(words, {"__builtins__": {}}))


def test_a_service_account_without_a_prefix_gets_nothing() -> None:
    recorded = granted(("model", None))

    assert recorded.outputs["model"] == []
    assert recorded.outputs["model-annotations"] == {}
    for kind in ("UserAssignedIdentity", "FederatedIdentityCredential", "RoleAssignment"):
        assert not recorded.of(kind)


def test_pods_wait_for_their_rights_and_for_being_trusted() -> None:
    recorded = granted(("model", "llama/8b"))

    assert set(recorded.outputs["model"]) == {
        recorded.one("RoleAssignment").urn,
        recorded.one("FederatedIdentityCredential").urn,
    }


def test_a_prefix_has_one_identity_that_its_volumes_name() -> None:
    """Volumes are made before service accounts ask."""
    recorded = granted(("build", "llama/8b"), ("serve", "llama/8b/"), mounts=("llama/8b", "llama/8b/"))
    (reader,) = recorded.of("UserAssignedIdentity")
    volumes = [found.inputs["spec"]["csi"] for found in recorded.of("PersistentVolume", "weights")]

    assert [volume["volumeAttributes"]["clientID"] for volume in volumes] == [f"{reader.name}-clientId"] * 2
    assert len(recorded.of("RoleAssignment")) == 1
    assert len(recorded.of("FederatedIdentityCredential")) == 2


def test_prefixes_have_identities_of_their_own_however_alike_they_are() -> None:
    recorded = granted(("a", "llama/8b"), ("b", "llama-8b"), ("c", "Llama/8b"))
    conditions = {found.inputs["condition"] for found in recorded.of("RoleAssignment")}
    principals = {found.inputs["principalId"] for found in recorded.of("RoleAssignment")}

    assert len(conditions) == len(principals) == len(recorded.of("UserAssignedIdentity")) == 3


ACCOUNT = (
    "/subscriptions/89abcdef-89ab-cdef-0123-456789abcdef/resourceGroups/data"
    "/providers/Microsoft.Storage/storageAccounts/weights1"
)


def fetchers(**sources: str) -> tuple[Recorded, dict[str, Identity]]:
    """Accounts by name, each with a source in a container that the stack did not make."""
    found: dict[str, Identity] = {}

    def use(parts: Parts) -> None:
        for name, text in sources.items():
            source = object_source(text)
            assert source is not None
            found[name] = parts.readers.source_identity(
                name, namespace="serving", service_account=name, source=source, account_id=ACCOUNT
            )
            pulumi.export(name, [resource.urn for resource in found[name].resources])
            pulumi.export(f"{name}-annotations", dict(found[name].annotations))

    return build(LUSTRE, models(), use), found


def test_of_another_container_an_account_reads_what_lies_below_its_prefix() -> None:
    recorded, found = fetchers(f="az://models@weights1/llama/8b")
    right = recorded.one("RoleAssignment").inputs

    assert right["scope"] == f"{ACCOUNT}/blobServices/default/containers/models"
    # A role is known by the subscription of what it is a right to.
    assert right["roleDefinitionId"].startswith("/subscriptions/89abcdef-")
    assert right["roleDefinitionId"].endswith(READER)
    assert holds(right["condition"], "read", "llama/8b/config.json")
    assert not holds(right["condition"], "read", "llama/8b-chat/config.json")
    assert recorded.one("FederatedIdentityCredential").inputs["subject"] == "system:serviceaccount:serving:f"
    assert set(recorded.outputs["f"]) == {
        recorded.one("RoleAssignment").urn,
        recorded.one("FederatedIdentityCredential").urn,
    }
    (reader,) = recorded.of("UserAssignedIdentity")
    assert recorded.outputs["f-annotations"] == {"azure.workload.identity/client-id": f"{reader.name}-clientId"}
    assert found["f"].pod_labels == {"azure.workload.identity/use": "true"}


def test_sources_have_identities_of_their_own_and_a_whole_container_no_condition() -> None:
    recorded, _ = fetchers(a="az://models@weights1/llama", b="az://other@weights1/llama", c="az://models@weights1")
    rights = {right.inputs["principalId"]: right.inputs.get("condition") for right in recorded.of("RoleAssignment")}

    assert len(rights) == len(recorded.of("UserAssignedIdentity")) == 3
    assert list(rights.values()).count(None) == 1


def test_credentials_of_one_identity_are_made_one_after_another() -> None:
    """Azure refuses to write two at once (409)."""
    recorded = granted(("a", "llama/8b"), ("b", "llama/8b"), ("other", "llama/70b"), ("c", "llama/8b"))
    first, second, third = (recorded.one("FederatedIdentityCredential", f"fleet-readers-{name}") for name in "abc")
    other = recorded.one("FederatedIdentityCredential", "other")

    assert first.urn in second.depends_on
    assert second.urn in third.depends_on
    assert not {first.urn, second.urn, third.urn} & other.depends_on
