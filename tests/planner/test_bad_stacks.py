"""Faults put into the example stacks: each is said, all at once, and nothing is said that is not so."""

import copy
from pathlib import Path
from typing import Any

import pytest
from sample_sites import Change, model, pool, section, top

from planner.clouds import CLOUDS
from planner.errors import PlanError, Problem
from planner.instances import instances, network_types, offering, regions
from planner.plan import plan_values
from planner.stack_file import read_stack_file

STACKS = Path(__file__).parents[2] / "stacks"
GCP, AZURE, AWS = "gcp-llama-405b", "azure-llama-405b", "aws-llama-405b"
GCP_MIG, AZURE_MIG, AWS_MIG = "gcp-small-mig", "azure-small-mig", "aws-small-mig"


def problems(stack: str, *changes: Change) -> list[Problem]:
    values: dict[str, Any] = copy.deepcopy(read_stack_file(STACKS / f"Pulumi.{stack}.yaml"))
    for change in changes:
        change(values)
    try:
        plan_values(values, base_dir=STACKS)
    except PlanError as refusal:
        return list(refusal.problems)
    return []


def keys(stack: str, *changes: Change) -> list[str]:
    return sorted(problem.key for problem in problems(stack, *changes))


def only(stack: str, *changes: Change) -> Problem:
    (problem,) = problems(stack, *changes)
    return problem


def replaced(**changes: Any) -> Change:
    return lambda stack: stack.update(changes)


def without(section_name: str, *names: str) -> Change:
    def change(stack: dict[str, Any]) -> None:
        for name in names:
            del stack[section_name][name]

    return change


@pytest.mark.parametrize(
    ("stack", "changes", "expected"),
    [
        # A fault in a section leaves the rest of it as it is: no default of it is judged in its place.
        (GCP, [section("storage", foo=1)], ["storage.foo"]),
        (GCP, [section("storage", shared="nsf")], ["storage.shared"]),
        (GCP, [without("storage", "shared"), section("storage", shard="lustre")], ["storage.shard"]),
        (GCP_MIG, [section("storage", zone=3)], ["storage.zone"]),
        (AZURE_MIG, [section("storage", nfs_capacity_gib="1024")], ["storage.nfs_capacity_gib"]),
        (GCP, [top(network=None)], ["network"]),
        (GCP, [top(network=None), without("storage", "zone"), pool(zones=None)], ["network"]),
        (GCP, [section("network", zones="us-central1-b")], ["network.zones"]),
        (GCP, [replaced(network=[])], ["network"]),
        (GCP, [replaced(storage=None)], ["storage"]),
        (GCP, [replaced(pools=None)], ["models[0].pool", "pools"]),
        (GCP, [top(pools={})], ["models[0].pool", "pools"]),
        (GCP, [pool(zones="us-central1-b")], ["pools[0].zones"]),
        (GCP, [pool(capacity=["sopt"], reservation="h200")], ["pools[0].capacity[0]"]),
        # And nothing of the rest waits for the next run.
        (AZURE, [section("cluster", foo=1, spot_notice_seconds=120)], ["cluster.foo", "cluster.spot_notice_seconds"]),
        (
            GCP,
            [section("network", foo=1, cidr="10.0.0.1/16"), pool(zones=["us-central1-f"])],
            ["network.cidr", "network.foo", "pools[0].zones[0]"],
        ),
        (
            GCP,
            [pool(max_nodes=0, instance_types=["a3-megagpu"], foo=1)],
            ["pools[0].foo", "pools[0].instance_types[0]", "pools[0].max_nodes"],
        ),
        ("local", [section("existing", foo=1), top(images=None)], ["existing.foo", "images.triton"]),
        (
            "local",
            [section("existing", volume_gib="1", storage_class="No Such"), model(pipeline_parallel=31)],
            ["existing.storage_class", "existing.volume_gib", "models[0].pipeline_parallel"],
        ),
        # One fault is said once, by the key that can be changed.
        (AZURE, [section("storage", lustre_capacity_gib=2048)], ["storage.lustre_capacity_gib"]),
        (
            AZURE_MIG,
            [section("storage", nfs_capacity_gib=50, accept_load_minutes=60)],
            ["storage.nfs_capacity_gib"],
        ),
        (AZURE, [pool(capacity=["reserved"], reservation="h100")], ["pools[0].capacity"]),
        (AZURE, [pool(capacity=["flex-start", "spot"])], ["pools[0].capacity"]),
        (
            GCP,
            [section("network", nat_per_zone=True, existing={"id": "x", "private_subnets": {}})],
            ["network.existing", "network.nat_per_zone"],
        ),
    ],
)
def test_each_fault_is_said_once_and_no_other(stack: str, changes: list[Change], expected: list[str]) -> None:
    assert keys(stack, *changes) == expected


