"""What differs between clouds in a sound stack, and what each one refuses."""

from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

import pytest
from sample_sites import CLOUDS, LARGE, Change, model, plan, planned, pool, problems, refused, section, top

from planner import serving
from planner.clouds import CLOUDS as FACTS
from planner.clouds import cloud_facts
from planner.instances import instances

GUID = "01234567-89ab-cdef-0123-456789abcdef"
GROUP = f"/subscriptions/{GUID}/resourceGroups/gpus/providers/Microsoft.Compute/capacityReservationGroups/h100"
NOTICE = "cluster.spot_notice_seconds"
LARGE_POOL: dict[str, Change] = {
    "aws": pool(instance_types=["p4de.24xlarge"], zones=["use1-az4"], max_nodes=2),
    "gcp": pool(instance_types=["a2-ultragpu-8g"], zones=["us-central1-a"], max_nodes=2),
    "azure": pool(instance_types=["Standard_NC96ads_A100_v4"], max_nodes=2),
}


ANYWHERE = {"aws": ["g6.xlarge"], "gcp": ["g2-standard-8"], "azure": ["Standard_NC24ads_A100_v4"]}


def reserved(instance_type: str, reservation: str, zone: str) -> Change:
    return pool(instance_types=[instance_type], capacity=["reserved"], reservation=reservation, zones=[zone])


def named(name: str, **changes: Any) -> Change:
    def change(stack: dict[str, Any]) -> None:
        pool(name=name, **changes)(stack)
        model(pool=name)(stack)

    return change


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_smallest_stack_is_sound(cloud: str) -> None:
    assert problems(cloud) == []
    found = planned(cloud)
    assert found.name == cloud
    assert found.brings == cloud_facts(cloud).brings
    assert found.existing is None


@pytest.mark.parametrize(
    ("cloud", "change", "key", "words"),
    [
        ("azure", pool(name="h100-spot"), "pools[0].name", "at most 10"),
        ("azure", pool(name="h100spotpool"), "pools[0].name", "at most 10"),
        ("gcp", pool(instance_types=["a2-ultragpu-1g", "a2-ultragpu-2g"]), "pools[0].instance_types", "pool for each"),
        (
            "azure",
            pool(instance_types=["Standard_NC24ads_A100_v4", "Standard_NC48ads_A100_v4"]),
            "pools[0].instance_types",
            "pool for each",
        ),
        ("gcp", pool(mig_profile="4g.40gb"), "pools[0].mig_profile", "1g.10gb, 2g.20gb, 3g.40gb, 7g.80gb"),
        ("gcp", pool(mig_profile="1g.10gb+me"), "pools[0].mig_profile", "GKE does not make"),
        ("azure", pool(mig_profile="1g.20gb"), "pools[0].mig_profile", "1g.10gb, 2g.20gb, 3g.40gb, 4g.40gb, 7g.80gb"),
        ("gcp", section("cluster", kubernetes_version="1.34", spot_notice_seconds=120), NOTICE, "give 30, or"),
        ("gcp", section("cluster", kubernetes_version="1.34", spot_notice_seconds=120), NOTICE, "'1.35'"),
        ("gcp", section("cluster", spot_notice_seconds=60), NOTICE, "give 120 or 30"),
        ("aws", section("cluster", spot_notice_seconds=30), NOTICE, "give 120"),
        ("azure", section("cluster", spot_notice_seconds=120), NOTICE, "give 30"),
        ("gcp", pool(instance_types=["a3-highgpu-1g"]), "pools[0].capacity", "never sold so"),
        ("gcp", pool(capacity=["on-demand", "flex-start"]), "pools[0].capacity", "give flex-start, on-demand"),
        ("gcp", pool(capacity=["flex-start", "spot"]), "pools[0].capacity", "give spot, flex-start"),
        ("aws", reserved("p5.48xlarge", "h100", "use1-az1"), "pools[0].reservation", "capacity block"),
        (
            "aws",
            reserved("g6.xlarge", "cr-0123456789abcdef0", "use1-az1"),
            "pools[0].capacity",
            "EKS reserves no g6.xlarge",
        ),
        ("gcp", reserved("a3-highgpu-8g", "H100", "us-central1-a"), "pools[0].reservation", "reservation's name"),
        (
            "azure",
            reserved("Standard_NC24ads_A100_v4", "h100", "eastus-1"),
            "pools[0].reservation",
            "reservation group",
        ),
        ("aws", section("cluster", administrators=["group:a@example.com"]), "cluster.administrators[0]", "ARN"),
        ("gcp", section("cluster", administrators=["a@example.com"]), "cluster.administrators[0]", "group:"),
        ("azure", section("cluster", administrators=["platform"]), "cluster.administrators[0]", "Entra group"),
        ("gcp", section("gcp", project="My Project"), "gcp.project", "not the name or the number"),
        ("azure", section("azure", subscription="pay-as-you-go"), "azure.subscription", "GUID"),
        ("azure", section("network", service_cidr="172.16.0.0/12"), "network.service_cidr", "/13"),
        ("gcp", section("network", service_cidr="172.16.0.0/15"), "network.service_cidr", "/16"),
        ("aws", top(allow_replacement=["claster"]), "allow_replacement[0]", "did you mean cluster?"),
        ("gcp", top(allow_replacement=["cluster", "pools.large"]), "allow_replacement[1]", "pools.gpu"),
        ("azure", top(allow_replacement=["gpu"]), "allow_replacement[0]", "cluster, storage, pools.gpu"),
    ],
)
def test_what_a_cloud_refuses(cloud: str, change: Change, key: str, words: str) -> None:
    problem = refused(cloud, change)[key]
    assert words in f"{problem.what} {problem.consequence} {problem.fix}"
    assert len([found for found in problems(cloud, change) if found.key == key]) == 1, "said once"


