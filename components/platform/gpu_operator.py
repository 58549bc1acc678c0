"""The GPU operator's values: what makes a node's GPUs, or their slices, into something that pods can ask for."""

import json
from typing import Any

from components.platform.charts import ChartValues, Mirrors, gpu_node_tolerations, mirrored
from components.platform.namespaces import GPU_OPERATOR
from planner.fleet import CloudPlan
from planner.pool_labels import DEVICE_PLUGIN_CONFIG_LABEL, MIG_CONFIG_LABEL


def gpu_operator(plan: CloudPlan, mirrors: Mirrors) -> ChartValues:
    """The operator for the plan's pools. Its controllers run on system nodes, everything else only on GPU nodes."""
    tolerations = gpu_node_tolerations(plan)
    values: dict[str, Any] = {
        **({"operator": {"runtimeClass": plan.gpu_runtime_class}} if plan.gpu_runtime_class else {}),
        # The node image brings both, at versions that fit one another.
        "driver": {"enabled": False},
        "toolkit": {"enabled": False},
        # The device plugin names GPUs to the container runtime itself: nothing depends on what the image's toolkit
        # allows an unprivileged container to ask for in its environment.
        "cdi": {"enabled": True},
        "daemonsets": {"tolerations": tolerations},
        "node-feature-discovery": {
            "image": {"repository": mirrored("registry.k8s.io/nfd/node-feature-discovery", mirrors)},
            "worker": {"tolerations": tolerations},
        },
        # No Prometheus Operator here: whoever scrapes finds the exporter's Service.
        "dcgmExporter": {"enabled": True, "serviceMonitor": {"enabled": False}},
        # Mixed gives slices names of their own, so that a pod never takes a whole GPU for a slice. Single is for clouds
        # whose autoscaler knows no other name.
        "mig": {"strategy": plan.mig_strategy},
        "migManager": {"enabled": False},
    }
    if any(MIG_CONFIG_LABEL in group.labels for pool in plan.pools for group in pool.node_groups):
        values["migManager"] = {
            "enabled": True,
            # Nodes of MIG pools say what they want by label; any other node keeps its GPUs whole.
            "config": {"default": "all-disabled"},
            # Clouds do not let a guest reset an Ampere GPU, which changing its MIG mode takes.
            "env": [{"name": "WITH_REBOOT", "value": "true"}],
        }
    if configs := _time_slicing(plan):
        values["devicePlugin"] = {
            "config": {
                "name": "device-plugin",
                "create": True,
                "default": "whole",
                "data": {"whole": _config(plan, {})} | configs,
            }
        }
    return ChartValues(chart="gpu-operator", namespace=GPU_OPERATOR, values=values)


def _time_slicing(plan: CloudPlan) -> dict[str, str]:
    """Configurations of shared GPUs, by the label that their nodes carry."""
    return {
        group.labels[DEVICE_PLUGIN_CONFIG_LABEL]: _config(
            plan,
            {
                "timeSlicing": {
                    # A second share gives a pod no more of the GPU: asking for two is a mistake.
                    "failRequestsGreaterThanOne": True,
                    "resources": [{"name": pool.gpu_resource, "replicas": pool.time_slicing}],
                }
            },
        )
        for pool in plan.pools
        if pool.time_slicing
        for group in pool.node_groups
    }


def _config(plan: CloudPlan, sharing: dict[str, Any]) -> str:
    document = {"version": "v1", "flags": {"migStrategy": plan.mig_strategy}} | (
        {"sharing": sharing} if sharing else {}
    )
    # JSON is YAML that comes out the same everywhere.
    return json.dumps(document, indent=2) + "\n"
