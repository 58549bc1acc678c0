"""InfiniBand between the nodes of a pool: its driver and its devices, by NVIDIA's network operator."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi_kubernetes.apiextensions import CustomResource
from pulumi_kubernetes.apps.v1 import DaemonSet, DaemonSetSpecArgs
from pulumi_kubernetes.core.v1 import (
    AffinityArgs,
    ContainerArgs,
    Namespace,
    NodeAffinityArgs,
    NodeSelectorArgs,
    NodeSelectorRequirementArgs,
    NodeSelectorTermArgs,
    PodSpecArgs,
    PodTemplateSpecArgs,
    ResourceRequirementsArgs,
    SecurityContextArgs,
    TolerationArgs,
)
from pulumi_kubernetes.meta.v1 import LabelSelectorArgs, ObjectMetaArgs

from components.labels import LABELS
from components.platform.charts import ChartValues, gpu_node_tolerations, install
from components.platform.namespaces import NamespacePlan
from planner.fleet import CloudPlan
from planner.pool_labels import POOL_LABEL
from planner.versions import DOCA_DRIVER, SRIOV_DEVICE_PLUGIN, python_image

NAMESPACE = "network-operator"

_LOAD = "while :; do modprobe nvidia-peermem; sleep 30; done"
"""AKS's GPU driver comes without it loaded, and it can only be after InfiniBand's driver (Azure/aks-rdma-infiniband,
"GPU Drivers"): by it the interfaces read the GPUs' memory, where NCCL has no other way to that."""


@dataclass(frozen=True, kw_only=True)
class InfinibandArgs:
    """The operator runs on the cluster's `nodes`."""

    plan: CloudPlan
    nodes: Sequence[pulumi.Resource]


class Infiniband(pulumi.ComponentResource):
    """Nodes of pools with a fabric offer each InfiniBand interface as `rdma/ib` (Azure/aks-rdma-infiniband).

    Interfaces lie beneath IP, and pods need no address on them. Node Feature Discovery is the GPU operator's.
    """

    def __init__(self, name: str, args: InfinibandArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AzureInfiniband", name, None, opts)
        # The operator's DaemonSets are the vendor's own: they load kernel modules and mount the host's /sys and /dev.
        labels = NamespacePlan(name=NAMESPACE, pod_security="privileged").labels
        space = Namespace(
            f"{name}-namespace",
            metadata=ObjectMetaArgs(name=NAMESPACE, labels=labels),
            opts=pulumi.ResourceOptions(parent=self),
        )
        values = {"nfd": {"enabled": False, "deployNodeFeatureRules": False}}
        chart = ChartValues(chart="network-operator", namespace=NAMESPACE, values=values)
        operator = install(chart, name=name, parent=self, depends_on=[*args.nodes, space])
        CustomResource(
            f"{name}-policy",
            api_version="mellanox.com/v1alpha1",
            kind="NicClusterPolicy",
            # The operator knows it by this name alone.
            metadata=ObjectMetaArgs(name="nic-cluster-policy", labels=LABELS),
            spec=_policy(args.plan),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[operator]),
        )
        labels = {"app.kubernetes.io/name": "peer-memory"}
        DaemonSet(
            f"{name}-peer-memory",
            metadata=ObjectMetaArgs(
                name="peer-memory",
                namespace=NAMESPACE,
                labels=LABELS | labels,
                # There may be no such node until somebody asks a model something.
                annotations={"pulumi.com/skipAwait": "true"},
            ),
            spec=DaemonSetSpecArgs(
                selector=LabelSelectorArgs(match_labels=labels),
                template=PodTemplateSpecArgs(
                    metadata=ObjectMetaArgs(labels=LABELS | labels), spec=_peer_memory(args.plan)
                ),
            ),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[space]),
        )
        self.register_outputs({})


def _peer_memory(plan: CloudPlan) -> PodSpecArgs:
    return PodSpecArgs(
        automount_service_account_token=False,
        priority_class_name="system-node-critical",
        # The node's own modprobe finds the node's own modules.
        host_pid=True,
        affinity=AffinityArgs(node_affinity=_on_pools(plan)),
        tolerations=[TolerationArgs(operator="Exists")],
        containers=[
            ContainerArgs(
                name="peer-memory",
                image=python_image(plan.images.python_digest),
                command=["nsenter", "--target", "1", "--mount", "--", "sh", "-c", _LOAD],
                resources=ResourceRequirementsArgs(
                    requests={"cpu": "10m", "memory": "16Mi"}, limits={"cpu": "100m", "memory": "64Mi"}
                ),
                security_context=SecurityContextArgs(privileged=True),
            )
        ],
    )


def _on_pools(plan: CloudPlan) -> NodeAffinityArgs:
    """Other nodes have Mellanox interfaces too, for their Ethernet."""
    pools = [pool.name for pool in plan.pools if pool.fabric]
    term = NodeSelectorTermArgs(
        match_expressions=[NodeSelectorRequirementArgs(key=POOL_LABEL, operator="In", values=pools)]
    )
    return NodeAffinityArgs(
        required_during_scheduling_ignored_during_execution=NodeSelectorArgs(node_selector_terms=[term])
    )


def _policy(plan: CloudPlan) -> dict[str, Any]:
    devices = {
        "resourcePrefix": "rdma",
        "resourceName": "ib",
        # Mellanox's, and not the one that is the node's Ethernet.
        "selectors": {"vendors": ["15b3"], "linkTypes": ["infiniband"], "isRdma": True},
    }
    return {
        "nodeAffinity": _on_pools(plan),
        "tolerations": gpu_node_tolerations(plan),
        "ofedDriver": {
            "repository": "nvcr.io/nvidia/mellanox",
            "image": "doca-driver",
            "version": DOCA_DRIVER,
            # Mellanox/doca-driver-build#52: without it the module sometimes fails to load.
            "env": [
                {
                    "name": "OFED_BLACKLIST_MODULES_FILE",
                    "value": "/host/etc/modprobe.d/blacklist-ofed-modules.conf",
                }
            ],
            # A newer driver comes with new nodes: the operator would drain those that serve.
            "upgradePolicy": {"autoUpgrade": False},
            "startupProbe": {"initialDelaySeconds": 10, "periodSeconds": 20},
            "livenessProbe": {"initialDelaySeconds": 30, "periodSeconds": 30},
            "readinessProbe": {"initialDelaySeconds": 10, "periodSeconds": 30},
        },
        "sriovDevicePlugin": {
            "repository": "nvcr.io/nvidia/mellanox",
            "image": "sriov-network-device-plugin",
            "version": SRIOV_DEVICE_PLUGIN,
            "config": json.dumps({"resourceList": [devices]}, indent=2) + "\n",
        },
    }