@pytest.mark.parametrize(
    ("cloud", "change"),
    [
        ("aws", named("l4-spot", instance_types=["g6.xlarge", "g6.2xlarge"])),
        ("aws", pool(instance_types=["p5.4xlarge"], zones=["use1-az2"], mig_profile="4g.40gb")),
        ("gcp", named("a100-spot", mig_profile="3g.40gb")),
        ("gcp", section("cluster", kubernetes_version="1.35", spot_notice_seconds=30)),
        ("gcp", pool(capacity=["spot", "flex-start", "on-demand"])),
        ("gcp", reserved("a3-highgpu-8g", "h100-december", "us-central1-a")),
        ("azure", reserved("Standard_NC24ads_A100_v4", GROUP, "eastus-1")),
        ("azure", named("a100", mig_profile="4g.40gb", max_price_usd_h=3.5)),
        ("aws", section("cluster", administrators=["arn:aws:iam::123456789012:role/platform"])),
        ("gcp", section("cluster", administrators=["group:platform@example.com", "user:a@example.com"])),
        ("azure", section("cluster", administrators=[GUID])),
        ("azure", top(allow_replacement=["cluster", "storage", "pools.gpu"])),
    ],
)
def test_what_a_cloud_takes(cloud: str, change: Change) -> None:
    assert [str(problem) for problem in problems(cloud, change)] == []


@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_a_rule_says_for_example_is_what_it_asks_for(cloud: str) -> None:
    facts = cloud_facts(cloud)
    for rule in (facts.pool_name, facts.administrator, facts.reservation_id):
        assert rule.pattern.fullmatch(rule.example.replace("…", GUID)), rule


def test_flex_start_on_a_type_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every type of Google's catalogue has it: one that has not is put there.
    known = instances("gcp")
    never = known | {"a2-ultragpu-1g": replace(known["a2-ultragpu-1g"], reservation_kinds=())}
    monkeypatch.setattr("planner.pools.instances", {"gcp": never}.get)
    assert "not offered so" in refused("gcp", pool(capacity=["flex-start"]))["pools[0].capacity"].what
    assert problems("gcp") == []


