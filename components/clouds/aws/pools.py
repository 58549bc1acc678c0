"""Node groups: one for the cluster's own pods, and one for every capacity type of a GPU pool."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws
from pulumi_aws.ec2 import LaunchTemplateNetworkInterfaceArgs as NetworkInterface
from pulumi_aws.eks.outputs import NodeGroupResource

from components.clouds.aws.network import NetworkIds
from components.clouds.aws.user_data import system_user_data, user_data, uses_local_disks
from components.clouds.base import guarded
from planner.cloud_config import CapacityType
from planner.fleet import CloudPlan, NodeGroupPlan, PoolPlan
from planner.pool_labels import MIG_STATE_LABEL

TEMPLATE_TAG = "k8s.io/cluster-autoscaler/node-template/"
"""Tags of an Auto Scaling group from which the autoscaler knows a node that does not exist yet."""

SYSTEM_DISK_GIB = 100
"""Holds Triton's image twice, packed and unpacked: the Job that downloads weights runs in it."""

_CAPACITY: Mapping[CapacityType, str] = {"spot": "SPOT", "on-demand": "ON_DEMAND", "reserved": "CAPACITY_BLOCK"}


@dataclass(frozen=True, kw_only=True)
class NodesArgs:
    """What all node groups of a cluster share. `security_group_id` is the cluster's, which its nodes talk in."""

    plan: CloudPlan
    cluster_name: str
    network: NetworkIds
    node_role_arn: pulumi.Input[str]
    security_group_id: pulumi.Input[str]
    depends_on: Sequence[pulumi.Resource]


