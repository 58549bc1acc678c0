"""The whole cloud: the project's APIs, the keys, and what other rooms get from it."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pulumi
import pytest

from components.clouds import cloud_class
from components.clouds.base import Autoscaling, Cloud, Identity, Volumes
from components.clouds.gcp.cloud import Gcp
from components.platform.charts import ChartValues
from tests.components.gcp.stacks import EXAMPLES, MIG, RDMA, build, built, example, site
from tests.components.world import Recorded

ENCRYPTER = "roles/cloudkms.cryptoKeyEncrypterDecrypter"


@pytest.fixture(scope="module")
def world() -> Recorded:
    return built(RDMA)


@pytest.mark.parametrize(("stack", "files"), [(RDMA, "lustre"), (MIG, "file")])
def test_everything_waits_for_the_projects_apis(stack: str, files: str) -> None:
    recorded = built(stack)
    services = {r.inputs["service"].partition(".")[0]: r for r in recorded.of("Service")}
    provider = recorded.one("pulumi:providers:gcp", "fleet")

    assert {"cloudkms", "compute", "container", "dns", "iam", "servicenetworking", "storage", files} <= set(services)
    assert all(r.inputs["disableOnDestroy"] is False for r in services.values())
    assert {r.urn for r in services.values()} <= provider.depends_on
    assert provider.inputs["project"] == "tritonfleet-example"
    assert provider.inputs["region"] == "us-central1"
    for resource in recorded:
        if resource.type.startswith("gcp:") and resource.type != "gcp:projects/service:Service":
            assert resource.provider == provider.urn, resource.name


@pytest.mark.parametrize("stack", EXAMPLES)
def test_no_cloud_is_asked_anything_at_a_preview(stack: str) -> None:
    before, after = (sorted(r.urn for r in built(stack, preview=preview)) for preview in (True, False))
    assert before == after


@pytest.mark.parametrize("stack", EXAMPLES)
def test_three_keys_rotate_and_each_is_for_its_own_services(stack: str) -> None:
    recorded = built(stack)
    keys = {key.name.removeprefix("fleet-keys-"): key for key in recorded.of("CryptoKey")}
    files = {RDMA: "lustre", MIG: "file"}[stack]

    assert set(keys) == {"secrets", "disks", "data"}
    for key in keys.values():
        assert key.inputs["rotationPeriod"] == "7776000s"
        assert key.inputs["keyRing"] == "fleet-keys-ring-id"
    number = "fleet-keys-container-email"  # of service-NUMBER@container-engine-robot, in a real project
    grants = {
        (r.inputs["cryptoKeyId"], r.inputs["member"], r.inputs["role"]) for r in recorded.of("CryptoKeyIAMMember")
    }
    assert grants == {
        ("fleet-keys-secrets-id", f"serviceAccount:{number}", ENCRYPTER),
        ("fleet-keys-disks-id", f"serviceAccount:service-{number}@compute-system.iam.gserviceaccount.com", ENCRYPTER),
        (
            "fleet-keys-data-id",
            f"serviceAccount:service-{number}@gs-project-accounts.iam.gserviceaccount.com",
            ENCRYPTER,
        ),
        ("fleet-keys-data-id", f"serviceAccount:fleet-keys-{files}-email", ENCRYPTER),
    }
    agents = {r.inputs["service"] for r in recorded.of("ServiceIdentity")}
    assert agents == {"container.googleapis.com", f"{files}.googleapis.com"}


def test_key_rings_are_named_anew_because_google_never_forgets_a_name(world: Recorded) -> None:
    assert "name" not in world.one("KeyRing").inputs


def test_kept_data_keeps_its_keys_and_the_right_to_use_them() -> None:
    plan = site(RDMA)
    dropped = build(replace(plan, storage=replace(plan.storage, keep_data=False)))
    for recorded, kept in ((built(RDMA), True), (dropped, False)):
        for key in (*recorded.of("CryptoKey"), recorded.one("KeyRing")):
            assert (key.protect, key.retain_on_delete) == (kept, kept)
        assert all(r.retain_on_delete is kept for r in recorded.of("CryptoKeyIAMMember"))


def test_data_waits_for_the_grants_of_its_key(world: Recorded) -> None:
    grants = {r.urn for r in world.of("CryptoKeyIAMMember", "fleet-keys-data")}

    assert len(grants) == 2
    assert grants <= world.one("Bucket").depends_on
    assert grants <= world.one("gcp:lustre/instance:Instance").depends_on
    assert (
        world.one("gcp:servicenetworking/connection:Connection").urn
        in world.one("gcp:lustre/instance:Instance").depends_on
    )


@pytest.mark.parametrize("stack", EXAMPLES)
def test_nobody_owns_the_project(stack: str) -> None:
    roles = {r.inputs["role"] for r in built(stack) if "role" in r.inputs}
    assert not roles & {"roles/owner", "roles/editor", "roles/container.admin", "roles/storage.admin"}


def test_pods_that_read_nothing_are_nobody() -> None:
    seen: list[Identity] = []

    def use(cloud: Gcp) -> None:
        seen.append(cloud.identity("a", namespace="serving", service_account="a", bucket_prefix=None))

    recorded = build(site(RDMA), (), use)
    assert seen == [Identity()]
    assert not recorded.of("ManagedFolderIamMember")


def test_pods_that_read_a_prefix_are_principals_of_the_project() -> None:
    def use(cloud: Gcp) -> None:
        cloud.identity("a", namespace="serving", service_account="a-serve", bucket_prefix="llama/")

    member = build(site(RDMA), (), use).one("ManagedFolderIamMember").inputs["member"]
    assert member.startswith("principal://iam.googleapis.com/projects/fleet-keys-container-email/")
    assert member.endswith("/workloadIdentityPools/tritonfleet-example.svc.id.goog/subject/ns/serving/sa/a-serve")


def test_claims_wait_for_the_cluster_and_the_namespace() -> None:
    seen: list[Volumes] = []

    def use(cloud: Gcp) -> None:
        space = pulumi.ComponentResource("test:Namespace", "space")
        seen.append(cloud.volumes("serving", example(RDMA).models, opts=pulumi.ResourceOptions(depends_on=[space])))

    recorded = build(site(RDMA), example(RDMA).models, use)
    (volumes,) = seen
    volume = recorded.one("PersistentVolume", "serving-engines")

    assert (volumes.engines_rw, volumes.engines_ro) == ("engines", "engines-readonly")
    assert recorded.one("gcp:container/cluster:Cluster").urn in volume.depends_on
    assert volume.provider == recorded.one("pulumi:providers:kubernetes").urn


def test_gke_scales_nodes_itself_in_the_order_of_compute_classes() -> None:
    seen: list[Autoscaling] = []
    charts: list[Sequence[ChartValues]] = []

    def use(cloud: Gcp) -> None:
        seen.append(cloud.autoscaling())
        charts.append(cloud.charts())

    build(site(MIG), (), use)
    (autoscaling,) = seen

    assert autoscaling.chart is None
    assert autoscaling.group_pattern is None
    assert len(autoscaling.resources) == len(site(MIG).pools)
    assert charts == [[]]


def test_objects_in_the_cluster_have_its_provider(world: Recorded) -> None:
    provider = world.one("pulumi:providers:kubernetes").urn
    objects = [r for r in world if r.type.startswith("kubernetes:")]

    assert objects
    assert all(r.provider == provider for r in objects)


def test_nothing_is_unreachable_that_the_stack_makes_itself() -> None:
    assert Gcp.unreachable(site(RDMA)) == []


def test_the_cloud_is_found_by_name() -> None:
    assert cloud_class("gcp") is Gcp
    assert issubclass(Gcp, Cloud)


def test_choosing_it_imports_no_other_clouds_sdk() -> None:
    program = "import sys, components.clouds as c; c.cloud_class('gcp'); print(*sys.modules)"
    root = Path(__file__).parents[3]
    loaded = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    names = {module.split(".")[0] for module in loaded.stdout.split()}

    assert "pulumi_gcp" in names
    assert not names & {"pulumi_aws", "pulumi_eks", "pulumi_azure_native"}