@pytest.mark.parametrize(
    ("cloud", "version", "asked", "seconds"),
    [
        ("aws", "1.35", None, 120),
        ("gcp", "1.34", None, 30),
        ("gcp", "1.35", None, 120),
        ("gcp", "1.36", None, 120),
        ("gcp", "1.35", 30, 30),
        ("azure", "1.35", None, 30),
        ("azure", "1.35", 30, 30),
    ],
)
@pytest.mark.parametrize("capacity", [["spot"], ["spot", "on-demand"], ["on-demand"]])
def test_a_pod_ends_inside_the_notice(
    cloud: str, version: str, asked: int | None, seconds: int, capacity: list[str]
) -> None:
    cluster = section("cluster", kubernetes_version=version, spot_notice_seconds=asked)
    found = plan(cloud, cluster, pool(capacity=capacity))
    serves = found.models[0].serving
    assert found.infrastructure
    assert serves
    notice = found.infrastructure.spot_notice
    assert notice.seconds == seconds
    assert 0 < notice.pod_seconds < notice.seconds
    if "spot" in capacity:
        assert serves.grace_seconds <= notice.pod_seconds
    exit_seconds = serving.SHORT_EXIT_SECONDS if serves.grace_seconds < 60 else serving.EXIT_SECONDS
    assert serves.prestop_seconds > 0
    assert serves.drain_seconds > 0
    assert serves.prestop_seconds + serves.drain_seconds + exit_seconds <= serves.grace_seconds
    assert ("spot" in capacity) == (serves.grace_seconds < serving.DRAIN_WITHOUT_NOTICE_SECONDS)


@pytest.mark.parametrize(
    ("cloud", "profile", "name", "resource", "label"),
    [
        ("aws", "2g.20gb", "all-2g.20gb", "nvidia.com/mig-2g.20gb", "nvidia.com/mig.config.state=success"),
        ("gcp", "2g.20gb", "2g.20gb", "nvidia.com/gpu", "cloud.google.com/gke-gpu-partition-size=2g.20gb"),
        ("azure", "2g.20gb", "MIG2g", "nvidia.com/gpu", None),
    ],
)
def test_slices_by_each_clouds_names(cloud: str, profile: str, name: str, resource: str, label: str | None) -> None:
    found = planned(cloud, LARGE_POOL[cloud], pool(mig_profile=profile))
    (divided,) = found.pools
    assert (divided.mig_name, divided.gpu_resource, divided.mig_profile) == (name, resource, profile)
    assert divided.units_per_node == 3 * divided.gpus_per_node
    assert found.mig_strategy == ("mixed" if resource != "nvidia.com/gpu" else "single")
    waited = divided.node_selector.items() - divided.node_groups[0].labels.items()
    assert {f"{key}={value}" for key, value in waited} == ({label} if label else set())
    for group in divided.node_groups:
        assert bool(group.startup_taints) == (cloud == "aws")
        closed = group.labels.get("nvidia.com/gpu.deploy.device-plugin")
        assert closed == ("false" if cloud == "azure" else None)


@pytest.mark.parametrize(
    ("cloud", "tier", "size", "fix"),
    [
        ("aws", None, None, None),
        ("aws", 1000, 1200, None),
        ("aws", 300, 4800, "give one of 125, 250, 500, 1000"),
        ("aws", 500, 3000, "give 4800"),
        ("gcp", None, None, None),
        ("gcp", 500, 18_000, None),
        ("gcp", 500, None, None),
        ("gcp", 500, 9000, "give 18000"),
        ("gcp", 1000, 9001, "give 18000"),
        ("gcp", 1000, 9000 * 200, "give 1530000"),
        ("azure", None, None, None),
        ("azure", 40, 48 * 1024, None),
        ("azure", 1000, 8192, "give one of 40, 125, 250, 500"),
        ("azure", 250, 4096, "give 8192"),
        ("azure", 500, 5000, "give 8192"),
    ],
)
def test_lustre_in_the_sizes_that_are_sold(cloud: str, tier: int | None, size: int | None, fix: str | None) -> None:
    asked = {"lustre_throughput_mb_s_per_tib": tier, "lustre_capacity_gib": size}
    given = {name: value for name, value in asked.items() if value is not None}
    zone = planned(cloud).network.zones[0]
    change = section("storage", shared="lustre", zone=zone, **given)
    if fix is None:
        storage = planned(cloud, change).storage
        facts = cloud_facts(cloud).lustre
        assert storage.throughput_mb_s_per_tib == (tier or facts.default_tier)
        assert facts.tiers[storage.throughput_mb_s_per_tib].offers(storage.capacity_gib or 0)
        assert size in (None, storage.capacity_gib)
    else:
        (problem,) = refused(cloud, change).values()
        assert problem.key.startswith("storage.lustre_")
        assert problem.fix == fix


