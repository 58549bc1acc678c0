"""Node groups: which nodes there can be, what they are made of, and what the autoscaler is told of them."""

import re
from dataclasses import replace

import pytest

from components.clouds.aws.pools import TEMPLATE_TAG, network_interfaces, scaling_group_pattern
from planner.fleet import CloudPlan, NodeGroupPlan, PoolPlan
from tests.components.aws.stacks import EXAMPLES, build, built, site
from tests.components.world import Recorded, Registered

RDMA, MIG, PLAIN = "aws-llama-405b", "aws-small-mig", "aws-dev"


def with_groups(plan: CloudPlan, *groups: NodeGroupPlan, **changes: object) -> CloudPlan:
    """The plan, its first pool having these node groups."""
    pool: PoolPlan = replace(plan.pools[0], node_groups=groups or plan.pools[0].node_groups, **changes)  # pyright: ignore[reportArgumentType]
    return replace(plan, pools=(pool, *plan.pools[1:]))


def reserved(plan: CloudPlan) -> CloudPlan:
    group = plan.pools[0].node_groups[0]
    block = replace(group, name="h100-reserved", capacity="reserved", reservation="cr-0123456789abcdef0", taints=())
    return with_groups(plan, block)


def tags(recorded: Recorded, group: Registered) -> dict[str, str]:
    """What the autoscaler finds on a node group's Auto Scaling group, prefix removed."""
    found = [tag.inputs for tag in recorded.of("aws:autoscaling/tag:Tag", f"{group.name}-")]
    assert all(tag["tag"]["propagateAtLaunch"] is False for tag in found)
    assert {tag["autoscalingGroupName"] for tag in found} == {f"{group.name}-name"}
    return {tag["tag"]["key"].removeprefix(TEMPLATE_TAG): tag["tag"]["value"] for tag in found}


@pytest.mark.parametrize("stack", EXAMPLES)
def test_every_planned_node_group_becomes_one_of_its_size_labels_and_taints(stack: str) -> None:
    recorded = built(stack)
    planned = [(pool, group) for pool in site(stack).pools for group in pool.node_groups]

    assert len(recorded.of("NodeGroup")) == 1 + len(planned)
    for _, group in planned:
        nodes = recorded.one("NodeGroup", f"fleet-{group.name}").inputs
        assert nodes["amiType"] == "AL2023_x86_64_NVIDIA"
        assert nodes["version"] == site(stack).cluster.kubernetes_version
        assert nodes["labels"] == group.labels
        assert nodes["scalingConfig"] == {
            "minSize": group.min_nodes,
            "maxSize": group.max_nodes,
            "desiredSize": group.min_nodes,
        }
        assert nodes["taints"] == [
            {"key": taint.key, "value": taint.value, "effect": "NO_SCHEDULE"} for taint in group.taints
        ]
        assert nodes["subnetIds"] == [f"fleet-network-private-{zone}-id" for zone in group.zones]
        assert nodes["nodeRoleArn"].endswith(":fleet-node")
        assert nodes["clusterName"] == "tritonfleet-stack"


@pytest.mark.parametrize("stack", EXAMPLES)
def test_size_is_the_autoscalers_and_sick_nodes_are_replaced_one_by_one(stack: str) -> None:
    for group in built(stack).of("NodeGroup"):
        # Of the system group nobody else changes the size: an edit of the stack has to.
        assert group.ignore_changes == (() if group.name == "fleet-system" else ("scalingConfig.desiredSize",))
        assert group.inputs["nodeRepairConfig"] == {"enabled": True}
        assert group.inputs["updateConfig"] == {"maxUnavailable": 1}


@pytest.mark.parametrize("stack", EXAMPLES)
def test_disks_are_encrypted_and_pods_cannot_take_the_nodes_credentials(stack: str) -> None:
    disks = {f"fleet-{group.name}": pool.disk_gib for pool in site(stack).pools for group in pool.node_groups}

    for template in built(stack).of("LaunchTemplate"):
        (disk,) = template.inputs["blockDeviceMappings"]
        assert disk["deviceName"] == "/dev/xvda"
        assert disk["ebs"] == {
            "volumeSize": disks.get(template.name, 100),
            "volumeType": "gp3",
            "encrypted": "true",
            "deleteOnTermination": "true",
        }
        assert template.inputs["metadataOptions"] == {
            "httpEndpoint": "enabled",
            "httpTokens": "required",
            "httpPutResponseHopLimit": 1,
        }
        tagged = {spec["resourceType"]: spec["tags"] for spec in template.inputs["tagSpecifications"]}
        assert set(tagged) == {"instance", "volume", "network-interface"}
        assert all(spec["tritonfleet.io/cluster"] == "tritonfleet-stack" for spec in tagged.values())


@pytest.mark.parametrize("stack", EXAMPLES)
def test_a_node_group_starts_what_its_own_template_says(stack: str) -> None:
    recorded = built(stack)

    for group in recorded.of("NodeGroup"):
        template = recorded.one("LaunchTemplate", group.name)
        assert group.inputs["launchTemplate"] == {"id": f"{template.name}-id", "version": "1"}


