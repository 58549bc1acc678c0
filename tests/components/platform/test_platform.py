"""The platform as a whole: which charts with which values, in which order, for every example stack."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pulumi
import pulumi_kubernetes
import pytest
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from components.clouds import cloud_class
from components.clouds.base import AutoscalerChart, Autoscaling, Cloud, Identity
from components.platform import Platform, PlatformArgs
from components.platform.autoscaler import priorities
from components.platform.charts import ChartValues, gpu_node_tolerations
from planner.errors import Problem
from planner.fleet import CloudPlan
from planner.versions import CHARTS, CLUSTER_AUTOSCALER, PYTHON_IMAGE
from tests.components.platform.plans import EXAMPLES, fleet_of, mixed_plan, plan_of
from tests.components.world import Recorded, Registered, run

GOLDEN = Path(__file__).parents[2] / "golden" / "charts"
CASES = [*EXAMPLES, "mixed"]
TAINTS = {"nvidia.com/gpu", "tritonfleet.io/capacity-type", "startup-taint.cluster-autoscaler.kubernetes.io/mig"}


class FakeCloud(Cloud):
    """A cloud that makes nothing but two node groups: what the platform asks of any."""

    def __init__(self, plan: CloudPlan, mirrors: dict[str, str] | None = None) -> None:
        pulumi.ComponentResource.__init__(self, "test:index:Cloud", "cloud")
        child = pulumi.ResourceOptions(parent=self)
        self.plan = plan
        self.kubeconfig = pulumi.Output.secret("{}")
        self.kubernetes = pulumi_kubernetes.Provider("kubernetes", kubeconfig="{}", opts=child)
        self.mirrors = {registry: pulumi.Output.from_input(to) for registry, to in (mirrors or {}).items()}
        self.nodes = [pulumi.CustomResource("test:index:Nodes", name, {}, child) for name in ("system", "gpu")]
        self.rights = [pulumi.CustomResource("test:index:Right", "autoscaler", {}, child)]

    def autoscaling(self) -> Autoscaling:
        return Autoscaling(
            chart=AutoscalerChart(
                annotations={"example.com/identity": "autoscaler"},
                values={"cloudProvider": "example", "autoDiscovery": {"clusterName": "fleet"}},
            ),
            group_pattern=lambda group: f"^pool-{group.name}-[0-9a-f]{{8}}$",
            resources=self.rights,
        )

    def charts(self) -> list[ChartValues]:
        values = {"tolerations": gpu_node_tolerations(self.plan)}
        chart = "aws-efa-k8s-device-plugin"
        return [ChartValues(chart=chart, namespace="kube-system", values=values, on_gpu_nodes=True)]

    @classmethod
    def unreachable(cls, plan: CloudPlan) -> list[Problem]:
        raise NotImplementedError

    def identity(self, *_: object, **__: object) -> Identity:
        raise NotImplementedError

    def source_reader(self, *_: object, **__: object) -> Identity:
        raise NotImplementedError

    def volumes(self, *_: object, **__: object) -> Any:
        raise NotImplementedError


def deployed(stack: str) -> Recorded:
    """An example stack's platform on the cloud that the stack names."""

    def program() -> None:
        fleet, plan = fleet_of(stack), plan_of(stack)
        cloud = cloud_class(fleet.cloud)(plan.name, plan, fleet.models)
        Platform("platform", PlatformArgs(cloud=cloud, plan=plan))

    return run(program)


def registered(plan: CloudPlan, *, preview: bool = False, mirrors: dict[str, str] | None = None) -> Recorded:
    """The platform on a cloud that is not there."""

    def program() -> None:
        platform = Platform("platform", PlatformArgs(cloud=FakeCloud(plan, mirrors), plan=plan))
        pulumi.export("namespace", platform.namespace)
        pulumi.export("ready", pulumi.Output.all(*(resource.urn for resource in platform.ready)))

    return run(program, preview=preview)