@pytest.mark.parametrize(
    ("cloud", "size", "fix"),
    [
        ("gcp", 1024, None),
        ("gcp", 1280, None),
        ("gcp", 1000, "give 1024"),
        ("gcp", 1100, "give 1280"),
        ("gcp", 10_240, "give 9984"),
        ("azure", 100, None),
        ("azure", 101, None),
        ("azure", 50, "give 100"),
        ("azure", 200_000, "give 102400"),
    ],
)
def test_nfs_in_the_sizes_that_are_sold(cloud: str, size: int, fix: str | None) -> None:
    change = section("storage", nfs_capacity_gib=size)
    if fix is None:
        assert planned(cloud, change).storage.capacity_gib == size
    else:
        assert refused(cloud, change)["storage.nfs_capacity_gib"].fix == fix


def test_a_file_system_must_hold_weights_and_engines() -> None:
    large: list[Change] = [LARGE_POOL["azure"], model(**LARGE, tensor_parallel=4)]
    small = section("storage", nfs_capacity_gib=200, accept_load_minutes=60)
    problem = refused("azure", *large, small)["storage.nfs_capacity_gib"]
    needed = int(problem.fix.removeprefix("give "))
    # 141 GB of weights with copies of what every rank has, a converted checkpoint and an engine.
    assert 3 * 131 < needed < 3 * 140
    less = section("storage", nfs_capacity_gib=needed - 1, accept_load_minutes=60)
    assert refused("azure", *large, less).keys() == {"storage.nfs_capacity_gib"}
    enough = section("storage", nfs_capacity_gib=needed, accept_load_minutes=60)
    assert problems("azure", *large, enough) == []
    # EFS grows by itself.
    on_aws = [LARGE_POOL["aws"], model(**LARGE, tensor_parallel=8), section("storage", accept_load_minutes=60)]
    assert problems("aws", *on_aws) == []


def test_nfs_that_lies_in_a_zone_says_in_which() -> None:
    def zones(cloud: str) -> Change:
        return pool(zones=list(planned(cloud).network.zones[:2]), instance_types=ANYWHERE[cloud])

    assert "empty" in refused("gcp", zones("gcp"))["storage.zone"].consequence
    assert planned("gcp", zones("gcp"), section("storage", zone="us-central1-b")).storage.zone == "us-central1-b"
    assert planned("gcp").storage.zone == "us-central1-a"
    for cloud in ("aws", "azure"):
        assert planned(cloud, zones(cloud)).storage.zone == ""


def test_more_nfs_reads_faster_where_capacity_is_bought() -> None:
    def seconds(cloud: str, gib: int) -> int:
        changes = [LARGE_POOL[cloud], model(**LARGE, tensor_parallel=4)]
        storage = section("storage", nfs_capacity_gib=gib, accept_load_minutes=600)
        serves = plan(cloud, *changes, storage).models[0].serving
        assert serves
        return serves.load_seconds

    assert seconds("gcp", 1024) > seconds("gcp", 2048) >= seconds("gcp", 4096)
    assert seconds("azure", 1024) > seconds("azure", 4096)


@pytest.mark.parametrize("cloud", ["gcp", "azure"])
def test_a_network_without_zonal_subnets(cloud: str) -> None:
    network = planned(cloud, section("network", cidr="10.64.0.0/16")).network
    (subnet,) = network.subnets
    ranges = list(map(IPv4Network, (subnet.private_cidr, subnet.public_cidr, network.pod_cidr)))
    assert subnet.zone == ""
    assert list(map(str, ranges)) == ["10.64.0.0/19", "10.64.32.0/19", "10.64.128.0/17"]
    assert not any(one.overlaps(other) for one in ranges for other in ranges if one is not other)


@pytest.mark.parametrize("cloud", ["gcp", "azure"])
def test_every_node_takes_a_range_of_pods(cloud: str) -> None:
    """A /20 has eight of them in its upper half; system nodes take two."""
    small = section("network", cidr="10.40.0.0/20")
    assert problems(cloud, small, pool(max_nodes=6)) == []
    assert "for pods" in refused(cloud, small, pool(max_nodes=7))["network.cidr"].what


@pytest.mark.parametrize(
    ("cloud", "change", "needs"),
    [
        ("aws", LARGE_POOL["aws"], {"All P4, P3 and P2 Spot Instance Requests": (192, "vCPU")}),
        ("gcp", LARGE_POOL["gcp"], {"PREEMPTIBLE_NVIDIA_A100_80GB_GPUS": (16, "GPU")}),
        ("gcp", pool(), {"PREEMPTIBLE_NVIDIA_A100_80GB_GPUS": (1, "GPU")}),
        ("azure", LARGE_POOL["azure"], {"Total Regional Spot vCPUs": (192, "vCPU")}),
    ],
)
def test_limits_of_the_account_in_its_own_unit(cloud: str, change: Change, needs: dict[str, tuple[int, str]]) -> None:
    found = planned(cloud, change, pool(capacity=["spot"])).quotas
    assert {need.name: (need.needed, need.unit) for need in found} == needs


