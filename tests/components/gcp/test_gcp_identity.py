"""Service accounts read their own prefix of the model bucket, by their own names, and nothing else."""

from components.clouds.base import Identity
from tests.components.gcp.parts import NFS, NUMBER, PROJECT, Parts, build
from tests.components.gcp.stacks import site
from tests.components.world import Recorded

POOL = f"principal://iam.googleapis.com/projects/{NUMBER}/locations/global/workloadIdentityPools/{PROJECT}.svc.id.goog"
FOLDER, READS = "gcp:storage/managedFolder:ManagedFolder", "gcp:storage/managedFolderIamMember:ManagedFolderIamMember"
ROLE, LISTS = "gcp:projects/iAMCustomRole:IAMCustomRole", "gcp:storage/bucketIAMMember:BucketIAMMember"
BUCKET = "fleet-storage-models-name"


def readers(*wanted: tuple[str, str]) -> tuple[Recorded, list[Identity]]:
    """Accounts by name, each with its prefix."""
    found: list[Identity] = []

    def use(parts: Parts) -> None:
        for account, prefix in wanted:
            found.append(
                parts.identities.read_prefix(
                    f"fleet-{account}", namespace="serving", service_account=account, prefix=prefix
                )
            )

    return build(site(NFS), use), found


def test_an_account_reads_the_objects_below_its_prefix_and_no_others() -> None:
    recorded, _ = readers(("llama-8b", "llama/8b"))
    folder, reads = recorded.one(FOLDER), recorded.one(READS)

    # The slash at the end keeps llama/8b-instruct out.
    assert folder.inputs["name"] == "llama/8b/"
    assert folder.inputs["bucket"] == reads.inputs["bucket"] == BUCKET
    assert reads.inputs["managedFolder"] == "llama/8b/"
    assert folder.urn in reads.depends_on
    assert reads.inputs["role"] == "roles/storage.objectViewer"
    assert reads.inputs["member"] == f"{POOL}/subject/ns/serving/sa/llama-8b"


def test_of_the_whole_bucket_an_account_may_only_list_names() -> None:
    recorded, _ = readers(("llama-8b", "llama/8b"))
    role, lists = recorded.one(ROLE), recorded.one(LISTS)

    assert role.inputs["permissions"] == ["storage.objects.list"]
    assert role.inputs["roleId"] == "tritonfleet_stack_bucket_lister"
    assert lists.inputs == {
        "bucket": BUCKET,
        "role": f"{role.name}-name",
        "member": f"{POOL}/subject/ns/serving/sa/llama-8b",
    }


def test_accounts_of_one_prefix_share_its_folder_and_nothing_else_is_shared() -> None:
    """Google knows one folder of a name; engines are built from the weights that another account serves."""
    recorded, _ = readers(("build", "llama/8b"), ("serve", "llama/8b"), ("other", "qwen"))

    assert {found.inputs["name"] for found in recorded.of(FOLDER)} == {"llama/8b/", "qwen/"}
    assert len(recorded.of(FOLDER)) == 2
    assert len(recorded.of(ROLE)) == 1
    given = {found.inputs["member"].rpartition("/")[2]: found.inputs["managedFolder"] for found in recorded.of(READS)}
    assert given == {"build": "llama/8b/", "serve": "llama/8b/", "other": "qwen/"}


def test_a_folder_goes_without_its_objects_and_a_kept_bucket_has_no_rights_left() -> None:
    recorded, _ = readers(("llama-8b", "llama/8b"))

    assert recorded.one(FOLDER).inputs["forceDestroy"] is True
    assert not any(recorded.one(kind).retain_on_delete for kind in (FOLDER, READS, LISTS))


def test_rights_wait_for_the_cluster_and_pods_for_their_rights() -> None:
    recorded, (identity,) = readers(("llama-8b", "llama/8b"))
    cluster = recorded.one("gcp:container/cluster:Cluster").urn

    for kind in (READS, LISTS):
        assert cluster in recorded.one(kind).depends_on
    assert len(identity.resources) == 2
    assert not identity.annotations


def test_nobody_is_given_anything_where_nobody_reads_the_bucket() -> None:
    recorded, _ = readers()

    for kind in (FOLDER, READS, ROLE, LISTS):
        assert not recorded.of(kind)
