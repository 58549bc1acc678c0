"""The control plane: who reaches it, who may do what in it, and what it keeps of what happened."""

import json
from dataclasses import replace

import pytest

from components.clouds.gcp.cluster import CONTROL_PLANE_LOGS
from components.clouds.gcp.project import cluster_name, shortened
from tests.components.gcp.stacks import MIG, RDMA, build, built, example, from_bucket, site, with_cluster
from tests.components.world import UNKNOWN, Recorded, Registered


@pytest.fixture(scope="module")
def world() -> Recorded:
    return built(RDMA)


def cluster(recorded: Recorded) -> Registered:
    return recorded.one("gcp:container/cluster:Cluster")


def test_the_plan_says_name_place_version_and_ranges(world: Recorded) -> None:
    inputs = cluster(world).inputs

    assert inputs["name"] == "tritonfleet-stack"
    assert inputs["location"] == "us-central1"
    assert inputs["nodeLocations"] == ["us-central1-a", "us-central1-b", "us-central1-c"]
    assert inputs["minMasterVersion"] == "1.35"
    assert inputs["releaseChannel"] == {"channel": "REGULAR"}
    assert inputs["networkingMode"] == "VPC_NATIVE"
    assert inputs["ipAllocationPolicy"] == {
        "clusterSecondaryRangeName": "pods",
        "servicesSecondaryRangeName": "services",
    }
    assert inputs["network"] == "fleet-network-vpc-id"
    assert inputs["subnetwork"] == "fleet-network-nodes-id"


def test_dataplane_v2_enforces_policies_and_gives_pods_more_networks(world: Recorded) -> None:
    inputs = cluster(world).inputs

    assert inputs["datapathProvider"] == "ADVANCED_DATAPATH"
    assert "networkPolicy" not in inputs  # GKE refuses both
    assert inputs["enableMultiNetworking"] is True
    # Policies of the platform let pods ask kube-dns alone; new clusters have a cache before it unless told otherwise.
    assert inputs["dnsConfig"] == {"clusterDns": "KUBE_DNS"}
    assert inputs["addonsConfig"]["dnsCacheConfig"] == {"enabled": False}


def test_the_api_is_public_only_for_the_ranges_that_the_stack_names(world: Recorded) -> None:
    inputs = cluster(world).inputs
    authorized = inputs["masterAuthorizedNetworksConfig"]

    # No range of its own: behind a VPC peering, GKE's firewall would keep it from webhooks on ports such as 9443.
    assert inputs["privateClusterConfig"] == {"enablePrivateNodes": True, "enablePrivateEndpoint": False}
    assert [block["cidrBlock"] for block in authorized["cidrBlocks"]] == ["10.40.0.0/16", "198.51.100.0/24"]
    assert authorized["gcpPublicCidrsAccessEnabled"] is False
    assert authorized["privateEndpointEnforcementEnabled"] is True


def test_without_ranges_the_api_is_reached_from_inside_and_peered_networks_only() -> None:
    plan = with_cluster(site(RDMA), api_cidrs=())
    peered = replace(plan, network=replace(plan.network, peered_cidrs=("10.99.0.0/16",)))
    inputs = cluster(build(peered)).inputs

    assert inputs["privateClusterConfig"] == {"enablePrivateNodes": True, "enablePrivateEndpoint": True}
    blocks = inputs["masterAuthorizedNetworksConfig"]["cidrBlocks"]
    assert [block["cidrBlock"] for block in blocks] == ["10.40.0.0/16", "10.99.0.0/16"]


def test_pods_are_principals_of_the_projects_workload_identity_pool(world: Recorded) -> None:
    assert cluster(world).inputs["workloadIdentityConfig"] == {"workloadPool": "tritonfleet-example.svc.id.goog"}


def test_secrets_are_encrypted_with_a_key_that_gke_may_use_before_the_cluster_is_made(world: Recorded) -> None:
    assert cluster(world).inputs["databaseEncryption"] == {"state": "ENCRYPTED", "keyName": "fleet-keys-secrets-id"}
    grant = world.one("CryptoKeyIAMMember", "fleet-keys-secrets-gke")
    assert grant.inputs["cryptoKeyId"] == "fleet-keys-secrets-id"
    assert grant.inputs["member"] == "serviceAccount:fleet-keys-container-email"
    assert grant.inputs["role"] == "roles/cloudkms.cryptoKeyEncrypterDecrypter"
    assert grant.urn in cluster(world).depends_on


def test_no_client_certificates_no_anonymous_and_no_insecure_bindings(world: Recorded) -> None:
    inputs = cluster(world).inputs

    assert inputs["masterAuth"]["clientCertificateConfig"] == {"issueClientCertificate": False}
    assert inputs["anonymousAuthenticationConfig"] == {"mode": "LIMITED"}
    assert inputs["rbacBindingConfig"] == {
        "enableInsecureBindingSystemAuthenticated": False,
        "enableInsecureBindingSystemUnauthenticated": False,
    }
    assert inputs["enableShieldedNodes"] is True
    assert inputs["securityPostureConfig"]["mode"] == "BASIC"


def test_logs_of_the_control_plane_and_metrics_of_gpus_are_kept(world: Recorded) -> None:
    inputs = cluster(world).inputs

    assert set(inputs["loggingConfig"]["enableComponents"]) == set(CONTROL_PLANE_LOGS)
    assert {"APISERVER", "SYSTEM_COMPONENTS", "WORKLOADS"} <= set(CONTROL_PLANE_LOGS)
    assert "DCGM" in inputs["monitoringConfig"]["enableComponents"]
    assert inputs["monitoringConfig"]["managedPrometheus"] == {"enabled": True}