def test_flex_start_counts_as_preemptible_and_reserved_capacity_as_nothing() -> None:
    both = planned("gcp", pool(capacity=["spot", "flex-start"])).quotas
    assert {need.name: need.needed for need in both} == {"PREEMPTIBLE_NVIDIA_A100_80GB_GPUS": 2}
    assert planned("gcp", reserved("a3-highgpu-8g", "h100", "us-central1-a")).quotas == ()


def test_no_cloud_is_forgotten_here() -> None:
    assert sorted(FACTS) == CLOUDS


def second_pool(name: str, **changes: Any) -> Change:
    """A pool like the first, and a model on it."""

    def change(stack: dict[str, Any]) -> None:
        stack["pools"].append({**stack["pools"][0], "name": name, **changes})
        stack["models"].append({**stack["models"][0], "name": f"on-{name}", "pool": name})

    return change


def test_pools_over_one_rdma_network_lie_in_one_zone() -> None:
    wide = (
        top(region="us-east4"),
        section("network", zones=["us-east4-a", "us-east4-b"]),
        pool(instance_types=["a3-megagpu-8g"], zones=["us-east4-b"], capacity=["spot"], max_nodes=2),
        model(**LARGE, tensor_parallel=8, pipeline_parallel=2),
        section("storage", shared="lustre", zone="us-east4-b"),
    )
    assert [p.fabric and p.fabric.kind for p in planned("gcp", *wide, second_pool("more")).pools] == ["tcpxo", "tcpxo"]

    found = refused("gcp", *wide, second_pool("more", zones=["us-east4-a"]))
    assert "tcpxo" in found["pools[1].zones"].what
    assert "zones: [us-east4-b]" in found["pools[1].zones"].fix


@pytest.mark.parametrize(("cloud", "largest"), [("aws", 16_384), ("azure", 2048)])
def test_a_disk_that_the_cloud_does_not_make_is_refused(cloud: str, largest: int) -> None:
    assert planned(cloud, pool(disk_gib=largest)).pools[0].disk_gib == largest
    if largest < 16_384:
        assert f"at most {largest}" in refused(cloud, pool(disk_gib=largest + 1))["pools[0].disk_gib"].fix


def test_what_no_source_knows_may_be_reserved_and_what_one_denies_may_not() -> None:
    known = instances("azure")
    assert known["Standard_NC24ads_A100_v4"].reservation_kinds == ("odcr",)
    assert known["Standard_ND96isr_H100_v5"].reservation_kinds == (), "the source says that there is none"
    assert instances("aws")["p4d.24xlarge"].reservation_kinds != ()
    found = refused("azure", reserved("Standard_ND96isr_H100_v5", GROUP, "eastus-1"))
    assert "AKS reserves no Standard_ND96isr_H100_v5" in found["pools[0].capacity"].what


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(
    ("cidr", "why"), [("10.1.0.0/16", "private"), ("100.64.1.0/24", "private"), ("2001:db8::/32", "IPv6")]
)
def test_ranges_that_never_reach_a_public_endpoint_are_refused(cloud: str, cidr: str, why: str) -> None:
    found = refused(cloud, section("cluster", api_cidrs=["198.51.100.0/24", cidr]))
    assert why in found["cluster.api_cidrs[1]"].what
    assert "cluster.api_cidrs[0]" not in found


def test_all_reduce_over_a_slow_network_names_the_fast_types() -> None:
    slow = pool(instance_types=["a2-ultragpu-8g"], zones=["us-central1-a"], capacity=["spot"], max_nodes=3)
    found = refused("gcp", slow, model(**LARGE, tensor_parallel=16))
    assert "without a fast interconnect" in found["models[0].tensor_parallel"].what
    h100 = pool(instance_types=["a3-highgpu-4g"], zones=["us-central1-a"], capacity=["spot"], max_nodes=5)
    found = refused("gcp", h100, model(**LARGE, tensor_parallel=16))
    assert "a3-megagpu-8g" in found["models[0].tensor_parallel"].fix
