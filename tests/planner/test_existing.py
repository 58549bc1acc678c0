"""Stacks on a cluster that is there already: what is planned, and everything that is refused while planning."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.errors import PlanError
from planner.fleet import CloudPlan
from planner.plan import FleetPlan, plan_values
from planner.stack_file import read_stack_file

STACKS = Path(__file__).parents[2] / "stacks"
CONFIG = STACKS.parent / "planner" / "known_models" / "llama-3.1-8b.json"
MIB = 1 << 20
LLAMA = {
    "name": "llama",
    "source": "hf://meta-llama/Llama-3.1-8B-Instruct",
    "revision": "0e9e39f249a16976918f6564b8830bc894c89659",
    "backend": "tensorrt",
    "pool": "gpus",
}
NODES = {"name": "gpus", "gpu": "H100-80GB", "gpus_per_node": 4, "nodes": 2, "vcpus": 96, "memory_gib": 512}
Values = dict[str, Any]
Edit = Callable[[Values], object]


def local(edit: Edit = lambda _: None) -> Values:
    """The local stack's values, edited."""
    values = copy.deepcopy(read_stack_file(STACKS / "Pulumi.local.yaml"))
    edit(values)
    return values


def gpus(edit: Edit = lambda _: None) -> Values:
    """A stack on GPU nodes that are there, edited."""
    cluster = {"context": "c", "storage_class": "nfs", "volume_gib": 200, "nodes": [NODES]}
    values: Values = copy.deepcopy({"cloud": "existing", "existing": cluster, "models": [LLAMA]})
    edit(values)
    return values


def planned(values: Values) -> FleetPlan:
    return plan_values(values, base_dir=STACKS)


def site(values: Values) -> CloudPlan:
    found = planned(values).infrastructure
    assert found is not None
    return found


def refused(values: Values) -> dict[str, str]:
    """What is refused, by key; every problem has all of its parts."""
    with pytest.raises(PlanError) as caught:
        planned(values)
    assert all(problem.consequence and problem.fix for problem in caught.value.problems)
    return {problem.key: f"{problem.what}; {problem.fix}" for problem in caught.value.problems}


def cluster(**changed: object) -> Edit:
    return lambda values: values["existing"].update(changed)


def nodes(**changed: object) -> Edit:
    return lambda values: values["existing"]["nodes"][0].update(changed)


def stack(**changed: object) -> Edit:
    return lambda values: values.update(changed)


def without(key: str) -> Edit:
    return lambda values: values.pop(key)


def one_more_of_the_nodes(values: Values) -> None:
    values["existing"]["nodes"].append(dict(NODES))


def model(**changed: object) -> Edit:
    return lambda values: values["models"][0].update(changed)


def test_a_stack_that_names_no_cluster_is_a_laptops() -> None:
    def of_a_laptop(values: Values) -> None:
        del values["existing"], values["images"]

    laptop, deployed = planned(local(of_a_laptop)), planned(local())

    assert laptop.infrastructure is None
    # What serves on the laptop is what serves there: the same engine.
    assert laptop.models[0].engine == deployed.models[0].engine


def test_a_pod_on_the_cpu_has_room_for_its_ranks_and_what_stands_around_them() -> None:
    one, eight = (planned(local(model(max_batch_size=size))).models[0] for size in (1, 8))
    assert one.serving
    assert eight.serving

    # Measured with 8 streams: 1.5 GiB, of which a KV cache little used (see planner/existing.py).
    needed = sum(rank.total_bytes for rank in eight.memory) / MIB
    assert needed + 700 < eight.serving.memory_mib - eight.serving.frontend_memory_mib < needed + 1024
    assert eight.serving.frontend_memory_mib == 512
    assert eight.serving.gpus_per_pod == eight.world_size == 3
    assert eight.serving.cpu_millis < 1000, "three ranks start beside what kind asks for on two cores"
    assert eight.serving.pool.gpu_resource is None
    # Fewer streams are fewer processes.
    kv = sum(rank.total_bytes for rank in one.memory) / MIB
    assert one.serving.memory_mib - kv < eight.serving.memory_mib - needed - 300


def test_cpu_models_do_not_share_an_estimate() -> None:
    def two(values: Values) -> None:
        single = values["models"][0] | {"name": "single", "tensor_parallel": 1}
        values["models"].append(single)

    three_ranks, one_rank = (found.serving for found in planned(local(two)).models)
    assert three_ranks
    assert one_rank

    assert one_rank.pool.name != three_ranks.pool.name
    # One rank holds all the weights and all of the KV cache: a third of the other's pod would not do.
    assert one_rank.memory_mib > three_ranks.memory_mib / 2


def test_an_update_on_a_test_cluster_does_not_wait_for_room_for_another_group() -> None:
    (pool,) = site(local()).pools

    assert pool.node_groups[0].max_nodes == 1


def test_what_a_cluster_has_is_not_installed_again() -> None:
    assert "lws" not in site(local()).brings
    assert "lws" in site(local(cluster(install_leader_worker_set=False))).brings
    assert {"gpu-operator", "cluster-autoscaler", "metrics-server"} <= site(gpus()).brings


def test_gpu_nodes_become_a_pool() -> None:
    sliced = nodes(mig_profile="3g.40gb", resource="nvidia.com/mig-3g.40gb", node_selector={"a": "b"})
    (whole,), (mig,) = site(gpus()).pools, site(gpus(sliced)).pools

    assert (whole.gpu_resource, whole.units_per_node, whole.node_groups[0].max_nodes) == ("nvidia.com/gpu", 4, 2)
    assert (mig.gpu_resource, mig.units_per_node, mig.node_selector) == ("nvidia.com/mig-3g.40gb", 8, {"a": "b"})