@pytest.fixture(scope="module")
def mixed() -> Recorded:
    return registered(mixed_plan())


def case(name: str) -> CloudPlan:
    return mixed_plan() if name == "mixed" else plan_of(name)


def release(recorded: Recorded, name: str) -> Registered:
    return recorded.one("Release", f"platform-{name}")


@pytest.mark.parametrize("name", CASES)
def test_values_are_the_golden_ones(name: str) -> None:
    """UPDATE_GOLDEN=1 writes them anew."""
    recorded, folder = registered(mixed_plan()) if name == "mixed" else deployed(name), GOLDEN / name
    found = {f"{r.inputs['name']}.yaml": _yaml(_chart(r)) for r in recorded.of("Release")}
    found["priorities.yaml"] = recorded.one("ConfigMap", "platform-priorities").inputs["data"]["priorities"]
    if os.environ.get("UPDATE_GOLDEN"):
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*.yaml"):
            file.unlink()
        for file, text in found.items():
            (folder / file).write_text(text, encoding="utf-8")

    assert found == {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.yaml")}


def test_there_are_no_golden_values_without_a_stack() -> None:
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_preview_registers_what_update_does(name: str) -> None:
    before, after = registered(case(name), preview=True), registered(case(name))

    assert before.resources.keys() == after.resources.keys()
    assert {r.urn: r.depends_on for r in before} == {r.urn: r.depends_on for r in after}


def test_charts_are_pinned_and_rolled_back_when_they_fail(mixed: Recorded) -> None:
    releases = {r.inputs["name"]: r.inputs for r in mixed.of("Release")}
    assert releases.keys() == CHARTS.keys() - {"network-operator"}, "which is for InfiniBand"
    for name, inputs in releases.items():
        chart = CHARTS[name]
        assert (inputs["chart"], inputs["version"]) == (chart.name, chart.version)
        assert inputs.get("repositoryOpts", {}).get("repo") == chart.repository
        assert inputs["cleanupOnFail"] is True
        assert 0 < inputs["timeout"] <= 900
        # A plugin without a node to run on would be waited for in vain.
        waits = name != "aws-efa-k8s-device-plugin"
        assert (inputs["atomic"], inputs["skipAwait"]) == (waits, not waits)


def test_charts_wait_for_nodes_and_namespaces(mixed: Recorded) -> None:
    nodes, expander = urns(mixed.of("test:index:Nodes")), mixed.one("ConfigMap", "platform-priorities").urn
    assert len(nodes) == 2
    for r in mixed.of("Release"):
        assert nodes | urns(mixed.of("Namespace")) | {expander} <= r.depends_on, r.name
    assert nodes | {mixed.one("Namespace", "platform-gpu-operator").urn} <= mixed.one("Deployment").depends_on


def test_the_autoscaler_waits_for_its_rights(mixed: Recorded) -> None:
    right = mixed.one("test:index:Right", "autoscaler")
    assert [r.name for r in mixed.of("Release") if right.urn in r.depends_on] == ["platform-cluster-autoscaler"]


def urns(resources: list[Registered]) -> set[str]:
    return {resource.urn for resource in resources}


@pytest.mark.parametrize("name", CASES)
def test_models_wait_for_everything(name: str) -> None:
    recorded = registered(case(name))
    ready = set(recorded.outputs["ready"])

    assert recorded.outputs["namespace"] == "tritonfleet"
    waited = [*recorded.of("Release"), *recorded.of("ResourceQuota"), *recorded.of("tritonfleet:platform:MigGate")]
    # What waits for nodes waits for the order in which they come, too, where that is a resource of the cloud.
    waited += recorded.of("test:index:Right")
    waited += [policy for policy in recorded.of("NetworkPolicy") if "gate" not in policy.name]
    assert urns(waited) == ready


def test_everything_uses_the_clouds_own_cluster(mixed: Recorded) -> None:
    provider = mixed.one("pulumi:providers:kubernetes", "kubernetes").urn
    kubernetes = [r for r in mixed if r.type.startswith("kubernetes:")]
    assert len(kubernetes) > 15
    assert {r.provider for r in kubernetes} == {provider}


@pytest.mark.parametrize("name", CASES)
def test_the_gate_is_there_for_mig_alone(name: str) -> None:
    recorded, has_mig = registered(case(name)), any(pool.mig_profile for pool in case(name).pools)
    values = release(recorded, "gpu-operator").inputs["values"]

    assert bool(recorded.of("tritonfleet:platform:MigGate")) == has_mig == (name in ("aws-small-mig", "mixed"))
    assert values["migManager"]["enabled"] == has_mig
    if has_mig:
        assert recorded.one("Deployment").inputs["metadata"]["namespace"] == "gpu-operator"
        assert values["migManager"]["config"]["default"] == "all-disabled"
        assert values["migManager"]["env"] == [{"name": "WITH_REBOOT", "value": "true"}]


def test_the_operator_takes_driver_and_toolkit_from_the_node_image(mixed: Recorded) -> None:
    values = release(mixed, "gpu-operator").inputs["values"]

    assert values["driver"] == values["toolkit"] == {"enabled": False}
    assert values["mig"] == {"strategy": "mixed"}


def test_only_daemon_sets_tolerate_gpu_nodes(mixed: Recorded) -> None:
    tolerated: dict[str, set[str]] = {}
    for r in mixed:
        for path, tolerations in _tolerations(r.inputs, r.inputs.get("name", r.name)):
            tolerated[path] = {toleration["key"] for toleration in tolerations}
            assert all(t["operator"] == "Exists" and t["effect"] == "NoSchedule" for t in tolerations)

    assert tolerated == {
        "gpu-operator.values.daemonsets": TAINTS,
        "gpu-operator.values.node-feature-discovery.worker": TAINTS,
        "aws-efa-k8s-device-plugin.values": TAINTS,
    }


def test_shared_gpus_are_offered_by_the_label_of_their_nodes(mixed: Recorded) -> None:
    config = release(mixed, "gpu-operator").inputs["values"]["devicePlugin"]["config"]
    data = {key: _load(text) for key, text in config["data"].items()}

    assert data["shared-4"]["sharing"]["timeSlicing"] == {
        "failRequestsGreaterThanOne": True,
        "resources": [{"name": "nvidia.com/gpu", "replicas": 4}],
    }
    # Nodes without the label, those of other pools, share nothing.
    assert data[config["default"]] == {"version": "v1", "flags": {"migStrategy": "mixed"}}
    assert data.keys() == {"shared-4", config["default"]}
    assert "devicePlugin" not in release(registered(plan_of("aws-dev")), "gpu-operator").inputs["values"]


def test_cheaper_groups_grow_first() -> None:
    plan = mixed_plan()
    ranks = cast(dict[int, list[str]], _load(priorities(plan, lambda group: f"^eks-{group.name}-[-0-9a-f]{{36}}$")))

    def priority(group: str) -> list[int]:
        name = f"eks-{group}-9c2b8d14-1f0e-4b55-9a3e-0d2f6f2a7c11"
        return [rank for rank, patterns in ranks.items() if any(re.search(pattern, name) for pattern in patterns)]

    assert list(ranks) == sorted(ranks, reverse=True)
    assert priority("h100-reserved") > priority("h100-spot") > priority("h100-on-demand")
    # A group in two lists would have two priorities, one in none would never grow.
    for group in (group for pool in plan.pools for group in pool.node_groups):
        assert priority(group.name) == [group.priority]
    assert priority("big-h100-spot") == []


def test_the_autoscaler_finds_its_priorities(mixed: Recorded) -> None:
    expander = mixed.one("ConfigMap", "platform-priorities").inputs
    autoscaler = release(mixed, "cluster-autoscaler").inputs

    assert expander["metadata"]["name"] == "cluster-autoscaler-priority-expander"
    assert expander["metadata"]["namespace"] == autoscaler["namespace"] == "kube-system"
    assert autoscaler["values"]["extraArgs"]["expander"] == "priority"


def test_the_autoscaler_takes_no_node_from_a_group_of_ranks(mixed: Recorded) -> None:
    flags = release(mixed, "cluster-autoscaler").inputs["values"]["extraArgs"]

    # At or below these a node counts as idle; DaemonSets' pods do not count.
    assert flags["scale-down-utilization-threshold"] == flags["scale-down-gpu-utilization-threshold"] == 0
    assert flags["ignore-daemonsets-utilization"] is True
    # Otherwise no node would ever go: every serving pod has an emptyDir.
    assert flags["skip-nodes-with-local-storage"] is False
    assert flags["balance-similar-node-groups"] is False


def test_the_autoscaler_is_the_clouds_and_the_clusters_version() -> None:
    plan = mixed_plan()
    values = release(registered(plan), "cluster-autoscaler").inputs["values"]
    assert values["cloudProvider"] == "example"
    assert values["rbac"]["serviceAccount"]["annotations"] == {"example.com/identity": "autoscaler"}

    for version, tag in {**CLUSTER_AUTOSCALER, "1.99": CLUSTER_AUTOSCALER["1.36"]}.items():
        other = replace(plan, cluster=plan.cluster.model_copy(update={"kubernetes_version": version}))
        assert release(registered(other), "cluster-autoscaler").inputs["values"]["image"]["tag"] == tag


def test_images_come_from_the_mirror_where_there_is_one() -> None:
    mirrors = {"registry.k8s.io": "mirror.example/kubernetes", "public.ecr.aws": "mirror.example/public"}
    recorded = registered(mixed_plan(), mirrors=mirrors)
    images = {
        "lws": release(recorded, "lws").inputs["values"]["image"]["manager"]["repository"],
        "metrics": release(recorded, "metrics-server").inputs["values"]["image"]["repository"],
        "autoscaler": release(recorded, "cluster-autoscaler").inputs["values"]["image"]["repository"],
        "nfd": release(recorded, "gpu-operator").inputs["values"]["node-feature-discovery"]["image"]["repository"],
        "gate": recorded.one("Deployment").inputs["spec"]["template"]["spec"]["containers"][0]["image"],
    }
    assert images == {
        "lws": "mirror.example/kubernetes/lws/lws",
        "metrics": "mirror.example/kubernetes/metrics-server/metrics-server",
        "autoscaler": "mirror.example/kubernetes/autoscaling/cluster-autoscaler",
        "nfd": "mirror.example/kubernetes/nfd/node-feature-discovery",
        "gate": PYTHON_IMAGE.replace("public.ecr.aws/", "mirror.example/public/"),
    }


def _chart(r: Registered) -> dict[str, Any]:
    inputs = r.inputs
    head = {"chart": inputs["chart"], "version": inputs["version"], "namespace": inputs["namespace"]}
    if "repositoryOpts" in inputs:
        head["repository"] = inputs["repositoryOpts"]["repo"]
    return head | {"values": inputs["values"]}


def _tolerations(value: object, path: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    if isinstance(value, dict):
        for key, item in cast(dict[str, object], value).items():
            if key == "tolerations":
                yield path, cast(list[dict[str, str]], item)
            else:
                yield from _tolerations(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in cast(list[object], value):
            yield from _tolerations(item, path)


def _yaml(value: object) -> str:
    yaml, out = YAML(typ="rt"), StringIO()
    yaml.dump(_readable(value), out)  # pyright: ignore[reportUnknownMemberType]
    return out.getvalue()


def _readable(value: object) -> object:
    """Keys in order, because the engine's wire has none, and texts of several lines as such."""
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in sorted(cast(dict[str, object], value).items())}
    if isinstance(value, list):
        return [_readable(item) for item in cast(list[object], value)]
    return LiteralScalarString(value) if isinstance(value, str) and "\n" in value else value


def _load(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)  # pyright: ignore[reportUnknownMemberType]
