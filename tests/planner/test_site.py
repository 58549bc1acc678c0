"""A managed cloud's stack: what is refused, all at once, and what a sound one decides."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_sites import Change, model, pool, section, top

from planner.errors import PlanError, Problem
from planner.instances import instances
from planner.plan import FleetPlan, plan_file, plan_values
from planner.stack_file import read_stack_file

STACKS = Path(__file__).parents[2] / "stacks"
AWS = sorted(path.name.removeprefix("Pulumi.").removesuffix(".yaml") for path in STACKS.glob("Pulumi.aws-*.yaml"))


def values(stack: str = "aws-llama-405b") -> dict[str, Any]:
    return copy.deepcopy(read_stack_file(STACKS / f"Pulumi.{stack}.yaml"))


def plan(change: Change | None = None, stack: str = "aws-llama-405b") -> FleetPlan:
    changed = values(stack)
    if change is not None:
        change(changed)
    return plan_values(changed, base_dir=STACKS)


def refused(change: Change, stack: str = "aws-llama-405b") -> dict[str, Problem]:
    with pytest.raises(PlanError) as refusal:
        plan(change, stack)
    for problem in refusal.value.problems:
        assert problem.what
        assert problem.consequence
        assert problem.fix
    return {problem.key: problem for problem in refusal.value.problems}


def two_pools_without_a_zone(stack: dict[str, Any]) -> None:
    del stack["storage"]["zone"]
    stack["pools"].append({"name": "l4", "instance_types": ["g6.xlarge"], "zones": ["use1-az1"]})


def second_model_named(name: str) -> Change:
    def change(stack: dict[str, Any]) -> None:
        stack["models"].append(stack["models"][0] | {"name": name})

    return change


def second_pool_of_the_same_name(stack: dict[str, Any]) -> None:
    stack["pools"].append(stack["pools"][0])


def test_the_example_stacks_are_these_and_all_plan() -> None:
    assert AWS == ["aws-dev", "aws-llama-405b", "aws-llama-405b-fp8", "aws-llama-70b", "aws-small-mig"]
    for stack in AWS:
        found = plan_file(STACKS / f"Pulumi.{stack}.yaml")
        assert found.infrastructure is not None
        assert all(served.serving is not None for served in found.models)
        assert all(rank.fits for served in found.models for rank in served.memory)


def test_405b_is_two_whole_nodes_over_efa() -> None:
    (served,) = plan().models
    serving = served.serving
    assert serving is not None
    assert (served.config.tensor_parallel, served.config.pipeline_parallel) == (8, 2)
    assert 750 < sum(rank.weights_bytes for rank in served.memory) / 2**30 < 810
    assert (serving.group_size, serving.gpus_per_pod, serving.rdma_per_pod) == (2, 8, 32)
    assert serving.pool.fabric is not None
    assert serving.pool.fabric.kind == "efa"
    assert serving.hugepages_mib == 5120
    # The whole end fits into the notice, and its parts into the end.
    assert serving.grace_seconds < 120
    assert serving.prestop_seconds + serving.drain_seconds < serving.grace_seconds
    assert serving.startup_seconds > serving.load_seconds
    groups = serving.pool.node_groups
    assert [group.capacity for group in groups] == ["spot", "on-demand"]
    assert groups[0].priority > groups[1].priority
    assert groups[0].zones == ("use1-az6",)
    assert groups[0].allocatable == {
        "nvidia.com/gpu": "8",
        "vpc.amazonaws.com/efa": "32",
        "hugepages-2Mi": f"{serving.pool.fabric.hugepages_mib}Mi",
    }
    assert {taint.key for taint in groups[0].taints} == {"nvidia.com/gpu", "tritonfleet.io/capacity-type"}
    assert {taint.key for taint in groups[1].taints} == {"nvidia.com/gpu"}
    assert groups[0].labels["k8s.amazonaws.com/accelerator"] == "h100-80gb"


def test_a_pool_of_several_types_has_interfaces_only_where_all_have_as_many() -> None:
    def two_types(stack: dict[str, Any]) -> None:
        stack["pools"][0] |= {"instance_types": ["g6e.12xlarge", "g6e.24xlarge"], "zones": ["use1-az4"], "max_nodes": 4}
        stack["models"][0] |= {"source": "hf://meta-llama/Llama-3.1-70B-Instruct", "tensor_parallel": 4}

    known = instances("aws")
    counts = [known[name].rdma_interfaces for name in ("g6e.12xlarge", "g6e.24xlarge")]
    assert counts[0] != counts[1]
    assert "RDMA interfaces" in refused(two_types)["pools[0].instance_types"].what


def test_another_order_of_zones_moves_no_file_system() -> None:
    def reversed_zones(stack: dict[str, Any]) -> None:
        stack["network"]["zones"].reverse()
        stack["pools"][0]["zones"].reverse()

    before, after = plan(stack="aws-llama-405b-fp8"), plan(reversed_zones, stack="aws-llama-405b-fp8")
    assert before.infrastructure
    assert after.infrastructure
    assert before.infrastructure.storage == after.infrastructure.storage


def test_a_pool_without_multi_node_models_has_no_rdma() -> None:
    (served,) = plan(stack="aws-llama-405b-fp8").models
    assert served.serving is not None
    assert served.serving.pool.rdma_interfaces == served.serving.rdma_per_pod == served.serving.hugepages_mib == 0
    assert served.serving.pool.fabric is None


def test_mig_pods_ask_for_slices_and_wait_for_the_label_that_says_they_are_there() -> None:
    found = plan(stack="aws-small-mig")
    for served in found.models:
        serving = served.serving
        assert serving is not None
        assert serving.pool.gpu_resource == "nvidia.com/mig-2g.20gb"
        assert serving.gpus_per_pod == 1
        assert serving.pool.units_per_node == 3
        assert serving.pool.node_selector["nvidia.com/mig.config.state"] == "success"
        for group in serving.pool.node_groups:
            assert group.labels["nvidia.com/mig.config"] == "all-2g.20gb"
            assert "k8s.amazonaws.com/accelerator" not in group.labels
            assert group.allocatable == {"nvidia.com/mig-2g.20gb": "3"}
            assert [taint.key for taint in group.startup_taints] == [
                "startup-taint.cluster-autoscaler.kubernetes.io/mig"
            ]


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (pool(instance_types=["p5.48xlage"]), "pools[0].instance_types[0]", "p5.48xlarge"),
        (pool(instance_types=["p5.48xlarge", "p4d.24xlarge"]), "pools[0].instance_types", "A100"),
        (pool(capacity=["on-demand", "spot"]), "pools[0].capacity", "spot, on-demand"),
        (pool(capacity=["reserved"]), "pools[0].reservation", "missing"),
        (pool(capacity=["reserved"], reservation="block"), "pools[0].reservation", "cr-"),
        (pool(reservation="cr-0123456789abcdef0"), "pools[0].reservation", "no reserved"),
        (pool(mig_profile="2g.10gb"), "pools[0].mig_profile", "2g.20gb"),
        (pool(mig_profile="1g.10gb", time_slicing=2), "pools[0].time_slicing", "mig_profile"),
        (pool(zones=["use1-az5"]), "pools[0].zones[0]", "network"),
        (pool(min_nodes=9), "pools[0].min_nodes", "9"),
        (pool(max_nodes=1), "pools[0].max_nodes", "2"),
        (pool(zones=None), "models[0].pool", "zones"),
        (pool(capacity=["spots"]), "pools[0].capacity[0]", "did you mean spot?"),
        (section("network", zones=["use1-az6"]), "network.zones", "at least 2"),
        (second_model_named("llama-405b-group"), "models[1].name", "Service"),
        (section("cluster", kubernetes_version="1.35.1"), "cluster.kubernetes_version", "minor version"),
        (pool(name="h100_x"), "pools[0].name", "DNS label"),
        (pool(nam="x"), "pools[0].nam", "unknown"),
        (model(pool="h200"), "models[0].pool", "h100"),
        (model(pool=None), "models[0].pool", "missing"),
        (model(gpu="A100-80GB"), "models[0].gpu", "H100"),
        (model(backend="cpu"), "models[0].backend", "GPU"),
        (model(source="/weights", config="../planner/known_models/llama-3.1-405b.json"), "models[0].source", "pod"),
        (model(gpus_per_node=16), "models[0].gpus_per_node", "8"),
        (section("storage", shared="nfs"), "storage.shared", "min"),
        (section("storage", zone="use1-az5"), "storage.zone", "not a zone of the network"),
        (section("storage", lustre_capacity_gib=1200), "storage.lustre_capacity_gib", "2400"),
        (two_pools_without_a_zone, "storage.zone", "empty"),
        (section("images", triton="not an image@@"), "images.triton", "sha256"),
        (section("storage", lustre_capacity_gib=5000), "storage.lustre_capacity_gib", "7200"),
        (section("cluster", api_cidrs=["0.0.0.0/0"]), "cluster.api_cidrs[0]", "everyone"),
        (section("cluster", api_cidrs=["10.0.0.1/8"]), "cluster.api_cidrs[0]", "host bits"),
        (section("cluster", administrators=["me"]), "cluster.administrators[0]", "ARN"),
        (section("aws", account="1234"), "aws.account", "1234"),
        (section("network", service_cidr="10.40.8.0/22"), "network.service_cidr", "10.40"),
        (section("network", peered_cidrs=["10.40.128.0/17"]), "network.cidr", "10.40"),
        (section("network", zones=["use1-az1", "us-east-1a"]), "network.zones[1]", "us-east-1a"),
        (top(region="us-east-9"), "region", "us-east-2"),
        (top(region=None), "region", "missing"),
        (top(network=None), "network", "missing"),
        (top(pools=[]), "pools", "missing"),
        (second_pool_of_the_same_name, "pools[1].name", "already"),
        (top(hugging_face_token=3), "hugging_face_token", "secret"),
        (top(storge={}), "storge", "unknown"),
    ],
)
def test_an_illegal_stack_is_refused_naming_the_key(change: Change, key: str, words: str) -> None:
    problem = refused(change)[key]
    assert words in f"{problem.what} {problem.consequence} {problem.fix}"


def over_ethernet(tensor_parallel: int, pipeline_parallel: int) -> Change:
    def change(stack: dict[str, Any]) -> None:
        stack["pools"][0] |= {"instance_types": ["g6.4xlarge"], "max_nodes": 4, "zones": ["use1-az4"]}
        stack["models"][0] |= {
            "source": "hf://meta-llama/Llama-3.1-8B-Instruct",
            "tensor_parallel": tensor_parallel,
            "pipeline_parallel": pipeline_parallel,
        }

    return change


def test_tensor_parallel_over_nodes_needs_a_fast_interconnect() -> None:
    problem = refused(over_ethernet(2, 2))["models[0].tensor_parallel"]
    assert "without a fast interconnect" in problem.what
    assert "tensor_parallel: 1" in problem.fix


def test_pipeline_parallel_over_ethernet_is_allowed_with_a_warning() -> None:
    (served,) = plan(over_ethernet(1, 4)).models
    assert served.nodes == 4
    assert any("without RDMA" in warning for warning in served.warnings)


def test_mig_on_a_gpu_without_it_and_over_slices() -> None:
    found = refused(pool(mig_profile="1g.5gb"), stack="aws-dev")
    assert "cannot be divided" in found["pools[0].mig_profile"].what
    found = refused(model(tensor_parallel=2), stack="aws-small-mig")
    assert "one rank" in found["models[0].tensor_parallel"].fix


def test_spot_on_a_type_never_offered_as_spot(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every type of the AWS catalogue has been seen as spot: one that has not is put there.
    known = instances("aws")
    never = known | {"p5.48xlarge": replace(known["p5.48xlarge"], spot_supported=False)}
    monkeypatch.setattr("planner.pools.instances", {"aws": never}.get)
    assert "never offered as spot" in refused(pool())["pools[0].capacity"].what
    plan(pool(capacity=["on-demand"]))


def test_a_zone_without_the_type_names_those_with_it() -> None:
    def zone(stack: dict[str, Any]) -> None:
        stack["network"]["zones"] = ["use1-az1", "use1-az2", "use1-az5"]
        stack["pools"][0] |= {"instance_types": ["p4d.24xlarge"], "zones": ["use1-az5"]}

    problem = refused(zone)["pools[0].zones[0]"]
    assert "use1-az1" in problem.fix


def test_every_fault_is_told_at_once() -> None:
    def many(stack: dict[str, Any]) -> None:
        stack["region"] = "us-east-1"
        stack["network"] |= {"service_cidr": "10.40.0.0/20"}
        stack["cluster"]["administrators"] = ["nobody"]
        stack["pools"][0] |= {"mig_profile": "9g.9gb", "min_nodes": 5}
        stack["models"][0] |= {"tensor_parallel": 7}
        stack["models"].append({"name": "b", "source": "hf://Qwen/Qwen3-8B", "backend": "tensorrt", "pool": "none"})

    found = refused(many)
    assert {
        "network.service_cidr",
        "cluster.administrators[0]",
        "pools[0].mig_profile",
        "pools[0].min_nodes",
        "models[0].tensor_parallel",
        "models[1].pool",
        "models[1].revision",
    } <= found.keys()


def test_slow_storage_is_refused_until_it_is_accepted() -> None:
    problem = refused(top(storage={"shared": "nfs"}))["storage.shared"]
    minutes = int(problem.fix.rpartition("accept_load_minutes: ")[2].rstrip("`"))
    assert minutes >= 4
    accepted = plan(top(storage={"shared": "nfs", "accept_load_minutes": minutes}))
    assert accepted.infrastructure is not None
    assert any("loading takes about" in warning for warning in accepted.models[0].warnings)


def sliced(time_slicing: int, fraction: float) -> Change:
    def change(stack: dict[str, Any]) -> None:
        del stack["pools"][0]["mig_profile"]
        stack["pools"][0]["time_slicing"] = time_slicing
        for entry in stack["models"]:
            entry["serving"] = {"kv_cache_free_gpu_mem_fraction": fraction}

    return change


def test_time_sliced_models_must_share_the_memory_of_their_gpu() -> None:
    found = refused(sliced(4, 0.9), stack="aws-small-mig")
    assert "at most 0.25" in found["models[0].serving.kv_cache_free_gpu_mem_fraction"].fix
    assert "more than 1/8" in refused(sliced(8, 0.1), stack="aws-small-mig")["models[0].pool"].what
    shared = plan(sliced(3, 0.3), stack="aws-small-mig")
    assert all(served.serving and served.serving.pool.units_per_node == 3 for served in shared.models)


def test_a_pool_that_is_full_warns_that_no_engine_can_be_built() -> None:
    full = plan(pool(capacity=["on-demand"], max_nodes=2)).models[0].warnings
    assert any("another engine has no node" in warning for warning in full)
    assert not any("another engine" in warning for warning in plan().models[0].warnings)


def test_a_spot_pool_without_fallback_and_a_moving_revision_are_warned_of() -> None:
    def risky(stack: dict[str, Any]) -> None:
        stack["pools"][0]["capacity"] = ["spot"]
        stack["models"][0]["revision"] = "v1"

    text = " ".join(plan(risky).models[0].warnings)
    assert "spot without a fallback" in text
    assert "not a full commit hash" in text


def test_a_token_in_plain_text_is_refused_where_it_would_be_committed(tmp_path: Path) -> None:
    text = (STACKS / "Pulumi.aws-dev.yaml").read_text() + "  tritonfleet:hugging_face_token: hf_plain\n"
    file = tmp_path / "Pulumi.plain.yaml"
    file.write_text(text)
    with pytest.raises(PlanError, match="plain text") as refusal:
        plan_file(file)
    assert "hf_plain" not in str(refusal.value)


def test_a_token_is_known_to_be_there_and_never_kept() -> None:
    for token in ("hf_abcdef", {"secure": "v1:abc:def"}):
        found = plan(top(hugging_face_token=token))
        assert found.infrastructure is not None
        assert found.infrastructure.hugging_face_token
        assert "abc" not in repr(found)


def test_an_existing_cluster_takes_no_cloud_sections() -> None:
    found = refused(top(cloud="existing"))
    assert {"region", "network", "cluster", "pools", "storage", "models[0].pool"} <= found.keys()


def test_pods_of_a_node_share_it() -> None:
    for stack in AWS:
        found = plan_file(STACKS / f"Pulumi.{stack}.yaml")
        assert found.infrastructure is not None
        for where in found.infrastructure.pools:
            on_it = [s for m in found.models if (s := m.serving) and s.pool is where]
            per_node = {s.gpus_per_pod: where.units_per_node // s.gpus_per_pod for s in on_it}
            for s in on_it:
                pods = per_node[s.gpus_per_pod]
                assert pods * s.memory_mib <= where.memory_gib * 1024
                assert pods * s.cpu_millis <= where.vcpus * 1000
                assert pods * s.rdma_per_pod <= where.rdma_interfaces
                assert pods * s.hugepages_mib <= (where.fabric.hugepages_mib if where.fabric else 0)


def test_the_same_stack_gives_the_same_plan() -> None:
    assert all(plan(stack=stack) == plan(stack=stack) for stack in AWS)