def test_a_pool_that_the_models_fill_is_warned_of() -> None:
    (plan,) = planned(gpus(model(tensor_parallel=4, serving={"replicas": 2}))).models
    (spare,) = planned(gpus(model(tensor_parallel=4))).models

    assert any("have one more" in warning for warning in plan.warnings)
    assert spare.warnings == ()


@pytest.mark.parametrize(
    ("edit", "key", "what"),
    [
        (cluster(kubeconfig="config"), "existing.kubeconfig", "is relative"),
        (cluster(kubeconfig=""), "existing.kubeconfig", ""),
        (cluster(context=""), "existing.context", ""),
        (cluster(storage_class="Fast_SSD"), "existing.storage_class", "not the name of an object"),
        (cluster(storage_class=""), "existing.storage_class", ""),
        (cluster(access_mode="ReadOnlyMany"), "existing.access_mode", ""),
        (cluster(volume_gib=0), "existing.volume_gib", ""),
        (cluster(volume_gib=40), "existing.volume_gib", "weights and engines take"),
        (cluster(read_mb_s=0), "existing.read_mb_s", ""),
        (cluster(storage_clas="x"), "existing.storage_clas", "did you mean storage_class?"),
        (
            cluster(service_account_annotations={"a b": "c"}),
            "existing.service_account_annotations.a b",
            "not an annotation's name",
        ),
        (nodes(gpu="H100"), "existing.nodes[0].gpu", "not a known GPU"),
        (nodes(mig_profile="9g.90gb"), "existing.nodes[0].mig_profile", "not a profile"),
        (nodes(resource="nvidia.com/mig-1g.10gb"), "existing.nodes[0].resource", "give mig_profile: 1g.10gb"),
        (
            nodes(mig_profile="2g.20gb", resource="nvidia.com/mig-1g.10gb"),
            "existing.nodes[0].resource",
            "mig_profile is 2g.20gb",
        ),
        (nodes(resource="gpus please"), "existing.nodes[0].resource", "not a resource's name"),
        (nodes(node_selector={"-": "x"}), "existing.nodes[0].node_selector.-", "not a label's name"),
        (nodes(node_selector={"a": "x y"}), "existing.nodes[0].node_selector.a", "not a label's value"),
        (nodes(tolerations=[{"key": "a b"}]), "existing.nodes[0].tolerations[0].key", "not a taint's name"),
        (nodes(nodes=0), "existing.nodes[0].nodes", ""),
        (model(tensor_parallel=4, serving={"replicas": 3}), "existing.nodes[0].nodes", "give at least 3"),
        (model(pool="gpu"), "models[0].pool", "did you mean gpus?"),
        (model(backend="cpu"), "models[0].backend", "on a pool of GPUs"),
        (model(source="bucket://llama", config=str(CONFIG)), "models[0].source", "no bucket"),
        (model(source="file:///llama", config=str(CONFIG)), "models[0].source", "not reachable from a pod"),
        (
            stack(images={"pull_through": True}),
            "images.pull_through",
            "a registry that this program makes",
        ),
        (stack(allow_replacement=["pools.gpus"]), "allow_replacement[0]", "nothing of this stack"),
        (stack(region="us-east-1"), "region", ""),
        (stack(pools=[{"name": "gpus"}]), "pools", ""),
        (one_more_of_the_nodes, "existing.nodes[1].name", "already the name"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(edit: Edit, key: str, what: str) -> None:
    problems = refused(gpus(edit))

    assert key in problems
    assert what in problems[key]


@pytest.mark.parametrize(
    ("edit", "key", "what"),
    [
        (without("images"), "images.triton", "images/cpu.Dockerfile"),
        (model(source="../model", revision=None), "models[0].source", ""),
        (without("existing"), "images", "names none"),
    ],
)
def test_a_model_on_the_cpu_needs_its_image_and_weights_that_pods_reach(edit: Edit, key: str, what: str) -> None:
    problems = refused(local(edit))

    assert key in problems
    assert what in problems[key]


def test_one_image_does_not_do_for_both_kinds_of_models() -> None:
    def mixed(values: Values) -> None:
        values["images"] = {"triton": "localhost:5001/mine:1"}
        values["models"].append(local()["models"][0])

    assert "a stack of its own" in str(refused(gpus(mixed)))


def test_a_package_is_in_no_image_for_gpus() -> None:
    def packaged(values: Values) -> None:
        values["models"][0] |= {"source": "pypi://llama/llama.gguf", "backend": "pytorch", "config": str(CONFIG)}

    assert "is in no image for GPUs" in refused(gpus(packaged))["models[0].source"]


def test_a_group_of_many_nodes_needs_a_volume_for_many() -> None:
    def two_nodes(values: Values) -> None:
        values["existing"]["access_mode"] = "ReadWriteOnce"
        values["models"][0] |= {"tensor_parallel": 4, "pipeline_parallel": 2}

    assert "2 nodes" in refused(gpus(two_nodes))["existing.access_mode"]
    assert planned(gpus(cluster(access_mode="ReadWriteOnce"))).infrastructure


def test_everything_is_said_at_once() -> None:
    def bad(values: Values) -> None:
        values["existing"] |= {"kubeconfig": "config", "storage_class": "A", "volume_gib": 1}
        values["existing"]["nodes"].append(dict(NODES))
        values["models"][0]["source"] = "bucket://llama"
        values["models"][0]["config"] = str(CONFIG)
        values["allow_replacement"] = ["cluster"]

    assert set(refused(gpus(bad))) == {
        "allow_replacement[0]",
        "existing.kubeconfig",
        "existing.nodes[1].name",
        "existing.storage_class",
        "existing.volume_gib",
        "models[0].source",
    }
