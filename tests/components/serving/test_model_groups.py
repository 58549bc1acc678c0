"""Groups: what the LeaderWorkerSet of a model says of its pods."""

import re
from dataclasses import replace
from typing import Any, cast

import pytest

from components.serving.labels import leaders_of
from planner.clouds import cloud_facts
from planner.plan import FleetPlan
from tests.components.serving.stacks import (
    EXAMPLES,
    LARGE,
    MIG,
    SMALL,
    TWO_REPLICAS,
    Values,
    container,
    model_values,
    planned,
    served,
    templates,
    variables,
    with_source,
)
from tests.components.world import Recorded

BOTH = ("leader", "worker")


def group_spec(recorded: Recorded, model: str) -> Values:
    return recorded.one("LeaderWorkerSet", f"serving-{model}-set").inputs["spec"]


def verbose(values: Values) -> None:
    model_values(values).update(serving={"log_level": "verbose"})


@pytest.mark.parametrize("stack", EXAMPLES)
def test_a_group_has_the_planned_pods_and_lives_or_dies_whole(stack: str) -> None:
    plan = planned(stack)
    recorded = served(plan)
    for model in plan.models:
        assert model.serving
        spec = group_spec(recorded, model.name)
        assert spec["replicas"] == model.serving.replicas
        assert spec["leaderWorkerTemplate"]["size"] == model.nodes
        assert spec["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
        assert spec["startupPolicy"] == "LeaderCreated", "a leader is only ready once its workers have joined"
        for template in templates(recorded, model.name).values():
            # A StatefulSet's pods, as these are, may have no other.
            assert template["spec"].get("restartPolicy", "Always") == "Always"


def test_leader_and_workers_run_the_same_command_on_the_engine_of_the_key() -> None:
    plan = planned(LARGE)
    model = plan.models[0]
    assert model.serving
    for template in templates(served(plan), model.name).values():
        assert container(template)["command"] == [
            *("python3", "-m", "runtime.launch", "--model-repository", "/opt/tritonfleet/models"),
            *("--engine", f"/shared/store/engines/{model.engine.id}"),
            *("--token-file", "/etc/tritonfleet/token/token"),
            *("--drain-seconds", str(model.serving.drain_seconds), "--log-level", "info"),
        ]
        assert container(template)["workingDir"] == "/opt/tritonfleet"


def test_the_image_is_the_pinned_one_or_the_stacks_own() -> None:
    def images(recorded: Recorded) -> set[str]:
        return {container(template)["image"] for template in templates(recorded, "smollm2").values()}

    pinned = images(served(planned(SMALL)))
    assert pinned == {"nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"}
    digest = "r.example:5000/triton@sha256:" + "0" * 64
    own = planned(SMALL, lambda values: values.update(images={"triton": digest}))
    assert images(served(own)) == {digest}


@pytest.mark.parametrize("stack", EXAMPLES)
def test_the_start_probe_is_as_patient_as_the_plan(stack: str) -> None:
    plan = planned(stack)
    recorded = served(plan)
    for model in plan.models:
        assert model.serving
        leader = container(templates(recorded, model.name)["leader"])
        probes = {name: leader[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
        patience = {name: probe["failureThreshold"] * probe["periodSeconds"] for name, probe in probes.items()}
        assert patience["startup"] >= model.serving.startup_seconds
        # A rank that is lost is replaced in place, which takes a start.
        assert patience["liveness"] >= model.serving.startup_seconds
        assert patience["readiness"] <= 30
        paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
        assert paths == {
            "startup": "/v2/health/ready",
            "readiness": "/v2/health/ready",
            "liveness": "/v2/health/live",
        }
        assert {probe["httpGet"]["port"] for probe in probes.values()} == {"http"}
        ports = {port["name"]: port["containerPort"] for port in leader["ports"]}
        assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002, "rendezvous": 8470}


def test_workers_are_asked_through_their_launcher_and_may_wait_for_their_leader() -> None:
    worker = container(templates(served(), "llama-405b")["worker"])
    command = ["python3", "-m", "runtime.health"]

    assert worker["readinessProbe"]["exec"]["command"] == [*command, "--ready"]
    for name in ("startupProbe", "livenessProbe"):
        assert worker[name]["exec"]["command"] == command, "one that waits for its leader is well"
    assert "ports" not in worker


@pytest.mark.parametrize("stack", EXAMPLES)
def test_endings_stay_inside_the_grace(stack: str) -> None:
    plan = planned(stack)
    recorded = served(plan)
    for model in plan.models:
        serving = model.serving
        assert serving
        pods = templates(recorded, model.name)
        for role in BOTH:
            stay = container(pods[role])["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert stay == serving.prestop_seconds
            assert pods[role]["spec"]["terminationGracePeriodSeconds"] == serving.grace_seconds
            assert stay + serving.drain_seconds < serving.grace_seconds


def test_rdma_brings_interfaces_huge_pages_and_its_environment() -> None:
    plan = planned(LARGE)
    serving = plan.models[0].serving
    assert serving
    for template in templates(served(plan), "llama-405b").values():
        one = container(template)
        for kind in ("requests", "limits"):
            assert one["resources"][kind]["vpc.amazonaws.com/efa"] == "32"
            assert one["resources"][kind]["hugepages-2Mi"] == "5Gi"
        assert variables(one).items() >= cloud_facts("aws").fabrics["efa"].environment.items()
        assert variables(one)["FI_PROVIDER"] == "efa"


def test_without_rdma_there_is_none_of_it() -> None:
    for template in templates(served(planned(TWO_REPLICAS)), "llama-70b").values():
        one = container(template)
        assert not [name for name in one["resources"]["limits"] if "efa" in name or "huge" in name]
        assert not [name for name in variables(one) if name.startswith(("FI_", "NCCL_", "OMPI_"))]


def test_a_verbose_stack_hears_nccl_too() -> None:
    template = templates(served(planned(TWO_REPLICAS, verbose)), "llama-70b")["leader"]

    assert variables(container(template))["NCCL_DEBUG"] == "INFO"
    assert container(template)["command"][-2:] == ["--log-level", "verbose"]


@pytest.mark.parametrize("stack", EXAMPLES)
def test_resources_are_the_plans_and_cpu_is_not_throttled(stack: str) -> None:
    plan = planned(stack)
    recorded = served(plan)
    for model in plan.models:
        serving = model.serving
        assert serving
        for template in templates(recorded, model.name).values():
            requests, limits = (container(template)["resources"][kind] for kind in ("requests", "limits"))
            assert limits[serving.pool.gpu_resource] == str(serving.gpus_per_pod)
            assert {name: requests[name] for name in limits} == limits
            assert set(requests) - set(limits) == {"cpu"}
            frontend = "initContainers" in template["spec"]
            assert millis(requests["cpu"]) == serving.cpu_millis - frontend * serving.frontend_cpu_millis
            assert mebibytes(limits["memory"]) == serving.memory_mib - frontend * serving.frontend_memory_mib
            (shm,) = [v["emptyDir"] for v in template["spec"]["volumes"] if v["name"] == "shm"]
            assert shm["medium"] == "Memory"
            assert mebibytes(shm["sizeLimit"]) == serving.shm_mib


@pytest.mark.parametrize("stack", EXAMPLES)
def test_all_pods_of_a_full_node_fit_on_its_disk(stack: str) -> None:
    plan = planned(stack)
    recorded = served(plan)
    for model in plan.models:
        assert model.serving
        pool = model.serving.pool
        asked = container(templates(recorded, model.name)["leader"])["resources"]["requests"]["ephemeral-storage"]
        on_a_node = pool.units_per_node // model.serving.gpus_per_pod
        assert 0 < mebibytes(asked) * on_a_node <= 0.6 * pool.disk_gib * 1024


def test_quantities_are_written_as_kubernetes_writes_them_back() -> None:
    """Or each preview would find 5120Mi where the cluster says 5Gi."""
    for stack in EXAMPLES:
        for one in served(planned(stack)).of("LeaderWorkerSet"):
            for quantity in quantities(one.inputs):
                assert not (quantity.endswith("Mi") and int(quantity[:-2]) % 1024 == 0), quantity
                assert not (quantity.endswith("m") and int(quantity[:-1]) % 1000 == 0), quantity


def test_the_engine_store_is_read_only_and_writing_goes_to_scratch() -> None:
    for template in templates(served(), "llama-405b").values():
        claims = [v["persistentVolumeClaim"] for v in template["spec"]["volumes"] if "persistentVolumeClaim" in v]
        assert claims == [{"claimName": "engines-ro", "readOnly": True}]
        mounts = container(template)["volumeMounts"]
        writable = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
        assert writable == {"/run/tritonfleet", "/tmp", "/cache", "/dev/shm"}
        environment = variables(container(template))
        assert environment["HOME"] == environment["XDG_CACHE_HOME"] == "/cache"


def test_only_the_backend_that_loads_a_checkpoint_itself_sees_the_bucket() -> None:
    stored = with_source(planned(LARGE), "bucket://llama/405b")
    engines = templates(served(stored), "llama-405b")["leader"]
    assert "/weights" not in {mount["mountPath"] for mount in container(engines)["volumeMounts"]}

    itself = served(with_source(planned(LARGE), "bucket://llama/405b", backend="pytorch"))
    template = templates(itself, "llama-405b")["leader"]
    assert {"name": "weights", "mountPath": "/weights", "readOnly": True} in container(template)["volumeMounts"]
    account = itself.one("ServiceAccount", "serving-llama-405b-account").inputs
    assert account["metadata"]["annotations"] == {"cloud.example/reads": "llama/405b"}


def test_each_model_has_a_token_of_its_own() -> None:
    recorded = served(planned(MIG))
    passwords = recorded.of("RandomPassword", "-token")
    names = {model.name for model in planned(MIG).models}

    assert len(passwords) == len(names)
    for password in passwords:
        assert password.inputs["length"] == 48
        assert password.inputs["special"] is False
        assert password.provider, "default providers are off"
    for name in names:
        secret = recorded.one("Secret", f"serving-{name}-rendezvous")
        assert secret.secrets == {"stringData"}
        assert secret.inputs["immutable"] is True
        (password,) = [urn for urn in secret.depends_on if "RandomPassword" in urn]
        assert password.endswith(f"serving-{name}-token")
        leader = templates(recorded, name)["leader"]["spec"]
        mounted = [v["secret"] for v in leader["volumes"] if v["name"] == "token"]
        assert mounted == [{"secretName": secret.inputs["metadata"]["name"], "defaultMode": 0o440}]


def test_groups_of_several_nodes_stay_together_and_alone() -> None:
    recorded = served(planned(LARGE))
    for template in templates(recorded, "llama-405b").values():
        affinity = template["spec"]["affinity"]
        together = affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert {term["topologyKey"] for term in together} == {
            "tritonfleet.io/node-group",
            "topology.kubernetes.io/zone",
        }
        for term in together:
            # One group's pods: the set's, of the same index. Without the second, replicas would pile up.
            assert term["labelSelector"] == {"matchLabels": {"leaderworkerset.sigs.k8s.io/name": "llama-405b-group"}}
            assert term["matchLabelKeys"] == ["leaderworkerset.sigs.k8s.io/group-index"]
        (alone,) = affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert alone["topologyKey"] == "kubernetes.io/hostname"
        selected = alone["labelSelector"]["matchLabels"].items()
        assert selected <= template["metadata"]["labels"].items(), "no other serving pod, of whatever model"
        assert "topologySpreadConstraints" not in template["spec"]
    annotations = recorded.one("LeaderWorkerSet").inputs["metadata"].get("annotations", {})
    assert "leaderworkerset.sigs.k8s.io/exclusive-topology" not in annotations, "one group in a whole node group"


def test_single_pods_keep_apart_where_that_costs_nothing() -> None:
    spec = templates(served(planned(TWO_REPLICAS)), "llama-70b")["leader"]["spec"]

    assert "affinity" not in spec
    spread = {one["topologyKey"]: one for one in spec["topologySpreadConstraints"]}
    assert list(spread) == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    for one in spread.values():
        assert one["whenUnsatisfiable"] == "ScheduleAnyway"
        assert one["labelSelector"] == {"matchLabels": leaders_of("llama-70b")}


def rollout(plan: FleetPlan, model: str) -> tuple[int, int]:
    strategy = group_spec(served(plan), model)["rolloutStrategy"]["rollingUpdateConfiguration"]
    return strategy["maxSurge"], strategy["maxUnavailable"]


def test_an_update_starts_a_new_group_first_where_the_pool_has_room() -> None:
    assert rollout(planned(TWO_REPLICAS), "llama-70b") == (1, 0), "two of at most three nodes serve"
    assert rollout(planned(LARGE), "llama-405b") == (0, 1), "two of at most three nodes serve, and a group has two"
    assert rollout(planned(LARGE, lambda v: v["pools"][0].update(max_nodes=4)), "llama-405b") == (1, 0)


@pytest.mark.parametrize(("nodes", "strategy"), [(6, (0, 1)), (7, (0, 1)), (8, (1, 0))])
def test_extra_groups_of_two_models_never_wait_for_each_others_nodes(nodes: int, strategy: tuple[int, int]) -> None:
    """Each with half of what is free, none would start, and none of the old would end."""

    def twins(values: Values) -> None:
        values["models"].append({**model_values(values), "name": "twin"})
        values["pools"][0].update(max_nodes=nodes)

    plan = planned(LARGE, twins)
    assert [model.nodes for model in plan.models] == [2, 2]
    assert [rollout(plan, model.name) for model in plan.models] == [strategy, strategy]


def test_room_is_what_all_models_of_the_pool_leave() -> None:
    plan = planned(MIG)
    first = plan.models[0]
    assert first.serving
    name, per_node = first.name, first.serving.pool.units_per_node
    nodes = max(group.max_nodes for group in first.serving.pool.node_groups)
    assert rollout(plan, name) == (1, 0)

    other = plan.models[1]
    assert other.serving
    filling = replace(other, serving=replace(other.serving, replicas=nodes * per_node - len(plan.models) + 1))
    assert rollout(replace(plan, models=(first, filling, *plan.models[2:])), name) == (0, 1)


def mebibytes(quantity: str) -> int:
    unit = {"Mi": 1, "Gi": 1024}[quantity[-2:]]
    return int(quantity[:-2]) * unit


def millis(quantity: str) -> int:
    return int(quantity[:-1]) if quantity.endswith("m") else int(quantity) * 1000


def quantities(value: Any) -> list[str]:
    """Every text in there that may be a quantity in MiB or in thousandths."""
    if isinstance(value, dict):
        return [found for item in cast(Values, value).values() for found in quantities(item)]
    if isinstance(value, list):
        return [found for item in cast(list[Any], value) for found in quantities(item)]
    return [value] if isinstance(value, str) and re.fullmatch(r"[0-9]+(Mi|m)", value) else []
