"""What is an update and what a replacement, resource by resource; tests/engine/test_diff.py asks the real engine."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("pulumi", reason="Pulumi's packages are not installed: `make setup` installs them")

from fleet.diff.compare import MASK, Resource, ResourceChange, compare, unguarded
from fleet.diff.rules import rule_of, steps_of
from fleet.recorder import Recording, plain
from fleet.synthesis import record_program
from planner.stack_file import read_stack_file
from tests.engine.simulated.changes import SHRINKING, refused, replacing

ROOT = Path(__file__).parents[2]
STACKS = sorted(path.stem.removeprefix("Pulumi.") for path in (ROOT / "stacks").glob("Pulumi.*.yaml"))
SUBNETWORK, NODE_POOL = "gcp:compute/subnetwork:Subnetwork", "gcp:container/nodePool:NodePool"
AGENT_POOL = "azure-native:containerservice:AgentPool"
GROUP, VPC, SUBNET = "aws:eks/nodeGroup:NodeGroup", "aws:ec2/vpc:Vpc", "aws:ec2/subnet:Subnet"
LUSTRE, CLAIM = "aws:fsx/lustreFileSystem:LustreFileSystem", "kubernetes:core/v1:PersistentVolumeClaim"
UNKNOWN = {"$unknown": True}


def resource(type_: str, name: str = "it", *, inputs: dict[str, Any] | None = None, **options: Any) -> Resource:
    """As the recorder writes it."""
    defaults: dict[str, Any] = {
        "urn": f"urn:pulumi:s::tritonfleet::{type_}::{name}",
        "type": type_,
        "name": name,
        "custom": True,
        "inputs": inputs or {},
        "parent": "urn:pulumi:s::tritonfleet::pulumi:pulumi:Stack::tritonfleet-s",
        "provider": None,
        "providers": {},
        "dependencies": [],
        "property_dependencies": {},
        "protect": False,
        "retain_on_delete": False,
        "delete_before_replace": False,
        "ignore_changes": (),
        "replace_on_changes": (),
        "aliases": (),
    }
    return defaults | options


def only(before: list[Resource], after: list[Resource], name: str = "it") -> ResourceChange | None:
    found = [change for change in compare(before, after) if change.name == name]
    return found[0] if found else None


def of_inputs(type_: str, before: dict[str, Any], after: dict[str, Any], **options: Any) -> str:
    change = only([resource(type_, inputs=before, **options)], [resource(type_, inputs=after, **options)])
    return change.action if change else "same"


@pytest.mark.parametrize(
    ("type_", "before", "after", "expected"),
    [
        (GROUP, {"labels": {"a.b/c": "1"}}, {"labels": {"a.b/c": "1"}}, "same"),
        (GROUP, {"labels": {"a.b/c": "1"}}, {"labels": {"a.b/c": "2"}}, "changed"),
        (GROUP, {"scalingConfig": {"maxSize": 2}}, {"scalingConfig": {"maxSize": 3}}, "changed"),
        (GROUP, {"instanceTypes": ["a", "b"]}, {"instanceTypes": ["a"]}, "replaced"),
        (GROUP, {"launchTemplate": {"version": "1"}}, {"launchTemplate": {"version": "2"}}, "changed"),
        (GROUP, {"launchTemplate": {"id": "a"}}, {"launchTemplate": {"id": "b"}}, "replaced"),
        (GROUP, {"launchTemplate": {"id": "a"}}, {}, "replaced"),
        (GROUP, {"remoteAccess": {"ec2SshKey": "a"}}, {}, "replaced"),
        (LUSTRE, {"storageCapacity": 1200}, {"storageCapacity": 2400}, "changed"),
        (LUSTRE, {"storageCapacity": 2400}, {"storageCapacity": 1200}, "replaced"),
        (SUBNETWORK, {"ipCidrRange": "10.0.0.0/20"}, {"ipCidrRange": "10.0.0.0/19"}, "changed"),
        (SUBNETWORK, {"ipCidrRange": "10.0.0.0/19"}, {"ipCidrRange": "10.0.0.0/20"}, "replaced"),
        ("aws:eks/cluster:Cluster", {}, {"encryptionConfig": {"provider": {}}}, "changed"),
        ("aws:eks/cluster:Cluster", {"encryptionConfig": {"provider": {}}}, {}, "replaced"),
        (CLAIM, {"spec": {"storageClassName": "a"}}, {"spec": {"storageClassName": "b"}}, "replaced"),
        ("kubernetes:apps/v1:Deployment", {"spec": {"replicas": 1}}, {"spec": {"replicas": 2}}, "changed"),
        ("kubernetes:any.io/v1:Thing", {"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}, "replaced"),
        ("kubernetes:any.io/v1:Thing", {"metadata": {"labels": {}}}, {"metadata": {"labels": {"a": "b"}}}, "changed"),
        ("kubernetes:helm.sh/v3:Release", {"values": {"a": 1}}, {"values": {"a": 2}}, "changed"),
        ("kubernetes:helm.sh/v3:Release", {"namespace": "a"}, {"namespace": "b"}, "replaced"),
        (NODE_POOL, {"nodeConfig": {"machineType": "a"}}, {"nodeConfig": {"machineType": "b"}}, "changed"),
        (NODE_POOL, {"nodeConfig": {"spot": True}}, {"nodeConfig": {}}, "replaced"),
        (AGENT_POOL, {"gpuInstanceProfile": "MIG1g"}, {"gpuInstanceProfile": "MIG2g"}, "replaced"),
    ],
)  # fmt: skip
def test_the_providers_rule_decides(type_: str, before: dict[str, Any], after: dict[str, Any], expected: str) -> None:
    assert of_inputs(type_, before, after) == expected


def test_options_of_the_program_come_first() -> None:
    sizes = {"scalingConfig": {"desiredSize": 1, "maxSize": 2}}, {"scalingConfig": {"desiredSize": 5, "maxSize": 2}}
    assert of_inputs(GROUP, *sizes, ignore_changes=["scalingConfig.desiredSize"]) == "same"
    notes = {"metadata": {"annotations": {"a.b/c": "1"}}}, {"metadata": {"annotations": {"a.b/c": "2"}}}
    job = "kubernetes:batch/v1:Job"
    assert of_inputs(job, *notes) == "changed"
    assert of_inputs(job, *notes, replace_on_changes=['metadata.annotations["a.b/c"]']) == "replaced"
    templates = {"spec": {"template": {"spec": {"x": 1}}}}, {"spec": {"template": {"spec": {"x": 2}}}}
    assert of_inputs(job, *templates) == "replaced"
    assert of_inputs(job, *templates, ignore_changes=["spec"]) == "same"
    assert steps_of('a.b[0]["c.d"].e[*].f') == ("a", "b", "c.d", "e", "f")


@pytest.mark.parametrize(("settings", "expected"), [({}, "replaced"), ({"enableSecretMutable": "true"}, "changed")])
def test_a_secret_is_replaced_unless_its_provider_has_it_mutable(settings: dict[str, Any], expected: str) -> None:
    provider = resource("pulumi:providers:kubernetes", "cluster", inputs=settings)
    olds, news = (
        resource("kubernetes:core/v1:Secret", inputs={"stringData": {"key": text}}, provider=provider["urn"])
        for text in ("one", "two")
    )
    change = only([provider, olds], [provider, news])
    assert change
    assert change.action == expected
    assert [(field.before, field.after) for field in change.fields] == [(MASK, MASK)]
    assert "two" not in repr(change)


def test_what_refers_to_a_replaced_resource_follows_it() -> None:
    def world(cidr: str) -> list[Resource]:
        vpc = resource(VPC, "vpc", inputs={"cidrBlock": cidr})
        of_vpc = {"vpcId": (vpc["urn"],)}
        subnet = resource(SUBNET, "subnet", inputs={"vpcId": UNKNOWN}, property_dependencies=of_vpc)
        of_subnet = {"subnetIds": (subnet["urn"],)}
        group = resource(GROUP, "group", inputs={"subnetIds": [UNKNOWN]}, property_dependencies=of_subnet)
        note = resource(
            "aws:kms/key:Key", "key", inputs={"policy": UNKNOWN}, property_dependencies={"policy": (vpc["urn"],)}
        )
        other = resource(SUBNET, "other", inputs={"vpcId": UNKNOWN})
        asked = resource("aws:iam/role:Role", "asked", inputs={"description": UNKNOWN}, dependencies=[vpc["urn"]])
        return [vpc, subnet, group, note, other, asked]

    found = {change.name: change.action for change in compare(world("10.0.0.0/16"), world("10.1.0.0/16"))}
    replaced = dict.fromkeys(("vpc", "subnet", "group"), "replaced")
    assert found == replaced | {"key": "changed", "asked": "changed"}


def test_a_text_of_which_a_word_is_unknown_is_compared_by_the_others() -> None:
    def world(region: str) -> list[Resource]:
        deployed = {"policy": f"arn:{region}:stand-in", "tags": {"a": "stand-in"}}
        inputs = {"policy": UNKNOWN, "tags": {"a": UNKNOWN}}
        return [resource("aws:iam/rolePolicy:RolePolicy", inputs=inputs, deployed=deployed)]

    change = only(world("a"), world("b"))
    assert change
    assert (change.action, [field.path for field in change.fields]) == ("changed", ["policy"])
    assert "stand-in" not in repr(change)
    assert compare(world("a"), world("a")) == ()


def test_another_version_of_a_launch_template_reaches_its_nodes() -> None:
    def world(script: str) -> list[Resource]:
        template = resource("aws:ec2/launchTemplate:LaunchTemplate", "template", inputs={"userData": script})
        inputs = {"launchTemplate": {"id": UNKNOWN, "version": UNKNOWN}}
        return [template, resource(GROUP, inputs=inputs, property_dependencies={"launchTemplate": (template["urn"],)})]

    change = only(world("a"), world("b"))
    assert change
    assert (change.action, [field.path for field in change.fields]) == ("changed", ["launchTemplate.version"])


def test_another_region_is_another_place_for_what_lies_in_one() -> None:
    def world(region: str) -> list[Resource]:
        provider = resource("pulumi:providers:aws", "aws", inputs={"region": region})
        types = ("aws:s3/bucket:Bucket", "aws:iam/role:Role")
        return [provider, *(resource(type_, type_[4:6], provider=provider["urn"]) for type_ in types)]

    found = {change.name: change.action for change in compare(world("us-east-1"), world("us-west-2"))}
    assert found == {"aws": "changed", "s3": "replaced"}


def test_everything_of_another_cluster_is_made_anew() -> None:
    def world(cluster: str) -> list[Resource]:
        provider = resource("pulumi:providers:kubernetes", "cluster", inputs={"clusterIdentifier": cluster})
        return [provider, resource("kubernetes:core/v1:Service", provider=provider["urn"])]

    change = only(world("a"), world("b"))
    assert change
    assert change.action == "replaced"


def test_an_alias_is_no_other_resource() -> None:
    old = resource("tritonfleet:a:Old", "parent", custom=False)
    child = f"{old['urn'].replace('::parent', '')}${VPC}::child"
    olds = [old, resource(VPC, "child", urn=child, parent=old["urn"])]
    new = resource("tritonfleet:a:New", "parent", custom=False, aliases=("tritonfleet:a:Old::parent",))
    news = [new, resource(VPC, "child", urn=child.replace("Old", "New"), parent=new["urn"])]
    assert compare(olds, news) == ()
    assert len(compare(olds, [resource("tritonfleet:a:New", "parent", custom=False), news[1]])) == 4


def test_guards_are_told() -> None:
    guarded = resource(LUSTRE, inputs={"storageCapacity": 2400}, protect=True, retain_on_delete=True)
    gone = only([guarded], [])
    assert gone
    assert (gone.action, gone.protected, gone.retained) == ("deleted", True, True)
    assert unguarded([guarded], [resource(LUSTRE)]) == (guarded["urn"],)
    assert unguarded([resource(LUSTRE)], [guarded]) == unguarded([guarded], [guarded]) == ()
    smaller = only([guarded], [resource(LUSTRE, inputs={"storageCapacity": 1200})])
    assert smaller
    assert (smaller.action, smaller.protected) == ("replaced", False), "the engine wants both"


@functools.cache
def recorded(stack: str) -> Recording:
    return record_program(read_stack_file(ROOT / "stacks" / f"Pulumi.{stack}.yaml"), stack=stack)


@pytest.mark.parametrize("stack", STACKS)
def test_every_type_has_a_rule_and_two_readings_of_the_documentation_agree(stack: str) -> None:
    """The simulated clouds have tables of their own, from the providers' documentation; here are the sources'."""
    disagreed: list[str] = []
    for one in recorded(stack).resources:
        rule = rule_of(one.type)
        assert rule or not one.custom, one.type
        if rule is None or one.type == "eks:index:Cluster":
            continue  # of pulumi-eks' component the table has what replaces the cluster in it
        for path in _paths(plain(one.inputs), ""):
            ours = any(one_.condition == "" and one_.fires(steps_of(path), 1, 2) for one_ in rule.replaced_by)
            not_here = any(one_.fires(steps_of(path), 1, 2) for one_ in rule.refused)
            theirs = bool(replacing(one.type, [path]))
            conditional = any(one_.condition and one_.steps == steps_of(path) for one_ in rule.replaced_by)
            # The simulated provider takes Secrets for mutable, as every provider of ours has them.
            if one.type == "kubernetes:core/v1:Secret" or conditional or path == SHRINKING.get(one.type):
                continue
            if ours != theirs or (refused(one.type, [path]) and not not_here):
                disagreed.append(f"{one.type} {path}: {ours}, simulated {theirs}")
    assert sorted(set(disagreed)) == []


def _paths(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in cast(dict[str, Any], value).items():
            yield from _paths(item, f"{path}.{key}" if path else key)
    elif path in ("apiVersion", "kind"):
        return  # another one is another type, and so another URN
    elif isinstance(value, list) and value:
        for index, item in enumerate(cast(list[Any], value)):
            yield from _paths(item, f"{path}[{index}]")
    else:
        yield path