def test_spot_spreads_over_several_instance_types_that_stand_on_the_node_group() -> None:
    plan = site(PLAIN)
    types = ("g6.xlarge", "g6.2xlarge", "g5.xlarge")
    groups = [replace(group, instance_types=types) for group in plan.pools[0].node_groups]
    recorded = build(with_groups(plan, *groups))

    for capacity, expected in (("spot", "SPOT"), ("on-demand", "ON_DEMAND")):
        nodes = recorded.one("NodeGroup", f"l4-{capacity}").inputs
        assert (nodes["capacityType"], nodes["instanceTypes"]) == (expected, list(types))
        template = recorded.one("LaunchTemplate", f"l4-{capacity}").inputs
        assert not {"instanceType", "instanceMarketOptions", "capacityReservationSpecification"} & set(template)


def test_a_capacity_block_is_named_in_the_template_with_its_type() -> None:
    recorded = build(reserved(site(RDMA)))
    nodes, template = (recorded.one(kind, "h100-reserved").inputs for kind in ("NodeGroup", "LaunchTemplate"))

    assert nodes["capacityType"] == "CAPACITY_BLOCK"
    assert "instanceTypes" not in nodes
    assert template["instanceType"] == "p5.48xlarge"
    assert template["instanceMarketOptions"] == {"marketType": "capacity-block"}
    target = template["capacityReservationSpecification"]["capacityReservationTarget"]
    assert target == {"capacityReservationId": "cr-0123456789abcdef0"}
    # Its instances lie together anyway, and its reservation is in no placement group.
    assert "placement" not in template
    assert not recorded.of("PlacementGroup")
    assert len(template["networkInterfaces"]) == 32


def test_rdma_nodes_have_every_efa_interface_in_both_security_groups() -> None:
    recorded = built(RDMA)

    for name in ("h100-spot", "h100-on-demand"):
        template = recorded.one("LaunchTemplate", name).inputs
        interfaces = template["networkInterfaces"]
        assert [i["networkCardIndex"] for i in interfaces] == list(range(32))
        assert [i["deviceIndex"] for i in interfaces] == [0] + [1] * 31
        assert [i["interfaceType"] for i in interfaces] == ["efa"] + ["efa-only"] * 31
        for interface in interfaces:
            assert interface["securityGroups"] == ["fleet-cluster-eks-clusterSecurityGroupId", "fleet-h100-efa-id"]
            assert interface["deleteOnTermination"] == "true"
            # EKS refuses a template that names subnets.
            assert not {"subnetId", "associatePublicIpAddress"} & set(interface)
        # With interfaces, groups may stand on them only.
        assert "vpcSecurityGroupIds" not in template


@pytest.mark.parametrize(
    ("instance_type", "count", "kinds", "device"),
    [
        ("g6.8xlarge", 1, ["efa"], 1),
        ("p4d.24xlarge", 4, ["efa", "efa-only", "efa-only", "efa-only"], 1),
        ("p6-b200.48xlarge", 8, ["efa"] + ["efa-only"] * 7, 1),
        ("p6-b300.48xlarge", 16, ["interface"] + ["efa-only"] * 16, 0),
    ],
)
def test_interfaces_by_instance_type(instance_type: str, count: int, kinds: list[str], device: int) -> None:
    interfaces = network_interfaces(instance_type, count, ["sg"])

    assert [i.interface_type for i in interfaces] == kinds
    assert [(i.network_card_index, i.device_index) for i in interfaces] == [
        (card, device if card else 0) for card in range(len(kinds))
    ]
    assert sum(str(i.interface_type).startswith("efa") for i in interfaces) == count


def test_efa_traffic_passes_only_between_members_in_both_directions() -> None:
    recorded = built(RDMA)

    for kind in ("SecurityGroupIngressRule", "SecurityGroupEgressRule"):
        rule = recorded.one(kind, "h100-efa").inputs
        assert rule["securityGroupId"] == rule["referencedSecurityGroupId"] == "fleet-h100-efa-id"
        assert rule["ipProtocol"] == "-1"
    assert recorded.one("SecurityGroup", "h100-efa").inputs["vpcId"] == "fleet-network-vpc-id"


def test_rdma_nodes_of_a_group_are_placed_close_together() -> None:
    recorded = built(RDMA)

    for name in ("h100-spot", "h100-on-demand"):
        near = recorded.one("PlacementGroup", name)
        assert near.inputs["strategy"] == "cluster"
        assert recorded.one("LaunchTemplate", name).inputs["placement"] == {"groupName": f"{near.name}-name"}


def test_pools_without_rdma_have_neither_efa_nor_placement_group() -> None:
    recorded = built(PLAIN)

    assert not recorded.of("PlacementGroup")
    assert not recorded.of("SecurityGroup", "efa")
    for template in recorded.of("LaunchTemplate"):
        assert not {"networkInterfaces", "placement"} & set(template.inputs)