def test_a_slip_in_everything_is_told_in_one_run() -> None:
    found = keys(
        AZURE,
        top(region="us-east-1", foo={}, allow_replacement=["pool.h100"], aws={}),
        section("cluster", kubernetes_version="1.20", system_instance_type="m7i.large", system_spot=True),
        section("storage", lustre_capacity_gib=6000),
        pool(queued=True, gpudirect="tcpx", instance_types=["a3-megagpu-8g"], max_nodes="3"),
        model(tensor_parallel="8", pol="x"),
    )
    assert found == [
        "allow_replacement[0]",
        "aws",
        "cluster.kubernetes_version",
        "cluster.system_instance_type",
        "cluster.system_spot",
        "foo",
        "models[0].pol",
        "models[0].tensor_parallel",
        "pools[0].gpudirect",
        "pools[0].instance_types[0]",
        "pools[0].max_nodes",
        "pools[0].queued",
        "region",
        "storage.lustre_capacity_gib",
    ]


@pytest.mark.parametrize(
    ("stack", "theirs", "fix"),
    [
        (GCP, "p5.48xlarge", "give one of a3-highgpu-8g, a3-megagpu-8g"),
        (AZURE, "a3-megagpu-8g", "give one of Standard_ND96isr_H100_v5"),
        (AWS, "Standard_ND96isr_H200_v5", "give one of p5e.48xlarge, p5en.48xlarge"),
        # None has a single one.
        (AZURE, "a2-highgpu-1g", "give one of Standard_ND96asr_v4"),
    ],
)
def test_an_instance_type_of_another_cloud_names_those_with_its_gpu(stack: str, theirs: str, fix: str) -> None:
    assert only(stack, pool(instance_types=[theirs])).fix == fix


def test_a_region_of_another_cloud_names_those_that_have_the_pools_types() -> None:
    problem = only(GCP, top(region="eastus"))
    assert problem.what == "'eastus' is not a region of gcp, but of azure"
    named = problem.fix.removeprefix("give one of ").split(", ")
    assert "us-central1" in named
    assert set(named) == set(offering("gcp", ["a3-ultragpu-8g"])) < set(regions("gcp"))
    # Alike, and still of another cloud: no slip.
    assert "did you mean" not in only(AWS, top(region="us-east1")).fix
    assert only(AWS, top(region="us-east-11")).fix == "did you mean us-east-1?"


def test_a_region_without_the_type_names_those_that_have_it() -> None:
    problem = only(AZURE, pool(instance_types=["Standard_ND96isr_H200_v5"]))
    assert problem.key == "pools[0].zones[0]"
    assert all(region in problem.fix for region in offering("azure", ["Standard_ND96isr_H200_v5"]))


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        ({"gpudirect": True}, ("tcpx", "tcpxo", "roce")),
        ({"gpudirect": "TCPXO"}, ("tcpxo",)),
        ({"fabric": "roce"}, ("roce",)),
        ({"infiniband": True}, ("ib",)),
        ({"efa": 32}, ("efa",)),
    ],
)
def test_a_network_that_is_asked_for_names_the_types_that_have_it(
    asked: dict[str, Any], kinds: tuple[str, ...]
) -> None:
    problem = only(GCP_MIG, pool(**asked))
    assert problem.what == "is the instance type's to decide"
    named = [type_ for kind in kinds for type_ in network_types(kind)]
    assert named
    assert all(type_ in problem.fix for type_ in named)
    others = {name for cloud in CLOUDS for name in instances(cloud)} - set(named)
    assert others.isdisjoint(problem.fix.replace(",", " ").replace(";", " ").split())


@pytest.mark.parametrize("stack", [AWS, GCP, AZURE])
@pytest.mark.parametrize("version", ["1.20", "1.30"])
def test_a_kubernetes_too_old_for_the_pods(stack: str, version: str) -> None:
    assert "'1.31' or newer" in only(stack, section("cluster", kubernetes_version=version)).fix
    assert problems(stack, section("cluster", kubernetes_version="1.31")) == []