@pytest.mark.parametrize(("stack", "lustre", "nfs"), [(RDMA, True, False), (MIG, False, True)])
def test_the_drivers_are_those_of_the_stacks_storage(stack: str, lustre: bool, nfs: bool) -> None:
    addons = cluster(built(stack)).inputs["addonsConfig"]

    assert addons["lustreCsiDriverConfig"] == {"enabled": lustre}
    assert addons["gcpFilestoreCsiDriverConfig"] == {"enabled": nfs}
    assert addons["gcsFuseCsiDriverConfig"] == {"enabled": False}
    # Without it there would be two, and one would open load balancers.
    assert addons["httpLoadBalancing"] == {"disabled": True}


def test_a_model_in_the_bucket_brings_the_driver_of_cloud_storage() -> None:
    (model,) = example(RDMA).models
    addons = cluster(build(site(RDMA), (from_bucket(model, "llama"),))).inputs["addonsConfig"]
    assert addons["gcsFuseCsiDriverConfig"] == {"enabled": True}


def test_the_default_pool_goes_and_what_is_read_of_it_is_ignored(world: Recorded) -> None:
    made = cluster(world)

    assert made.inputs["removeDefaultNodePool"] is True
    assert made.inputs["initialNodeCount"] == 1
    assert made.ignore_changes == ("nodeConfig", "initialNodeCount")
    # An organization may forbid nodes of the default account, or with disks under Google's keys, for a minute too.
    assert made.inputs["nodeConfig"]["serviceAccount"] == "fleet-node-email"
    assert made.inputs["nodeConfig"]["bootDiskKmsKey"] == "fleet-keys-disks-id"
    assert world.one("CryptoKeyIAMMember", "fleet-keys-disks-compute").urn in made.depends_on
    assert world.one("RouterNat").urn in made.depends_on


def test_it_is_protected_unless_the_stack_says_otherwise(world: Recorded) -> None:
    assert cluster(world).protect is True
    assert cluster(world).inputs["deletionProtection"] is True
    allowed = cluster(build(replace(site(RDMA), allow_replacement=("cluster",))))
    assert allowed.protect is False
    assert allowed.inputs["deletionProtection"] is False


def test_node_pools_are_made_by_the_stack_alone(world: Recorded) -> None:
    assert cluster(world).inputs["clusterAutoscaling"] == {
        "enabled": False,
        "autoscalingProfile": "OPTIMIZE_UTILIZATION",
    }


def test_the_kubeconfig_holds_no_secret_and_asks_gcloud_for_tokens(world: Recorded) -> None:
    assert "kubeconfig" in world.secrets
    config = json.loads(world.outputs["kubeconfig"])
    (user,) = config["users"]

    assert config["clusters"][0]["cluster"]["server"] == "https://fleet-cluster-gke-endpoint"
    assert user["user"]["exec"]["command"] == "gke-gcloud-auth-plugin"
    assert set(user["user"]) == {"exec"}
    provider = world.one("pulumi:providers:kubernetes").inputs
    assert provider["clusterIdentifier"] == "tritonfleet-stack"
    assert "kubeconfig" in world.one("pulumi:providers:kubernetes").secrets


def test_a_preview_knows_no_kubeconfig_and_still_which_cluster_it_is() -> None:
    provider = built(RDMA, preview=True).one("pulumi:providers:kubernetes").inputs
    assert provider["kubeconfig"] == UNKNOWN
    assert provider["clusterIdentifier"] == "tritonfleet-stack"


def test_administrators_have_the_cluster_and_of_the_project_only_the_way_to_it() -> None:
    named = with_cluster(site(RDMA), administrators=("user:ada@example.com", "group:platform@example.com"))
    recorded = build(named)
    roles = {r.inputs["member"]: r.inputs["role"] for r in recorded.of("IAMMember", "admin")}
    subjects = [r.inputs["subjects"][0] for r in recorded.of("ClusterRoleBinding")]

    assert roles == dict.fromkeys(named.cluster.administrators, "roles/container.clusterViewer")
    assert {(one["kind"], one["name"]) for one in subjects} == {
        ("User", "ada@example.com"),
        ("Group", "platform@example.com"),
    }
    assert {r.inputs["roleRef"]["name"] for r in recorded.of("ClusterRoleBinding")} == {"cluster-admin"}
    # Kubernetes knows only groups that are inside this one.
    groups = cluster(recorded).inputs["authenticatorGroupsConfig"]
    assert groups == {"securityGroup": "gke-security-groups@example.com"}
    assert "authenticatorGroupsConfig" not in cluster(built(RDMA)).inputs


def test_another_order_of_administrators_changes_nothing() -> None:
    people = ("user:a@example.com", "user:b@example.com")
    one, other = (
        {r.urn for r in build(with_cluster(site(RDMA), administrators=order)) if "admin" in r.name}
        for order in (people, people[::-1])
    )
    assert one == other
    assert len(one) == 4


@pytest.mark.parametrize(
    ("stack", "name"),
    [
        ("gcp-llama-405b", "tritonfleet-gcp-llama-405b"),
        ("Prod_EU.1", "tritonfleet-prod-eu-1"),
    ],
)
def test_the_clusters_name_is_one_that_google_takes(stack: str, name: str) -> None:
    assert cluster_name("tritonfleet", stack) == name


def test_long_names_are_cut_and_stay_different() -> None:
    names = [cluster_name("tritonfleet", f"{'very-' * 12}{end}") for end in ("a", "b")]

    assert all(len(name) <= 40 for name in names)
    assert names[0] != names[1]
    assert shortened("short", 30) == "short"
