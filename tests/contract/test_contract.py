"""One suite for every cloud: what the rest of the program relies on, whichever cloud it is."""

import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import pytest

from components.clouds.base import Cloud
from planner.pool_labels import NODE_GROUP_LABEL
from planner.sources import KNOWN_MODELS, known_by_source
from planner.versions import CHARTS
from tests.components.world import UNKNOWN, Recorded
from tests.contract.programs import (
    CASES,
    MANAGED,
    PREFIX,
    asked,
    class_of,
    closure,
    cloud_of,
    deployed,
    edited,
    from_bucket,
    from_source,
    plan_of,
    site,
    whole,
)
from tests.contract.told import TOLD, texts

CLOUDS = {cloud_of(case): case for case in CASES}
OF_EVERY_CLOUD = {"kubernetes", "random", "pulumi", "tritonfleet"}


def unimplemented(made: type[Cloud]) -> list[str]:
    """Names of the contract's methods that a cloud leaves to others."""
    named = {name for base in Cloud.__mro__ for name in vars(base)}
    return sorted(name for name in named if getattr(getattr(made, name, None), "__isabstractmethod__", False))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_method_is_implemented(cloud: str) -> None:
    assert unimplemented(class_of(CLOUDS[cloud])) == []


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_method_that_the_contract_gains_is_missed_by_name(cloud: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshots(self: Cloud) -> None: ...

    monkeypatch.setattr(Cloud, "snapshots", abstractmethod(snapshots), raising=False)

    assert unimplemented(class_of(CLOUDS[cloud])) == ["snapshots"]


def test_a_cloud_without_a_method_cannot_be_made() -> None:
    lacking = type("Lacking", (class_of("fake"),), {"charts": Cloud.charts})

    assert unimplemented(lacking) == ["charts"]
    with pytest.raises(TypeError, match="charts"):
        deployed(plan_of("fake-small-mig"), lacking)


@pytest.mark.parametrize("case", CASES)
def test_every_attribute_is_there(case: str) -> None:
    assert asked(case).attributes == Cloud.__annotations__.keys()


@pytest.mark.parametrize("case", CASES)
def test_the_kubeconfig_is_secret(case: str) -> None:
    recorded = whole(case)

    assert "kubeconfig" in recorded.secrets
    providers = recorded.of("pulumi:providers:kubernetes")
    assert providers
    assert [provider.name for provider in providers if "kubeconfig" not in provider.secrets] == []


@pytest.mark.parametrize("case", CASES)
def test_every_resource_has_a_provider_of_its_own_cloud_and_a_parent(case: str) -> None:
    recorded = whole(case)
    tops = {r.urn for r in recorded if r.type in ("tritonfleet:platform:Platform", "tritonfleet:serving:Serving")}
    tops.add(recorded.one(f"tritonfleet:clouds:{class_of(case).__name__}").urn)

    for resource in recorded:
        package = resource.type.partition(":")[0]
        assert package in TOLD[cloud_of(case)].packages | OF_EVERY_CLOUD, resource.urn
        if resource.provider is not None:
            assert resource.provider in recorded.resources, resource.urn
            assert resource.provider.split("::")[2].rpartition("$")[2] == f"pulumi:providers:{package}", resource.urn
        elif package not in ("pulumi", "tritonfleet"):
            raise AssertionError(f"{resource.urn} has no provider, and would take the default one")
        if resource.urn not in tops and not resource.type.startswith("pulumi:providers:"):
            assert "tritonfleet:" in resource.parent, f"{resource.urn} is nobody's child"


@pytest.mark.parametrize("case", CASES)
def test_a_preview_registers_what_an_update_does(case: str) -> None:
    update, preview = whole(case), whole(case, preview=True)

    assert set(preview.resources) == set(update.resources)
    for urn, planned in preview.resources.items():
        made = update.resources[urn]
        assert (planned.protect, planned.retain_on_delete) == (made.protect, made.retain_on_delete), urn
        assert planned.depends_on <= made.depends_on, urn
        assert set(planned.inputs) == set(made.inputs), urn
        for key, value in planned.inputs.items():
            if UNKNOWN not in str(value):
                assert value == made.inputs[key], (urn, key)


@pytest.mark.parametrize("case", CASES)
def test_two_runs_register_the_same(case: str) -> None:
    first, second = whole(case), deployed(plan_of(case), class_of(case))

    assert first.resources == second.resources


@pytest.mark.parametrize("case", CASES)
def test_claims_have_the_names_that_pods_mount(case: str) -> None:
    answers = asked(case)
    claims = {claim.inputs["metadata"]["name"]: claim for claim in answers.recorded.of("PersistentVolumeClaim")}
    weights = {} if case == "existing" else {model.name: f"weights-{model.name}" for model in plan_of(case).models}

    # A storage class gives every claim a volume of its own: there pods alone say that they only read.
    reading = "engines" if case == "existing" else "engines-readonly"
    assert (answers.volumes.engines_rw, answers.volumes.engines_ro) == ("engines", reading)
    assert answers.volumes.weights == weights
    assert {"engines", reading, *weights.values()} == claims.keys()
    assert {claim.inputs["metadata"]["namespace"] for claim in claims.values()} == {"ns"}
    waited = {needed for urn in answers.recorded.outputs["volumes"] for needed in closure(answers.recorded, urn)}
    assert {claim.urn for claim in claims.values()} <= waited | {*answers.recorded.outputs["volumes"]}


@pytest.mark.parametrize("case", CASES)
def test_serving_pods_mount_nothing_to_write_to(case: str) -> None:
    plan = plan_of(case) if case == "existing" else from_bucket(plan_of(case), "pytorch")
    recorded = deployed(plan, class_of(case))
    shared = {"engines", "engines-readonly", *(f"weights-{model.name}" for model in plan.models)}
    mounted: set[str] = set()

    for one in recorded.of("LeaderWorkerSet"):
        group = one.inputs["spec"]["leaderWorkerTemplate"]
        for template in (group["leaderTemplate"], group["workerTemplate"]):
            of_pod = template["spec"]["volumes"]
            volumes = {v["name"]: v["persistentVolumeClaim"] for v in of_pod if "persistentVolumeClaim" in v}
            mounted |= {claim["claimName"] for claim in volumes.values()}
            containers = [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
            for mount in (mount for container in containers for mount in container.get("volumeMounts", [])):
                claim = volumes.get(mount["name"])
                if claim and claim["claimName"] in shared:
                    assert mount.get("readOnly") or claim.get("readOnly"), (one.name, mount)

    if case == "existing":
        assert mounted == {"engines"}
    else:
        assert "engines" not in mounted, "whoever serves could write what others load"
        assert mounted & shared >= {"engines-readonly"} | {f"weights-{model.name}" for model in plan.models}


@pytest.mark.parametrize("case", CASES)
def test_nobody_gets_no_rights(case: str) -> None:
    answers = asked(case)

    assert answers.nobody.resources == ()
    if case != "existing":
        assert answers.nobody.annotations == {}


@pytest.mark.parametrize("case", MANAGED)
def test_a_reader_gets_its_prefix_and_its_pods_wait_for_that(case: str) -> None:
    answers = asked(case)
    resources = [answers.recorded.resources[urn] for urn in answers.recorded.outputs["reader"]]
    assert resources, "nothing gives the right to read"
    rights = [text for r in [*resources, *answers.recorded] if "reader" in r.name for text in texts(r.inputs)]
    assert any(PREFIX in text for text in rights), "the right is to the one prefix"
    assert all(UNKNOWN not in str(value) for value in answers.recorded.outputs["annotations"].values())

    plan = from_bucket(plan_of(case), "pytorch")
    recorded = deployed(plan, class_of(case))
    for model in plan.models:
        needed = closure(recorded, recorded.one("LeaderWorkerSet", f"serving-{model.name}-set").urn)
        granted = {r.urn for r in recorded if f"-{model.name}-serve" in r.name and "tritonfleet:" not in r.type}
        assert granted
        assert granted & needed, f"{model.name} may start before it may read"


@pytest.mark.parametrize("case", MANAGED)
def test_a_fetcher_reads_below_its_prefix_of_a_bucket_that_is_not_the_stacks(case: str) -> None:
    answers = asked(case)
    resources = [answers.recorded.resources[urn] for urn in answers.recorded.outputs["fetcher"]]
    assert answers.fetcher is not None
    assert resources, "nothing gives the right to read"
    rights = [str(r.inputs) for r in answers.recorded]
    assert any("elsewhere" in right and PREFIX in right for right in rights), "the right is to the one prefix of it"
    assert not any(r.type == TOLD[cloud_of(case)].bucket and "elsewhere" in str(r.inputs) for r in answers.recorded)

    plan = from_source(case)
    recorded = deployed(plan, class_of(case))
    fetches = recorded.of("Job", "-weights-")
    assert len(fetches) == len(plan.models)
    policies = {policy.inputs["metadata"]["name"]: policy.inputs["spec"] for policy in recorded.of("NetworkPolicy")}
    for fetch in fetches:
        template = fetch.inputs["spec"]["template"]
        account = template["spec"]["serviceAccountName"]
        needed = closure(recorded, fetch.urn)
        granted = {r.urn for r in recorded if account in r.name and r.type.partition(":")[0] in OF_ITS_OWN[case]}
        assert granted
        assert granted <= needed, "it may start before it may read"
        assert answers.fetcher.pod_labels.items() <= template["metadata"]["labels"].items()
        ways = [(peer["ipBlock"]["cidr"], port["port"]) for peer, port in ways_of(policies[account])]
        assert ways[0] == ("0.0.0.0/0", 443)
        assert ways[1:] == [(way.cidr, way.port) for way in answers.fetcher.egress]
    assert deployed(plan, class_of(case)).resources == recorded.resources
    assert deployed(plan, class_of(case), preview=True).resources.keys() == recorded.resources.keys()


OF_ITS_OWN = {case: TOLD[cloud_of(case)].packages for case in MANAGED}


def ways_of(spec: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each place that a network policy lets pods go to, and the port there."""
    for rule in spec["egress"]:
        for peer in rule["to"]:
            for port in rule["ports"]:
                yield peer, port


@pytest.mark.parametrize("case", CASES)
def test_who_reads_what_everybody_may_is_nobody(case: str) -> None:
    def edit(values: dict[str, Any]) -> None:
        for model in values["models"]:
            config = KNOWN_MODELS / f"{known_by_source().get(model['source'], 'smollm2-135m')}.json"
            public = {"source": "gs://public/x", "source_access": "anonymous", "revision": "v1"}
            model |= public | {"config": str(config)}

    recorded = deployed(edited(case, edit), class_of(case))
    (fetch,) = recorded.of("Job", "-weights-")
    spec = fetch.inputs["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    account = recorded.one("ServiceAccount", f"{fetch.name.removesuffix('-job')}-account")

    assert "--anonymous" in container["command"]
    assert "annotations" not in account.inputs["metadata"]
    packages = TOLD[cloud_of(case)].packages
    assert not [r for r in recorded if spec["serviceAccountName"] in r.name and r.type.partition(":")[0] in packages]


@pytest.mark.parametrize("case", MANAGED)
def test_the_order_of_node_groups_is_said_once(case: str) -> None:
    answers, plan = asked(case), site(plan_of(case))
    pattern = answers.autoscaling.group_pattern
    if pattern is None:
        said = str([answers.recorded.resources[urn].inputs for urn in answers.recorded.outputs["autoscaling"]])
        assert answers.autoscaling.chart is None
        for pool in plan.pools:
            positions = [said.find(group.capacity) for group in pool.node_groups]
            assert -1 not in positions
            assert positions == sorted(positions), "a cheaper node group comes first"
        return
    names = [pool.scaled_as for pool in TOLD[cloud_of(case)].pools(answers.recorded)]
    for group in (group for pool in plan.pools for group in pool.node_groups):
        matched = [name for name in names if re.search(pattern(group), name)]
        assert len(matched) == 1, (group.name, matched)
    assert len(names) == sum(len(pool.node_groups) for pool in plan.pools)


@pytest.mark.parametrize("case", CASES)
def test_charts_are_pinned(case: str) -> None:
    assert {chart.chart for chart in asked(case).charts} <= CHARTS.keys()
    releases = whole(case).of("kubernetes:helm.sh/v3:Release")
    pinned = {(chart.name, chart.version) for chart in CHARTS.values()}
    assert {(release.inputs["chart"], release.inputs["version"]) for release in releases} <= pinned


@pytest.mark.parametrize("case", MANAGED)
def test_node_pools_are_the_plans(case: str) -> None:
    recorded = whole(case)
    found = {pool.labels[NODE_GROUP_LABEL]: pool for pool in TOLD[cloud_of(case)].pools(recorded)}
    groups = {group.name: group for pool in site(plan_of(case)).pools for group in pool.node_groups}

    assert found.keys() == groups.keys()
    for name, group in groups.items():
        pool = found[name]
        assert pool.capacity == group.capacity
        assert pool.labels == group.labels
        assert pool.taints == {(taint.key, taint.value, taint.effect) for taint in group.taints}
        assert pool.nodes == (group.min_nodes, group.max_nodes)
        assert pool.zones == set(group.zones)
        assert pool.urn in recorded.outputs["nodes"], "charts that need nodes do not wait for it"


def guarded_things(case: str, recorded: Recorded) -> dict[str, set[bool]]:
    """For each thing that `allow_replacement` can name, whether its resources are protected."""
    told = TOLD[cloud_of(case)]
    claims = ("PersistentVolume", "PersistentVolumeClaim")
    data = {kind for kind in (told.bucket, *told.files) if kind}
    return {
        "cluster": {r.protect for r in recorded if r.type == told.cluster},
        "storage": {r.protect for r in recorded if r.type in data}
        | {r.protect for kind in claims for r in recorded.of(kind) if "engines" in r.name},
        "pools": {recorded.resources[pool.urn].protect for pool in told.pools(recorded)},
    }


@pytest.mark.parametrize("case", MANAGED)
def test_what_must_not_be_replaced_by_accident_is_protected(case: str) -> None:
    assert guarded_things(case, whole(case)) == {thing: {True} for thing in ("cluster", "storage", "pools")}


@pytest.mark.parametrize("case", MANAGED)
@pytest.mark.parametrize("thing", ["cluster", "storage", "pools"])
def test_a_stack_that_means_it_may_replace_one_thing(case: str, thing: str) -> None:
    named = [f"pools.{pool.name}" for pool in site(plan_of(case)).pools] if thing == "pools" else [thing]
    plan = edited(case, lambda values: values.update(allow_replacement=named))

    recorded = deployed(plan, class_of(case))
    assert guarded_things(case, recorded) == {other: {other != thing} for other in ("cluster", "storage", "pools")}


@pytest.mark.parametrize("case", MANAGED)
def test_a_stack_that_keeps_no_data_can_be_destroyed(case: str) -> None:
    plan = edited(case, lambda values: values.setdefault("storage", {}).update(keep_data=False))
    recorded = deployed(plan, class_of(case))

    assert [r.urn for r in recorded if r.protect] == []
    kept = [r.urn for r in recorded if r.retain_on_delete]
    assert [urn for urn in kept if "ConfigMap" not in urn] == []
