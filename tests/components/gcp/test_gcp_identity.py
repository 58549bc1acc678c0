"""Service accounts read their own prefix of the model bucket, by their own names, and nothing else."""

from components.clouds.base import Identity
from planner.object_sources import object_source
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


def fetcher(source: str) -> tuple[Recorded, Identity]:
    """An account that reads a bucket which the stack did not make."""
    found: list[Identity] = []
    read = object_source(source)
    assert read is not None

    def use(parts: Parts) -> None:
        account = parts.identities.read_source("fleet-f", namespace="serving", service_account="f", source=read)
        found.append(account)

    return build(site(NFS), use), found[0]


def test_of_another_bucket_an_account_reads_what_lies_below_its_prefix() -> None:
    recorded, identity = fetcher("gs://other-bucket/llama/8b")
    right = recorded.one(LISTS)

    assert right.inputs["bucket"] == "other-bucket"
    assert right.inputs["role"] == "roles/storage.objectViewer"
    assert right.inputs["member"] == f"{POOL}/subject/ns/serving/sa/f"
    # The slash at the end keeps llama/8b-instruct out; the bucket itself is what a list is a list of.
    assert right.inputs["condition"]["expression"] == (
        'resource.name == "projects/_/buckets/other-bucket" || '
        'resource.name.startsWith("projects/_/buckets/other-bucket/objects/llama/8b/")'
    )
    assert recorded.one("gcp:container/cluster:Cluster").urn in right.depends_on
    assert not recorded.of(FOLDER), "nothing is made in a bucket of somebody else's"
    assert len(identity.resources) == 1
    assert {way.cidr for way in identity.egress} == {"169.254.169.254/32"}


def test_a_whole_bucket_is_read_where_no_prefix_is_given() -> None:
    assert "condition" not in fetcher("gs://other-bucket")[0].one(LISTS).inputs


def test_nobody_is_given_anything_where_nobody_reads_the_bucket() -> None:
    recorded, _ = readers()

    for kind in (FOLDER, READS, ROLE, LISTS):
        assert not recorded.of(kind)