class SystemNodes(pulumi.ComponentResource):
    """Nodes for controllers: fixed in number, without GPUs, on-demand, over all zones."""

    group: aws.eks.NodeGroup

    def __init__(self, name: str, args: NodesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AwsSystemNodes", name, None, opts)
        config = args.plan.cluster
        template = aws.ec2.LaunchTemplate(
            name,
            block_device_mappings=[_root_disk(SYSTEM_DISK_GIB)],
            metadata_options=_metadata(),
            user_data=_encoded(system_user_data(args.plan.storage)),
            tag_specifications=_tags(args.cluster_name, "system"),
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.group = _node_group(
            name,
            args,
            template,
            ami_type="AL2023_ARM_64_STANDARD" if _is_arm(args.plan.system_instance_type) else "AL2023_x86_64_STANDARD",
            capacity_type="ON_DEMAND",
            instance_types=[args.plan.system_instance_type],
            zones=list(args.network.private_subnets),
            size=(config.system_nodes, config.system_nodes),
            parent=self,
        )
        self.register_outputs({})


class GpuPool(pulumi.ComponentResource):
    """The node groups of one pool. The autoscaler grows and shrinks them, from and to zero."""

    groups: list[aws.eks.NodeGroup]

    def __init__(self, name: str, pool: PoolPlan, args: NodesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AwsGpuPool", name, None, opts)
        self._prefix = name
        fabric = self._fabric(args.network) if pool.rdma_interfaces else None
        self.groups = [self._group(pool, group, args, fabric) for group in pool.node_groups]
        self.register_outputs({})

    def _fabric(self, network: NetworkIds) -> aws.ec2.SecurityGroup:
        """The group of EFA interfaces. EFA's own traffic passes only between members, by rules in both directions."""
        child = pulumi.ResourceOptions(parent=self)
        group = aws.ec2.SecurityGroup(
            f"{self._prefix}-efa", vpc_id=network.vpc, description="Between the EFA interfaces of a pool", opts=child
        )
        for direction, rule in (("in", aws.vpc.SecurityGroupIngressRule), ("out", aws.vpc.SecurityGroupEgressRule)):
            rule(
                f"{self._prefix}-efa-{direction}",
                security_group_id=group.id,
                referenced_security_group_id=group.id,
                ip_protocol="-1",
                opts=child,
            )
        return group

    def _group(
        self, pool: PoolPlan, group: NodeGroupPlan, args: NodesArgs, fabric: aws.ec2.SecurityGroup | None
    ) -> aws.eks.NodeGroup:
        # The pool's name is in the component's already.
        name = f"{self._prefix}-{group.capacity}"
        template = self._template(name, pool, group, args, fabric)
        nodes = _node_group(
            name,
            args,
            template,
            ami_type="AL2023_x86_64_NVIDIA",
            capacity_type=_CAPACITY[group.capacity],
            # A capacity block is of one type, which then stands in the template.
            instance_types=None if group.capacity == "reserved" else list(group.instance_types),
            zones=group.zones,
            size=(group.min_nodes, group.max_nodes),
            protect=guarded(args.plan, f"pools.{pool.name}"),
            group=group,
            parent=self,
        )
        scaling_group = nodes.resources.apply(_scaling_group)
        for key, value in template_tags(pool, group, local_disks=uses_local_disks(pool, args.plan.storage)).items():
            aws.autoscaling.Tag(
                f"{name}-{key.removeprefix(TEMPLATE_TAG)}",
                autoscaling_group_name=scaling_group,
                tag=aws.autoscaling.TagTagArgs(key=key, value=value, propagate_at_launch=False),
                opts=pulumi.ResourceOptions(parent=self),
            )
        return nodes

    def _template(
        self,
        name: str,
        pool: PoolPlan,
        group: NodeGroupPlan,
        args: NodesArgs,
        fabric: aws.ec2.SecurityGroup | None,
    ) -> aws.ec2.LaunchTemplate:
        child = pulumi.ResourceOptions(parent=self)
        reserved = group.capacity == "reserved"
        interfaces, placement = None, None
        if fabric is not None:
            # With interfaces in the template EKS adds no security group of its own.
            shared: list[pulumi.Input[str]] = [args.security_group_id, fabric.id]
            interfaces = network_interfaces(group.instance_types[0], pool.rdma_interfaces, shared)
            # Instances of a capacity block lie close together already, and its reservation is in no placement group.
            if not reserved:
                near = aws.ec2.PlacementGroup(name, strategy="cluster", opts=child)
                placement = aws.ec2.LaunchTemplatePlacementArgs(group_name=near.name)
        return aws.ec2.LaunchTemplate(
            name,
            block_device_mappings=[_root_disk(pool.disk_gib)],
            metadata_options=_metadata(),
            network_interfaces=interfaces,
            placement=placement,
            user_data=_encoded(user_data(pool, group, args.plan.storage)),
            instance_type=group.instance_types[0] if reserved else None,
            instance_market_options=aws.ec2.LaunchTemplateInstanceMarketOptionsArgs(market_type="capacity-block")
            if reserved
            else None,
            capacity_reservation_specification=_reservation(group.reservation) if group.reservation else None,
            tag_specifications=_tags(args.cluster_name, group.name),
            opts=child,
        )


def network_interfaces(
    instance_type: str, count: int, security_groups: list[pulumi.Input[str]]
) -> list[NetworkInterface]:
    """`count` EFA interfaces, one on each network card (EC2 User Guide, "instances with multiple network cards").

    The first is also the node's network. Further ones carry EFA alone, so that 31 of a P5's take no IP addresses: as
    device 1 of their cards, which is how node groups of P4d and P5 are known to start. The first card of a P6-B300 has
    no EFA: there one more interface comes first, and EFA is device 0 of its cards (aws-parallelcluster issue 7143).
    """
    kinds, device = ["efa"] + ["efa-only"] * (count - 1), 1
    if instance_type.startswith("p6-b300."):
        kinds, device = ["interface"] + ["efa-only"] * count, 0
    return [
        NetworkInterface(
            network_card_index=card,
            device_index=0 if card == 0 else device,
            interface_type=kind,
            security_groups=security_groups,
            delete_on_termination="true",
        )
        for card, kind in enumerate(kinds)
    ]


def template_tags(pool: PoolPlan, group: NodeGroupPlan, *, local_disks: bool) -> dict[str, str]:
    """What a node of the group will be, for an autoscaler that has never seen one (its AWS provider's README).

    EKS itself tags the group as the autoscaler's (`k8s.io/cluster-autoscaler/enabled` and `/<cluster>`: EKS User Guide,
    "managed node groups").
    """
    labels = group.labels | ({MIG_STATE_LABEL: "success"} if pool.mig_profile else {})
    # The kubelet keeps a tenth of the disk to itself, and the file system takes its share.
    disk = f"{pool.local_nvme_gb * 85 // 100}G" if local_disks else f"{pool.disk_gib * 85 // 100}Gi"
    resources = {"ephemeral-storage": disk} | group.allocatable
    return {
        **{f"{TEMPLATE_TAG}label/{key}": value for key, value in labels.items()},
        **{f"{TEMPLATE_TAG}taint/{taint.key}": f"{taint.value}:{taint.effect}" for taint in group.taints},
        **{f"{TEMPLATE_TAG}resources/{key}": value for key, value in resources.items()},
    }


def scaling_group_pattern(cluster: str, group: NodeGroupPlan) -> str:
    """Matches the Auto Scaling group `eks-<name>-<UUID>` that EKS makes; Pulumi ends <name> in seven hex digits."""
    return f"^eks-{re.escape(cluster)}-{re.escape(group.name)}-[0-9a-f]{{7}}-[0-9a-f-]{{36}}$"


def _scaling_group(resources: Sequence[NodeGroupResource]) -> str:
    """The name of the one Auto Scaling group behind a node group."""
    groups = resources[0].autoscaling_groups or []
    return str(groups[0].name)  # optional by type only: a node group that is there has one


def _node_group(
    name: str,
    args: NodesArgs,
    template: aws.ec2.LaunchTemplate,
    *,
    ami_type: str,
    capacity_type: str,
    instance_types: list[str] | None,
    zones: Sequence[str],
    size: tuple[int, int],
    parent: pulumi.Resource,
    protect: bool = False,
    group: NodeGroupPlan | None = None,
) -> aws.eks.NodeGroup:
    smallest, largest = size
    taints = [
        aws.eks.NodeGroupTaintArgs(key=taint.key, value=taint.value, effect=_EFFECTS[taint.effect])
        for taint in (group.taints if group else ())
    ]
    return aws.eks.NodeGroup(
        name,
        cluster_name=args.cluster_name,
        version=args.plan.cluster.kubernetes_version,
        ami_type=ami_type,
        capacity_type=capacity_type,
        instance_types=instance_types,
        node_role_arn=args.node_role_arn,
        subnet_ids=args.network.subnets_of(zones),
        labels=dict(group.labels) if group else None,
        taints=taints or None,
        launch_template=aws.eks.NodeGroupLaunchTemplateArgs(id=template.id, version=template.latest_version.apply(str)),
        scaling_config=aws.eks.NodeGroupScalingConfigArgs(min_size=smallest, max_size=largest, desired_size=smallest),
        node_repair_config=aws.eks.NodeGroupNodeRepairConfigArgs(enabled=True),
        update_config=aws.eks.NodeGroupUpdateConfigArgs(max_unavailable=1),
        opts=pulumi.ResourceOptions(
            parent=parent,
            depends_on=list(args.depends_on),
            protect=protect,
            # The autoscaler's from the first minute. An edit of the group still sends the state's size, and that
            # is today's only because Pulumi.yaml has the state refreshed first. The system group has one size.
            ignore_changes=["scalingConfig.desiredSize"] if group else None,
        ),
    )


_EFFECTS = {"NoSchedule": "NO_SCHEDULE", "PreferNoSchedule": "PREFER_NO_SCHEDULE", "NoExecute": "NO_EXECUTE"}


def _root_disk(gib: int) -> aws.ec2.LaunchTemplateBlockDeviceMappingArgs:
    return aws.ec2.LaunchTemplateBlockDeviceMappingArgs(
        device_name="/dev/xvda",
        ebs=aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgs(
            volume_size=gib, volume_type="gp3", encrypted="true", delete_on_termination="true"
        ),
    )


def _encoded(script: str | None) -> str | None:
    return base64.b64encode(script.encode()).decode() if script else None


def _metadata() -> aws.ec2.LaunchTemplateMetadataOptionsArgs:
    # One hop ends in the node's own network: pods cannot ask for the node's credentials.
    return aws.ec2.LaunchTemplateMetadataOptionsArgs(
        http_endpoint="enabled", http_tokens="required", http_put_response_hop_limit=1
    )


def _tags(cluster_name: str, group: str) -> list[aws.ec2.LaunchTemplateTagSpecificationArgs]:
    """The provider's default tags stop at the template; what it launches is tagged here."""
    tags = {"Name": f"{cluster_name}-{group}", "tritonfleet.io/cluster": cluster_name}
    kinds = ("instance", "volume", "network-interface")
    return [aws.ec2.LaunchTemplateTagSpecificationArgs(resource_type=kind, tags=tags) for kind in kinds]


def _reservation(reservation_id: str) -> aws.ec2.LaunchTemplateCapacityReservationSpecificationArgs:
    target = aws.ec2.LaunchTemplateCapacityReservationSpecificationCapacityReservationTargetArgs(
        capacity_reservation_id=reservation_id
    )
    return aws.ec2.LaunchTemplateCapacityReservationSpecificationArgs(capacity_reservation_target=target)


def _is_arm(instance_type: str) -> bool:
    """Graviton families have a g after their number: m7g, c7gn, im4gn."""
    return re.match(r"[a-z]+[0-9]+g", instance_type) is not None