@pytest.mark.parametrize("stack", [AWS, GCP, AZURE])
@pytest.mark.parametrize("nodes", ["m7i.large", "e2-standard-4", "Standard_D4ds_v5"])
def test_system_nodes_are_of_the_stacks_own_cloud(stack: str, nodes: str) -> None:
    facts = CLOUDS[stack.partition("-")[0]]
    found = problems(stack, section("cluster", system_instance_type=nodes))
    if nodes == facts.system_instance_type:
        assert found == []
    else:
        (problem,) = found
        assert problem.key == "cluster.system_instance_type"
        assert facts.system_instance_type in problem.fix
    assert all(facts.instance_type.fullmatch(name) for name in instances(facts.name))


def test_zones_are_as_many_as_the_control_plane_wants() -> None:
    assert "at least 2" in only(AWS, section("network", zones=["use1-az6"])).fix
    assert problems(GCP, section("network", zones=["us-central1-b"])) == []
    # A region without zones has one place.
    nowhere = [top(region="westus"), section("network", zones=["westus-0"]), pool(zones=["westus-0"])]
    assert problems(AZURE, *nowhere, section("storage", zone="westus-0")) == []


@pytest.mark.parametrize("removed", [["pool"], []], ids=["no pool", "a pool"])
@pytest.mark.parametrize("stack", [AWS_MIG, GCP_MIG, AZURE_MIG])
def test_models_on_cpus_are_for_clusters_that_are_there(stack: str, removed: list[str]) -> None:
    def on_cpu(values: dict[str, Any]) -> None:
        entry = values["models"][0]
        entry["backend"] = "cpu"
        for name in ("max_num_tokens", *removed):
            del entry[name]

    assert only(stack, on_cpu).key == "models[0].backend"


def test_a_network_too_small_for_its_pods_names_the_size_that_does() -> None:
    small = [section("network", cidr="10.40.0.0/20"), pool(max_nodes=200)]
    problem = only(AZURE, *small)
    assert problem.fix == "give a range of /15 or larger, or a smaller max_nodes"
    assert problems(AZURE, *small, section("network", cidr="10.40.0.0/15")) == []
    assert keys(AZURE, *small, section("network", cidr="10.40.0.0/16")) == ["network.cidr"]
    assert "zones" in only(AWS, section("network", cidr="10.40.0.0/21"), pool(max_nodes=60)).fix


def test_the_capacity_that_is_advised_is_one_that_does() -> None:
    for stack, field, capacity in (
        (AZURE, "lustre_capacity_gib", 2048),
        (AZURE, "lustre_capacity_gib", 6000),
        (GCP, "lustre_capacity_gib", 9600),
        (AZURE_MIG, "nfs_capacity_gib", 50),
        (GCP_MIG, "nfs_capacity_gib", 1000),
    ):
        patient = {} if field.startswith("lustre") else {"accept_load_minutes": 60}
        problem = only(stack, section("storage", **{field: capacity}, **patient))
        advised = int(problem.fix.removeprefix("give "))
        assert problems(stack, section("storage", **{field: advised}, **patient)) == []


def test_gpu_nodes_of_an_unknown_gpu_are_said_once() -> None:
    nodes = {"name": "x", "gpu": "H100", "gpus_per_node": 8, "nodes": 1, "vcpus": 96, "memory_gib": 1000}
    on_them = model(backend="pytorch", pool="x", source="hf://a/b", revision="1" * 40)
    assert keys("local", section("existing", nodes=[nodes]), on_them, top(images=None))[0] == "existing.nodes[0].gpu"
    assert "models[0].gpu" not in keys("local", section("existing", nodes=[nodes]), on_them, top(images=None))


@pytest.mark.parametrize("changes", [(), (model(gpu="T4"),)])
def test_a_pool_of_gpus_that_are_too_old_is_refused_for_each_model_on_it(changes: tuple[Change, ...]) -> None:
    """It was planned as a stack without models."""
    found = problems("aws-dev", pool(instance_types=["g4dn.xlarge"]), *changes)
    assert [(problem.key, problem.what) for problem in found] == [
        ("models[0].pool", "T4 has compute capability 7.5, below 8.0")
    ]