@pytest.mark.parametrize("stack", EXAMPLES)
def test_the_autoscaler_knows_nodes_that_it_has_never_seen(stack: str) -> None:
    recorded = built(stack)

    for pool in site(stack).pools:
        for group in pool.node_groups:
            known = tags(recorded, recorded.one("NodeGroup", f"fleet-{group.name}"))
            for key, value in pool.node_selector.items():
                assert known[f"label/{key}"] == value
            for key, value in group.labels.items():
                assert known[f"label/{key}"] == value
            for key, value in group.allocatable.items():
                assert known[f"resources/{key}"] == value
            taints = {key.removeprefix("taint/"): value for key, value in known.items() if key.startswith("taint/")}
            # Start-up taints go by themselves: told of them, the autoscaler would never start a node.
            assert taints == {taint.key: f"{taint.value}:{taint.effect}" for taint in group.taints}


def test_the_autoscaler_knows_efa_huge_pages_and_slices() -> None:
    efa = tags(built(RDMA), built(RDMA).one("NodeGroup", "h100-spot"))
    mig = tags(built(MIG), built(MIG).one("NodeGroup", "mig-spot"))

    assert efa["resources/vpc.amazonaws.com/efa"] == "32"
    assert efa["resources/hugepages-2Mi"] == "10256Mi"
    assert efa["resources/nvidia.com/gpu"] == "8"
    assert "label/nvidia.com/mig.config.state" not in efa
    assert mig["resources/nvidia.com/mig-2g.20gb"] == "3"
    assert mig["label/nvidia.com/mig.config.state"] == "success"


def test_the_autoscaler_knows_the_disk_that_containers_lie_on() -> None:
    plan = site(PLAIN)
    on_root = build(replace(plan, storage=replace(plan.storage, node_cache=False)))

    # 85 % of 250 GB of NVMe, and of 200 GiB of EBS.
    assert tags(built(PLAIN), built(PLAIN).one("NodeGroup", "l4-spot"))["resources/ephemeral-storage"] == "212G"
    assert tags(on_root, on_root.one("NodeGroup", "l4-spot"))["resources/ephemeral-storage"] == "170Gi"


def test_tags_are_registered_before_anybody_knows_the_scaling_groups_name() -> None:
    known, preview = ({t.urn: t.inputs["tag"] for t in built(RDMA, preview=p).of("Tag")} for p in (False, True))

    assert known == preview
    assert known


def test_a_pattern_matches_its_own_group_and_no_other() -> None:
    spot, twice = (replace(site(RDMA).pools[0].node_groups[0], name=name) for name in ("h100-spot", "h100-spot-spot"))
    uuid = "8cbfc9a6-4f0e-1b2c-3d4e-5f60718293a4"

    assert re.search(scaling_group_pattern("fleet", spot), f"eks-fleet-h100-spot-1a2b3c4-{uuid}")
    assert not re.search(scaling_group_pattern("fleet", spot), f"eks-fleet-h100-spot-spot-1a2b3c4-{uuid}")
    assert not re.search(scaling_group_pattern("fleet", twice), f"eks-fleet-h100-spot-1a2b3c4-{uuid}")
    # A node group's own name begins as its logical one does.
    assert built(RDMA).one("NodeGroup", "fleet-h100-spot")


def test_system_nodes_are_on_demand_over_all_zones_and_fixed_in_number() -> None:
    nodes = built(RDMA).one("NodeGroup", "system").inputs

    assert (nodes["capacityType"], nodes["instanceTypes"]) == ("ON_DEMAND", ["m7i.large"])
    assert nodes["amiType"] == "AL2023_x86_64_STANDARD"
    assert nodes["scalingConfig"] == {"minSize": 2, "maxSize": 2, "desiredSize": 2}
    assert len(nodes["subnetIds"]) == 3
    assert "taints" not in nodes


@pytest.mark.parametrize(
    ("instance_type", "image"), [("m7g.large", "AL2023_ARM_64_STANDARD"), ("c7gn.xlarge", "AL2023_ARM_64_STANDARD")]
)
def test_system_nodes_may_be_graviton(instance_type: str, image: str) -> None:
    plan = site(PLAIN)
    cluster = plan.cluster.model_copy(update={"system_nodes": 3})
    nodes = build(replace(plan, cluster=cluster, system_instance_type=instance_type)).one("NodeGroup", "system").inputs

    assert (nodes["amiType"], nodes["instanceTypes"]) == (image, [instance_type])
    assert nodes["scalingConfig"]["maxSize"] == 3


def test_a_node_may_join_and_pull_and_nothing_else() -> None:
    recorded = built(RDMA)
    attached = [a.inputs["policyArn"] for a in recorded.of("RolePolicyAttachment") if a.name.startswith("fleet-node-")]

    assert {arn.rpartition("/")[2] for arn in attached} == {
        "AmazonEKSWorkerNodePolicy",
        "AmazonEC2ContainerRegistryPullOnly",
    }
    assert not [p.name for p in recorded.of("RolePolicy") if p.inputs["role"] == "fleet-node-name"]
    needed = {a.urn for a in recorded.of("RolePolicyAttachment", "fleet-node-")}
    assert needed <= recorded.one("NodeGroup", "h100-spot").depends_on
