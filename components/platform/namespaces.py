"""The namespaces, what may run in them, how much of it, and who may talk to whom."""

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.core.v1 import Namespace, ResourceQuota, ResourceQuotaSpecArgs
from pulumi_kubernetes.meta.v1 import LabelSelectorArgs, ObjectMetaArgs
from pulumi_kubernetes.networking.v1 import (
    IPBlockArgs,
    NetworkPolicy,
    NetworkPolicyEgressRuleArgs,
    NetworkPolicyIngressRuleArgs,
    NetworkPolicyPeerArgs,
    NetworkPolicyPortArgs,
    NetworkPolicySpecArgs,
)

from components.labels import LABELS
from planner.fleet import CloudPlan

SERVING = "tritonfleet"
LEADER_WORKER_SET = "lws-system"
GPU_OPERATOR = "gpu-operator"
NODES = "tritonfleet-nodes"
METRICS_LABEL = "tritonfleet.io/metrics"
"""Namespaces that carry it, with the value true, may read the models' metrics."""
METRICS_PORTS = (8002, 9000)
"""Triton's, and the frontend's, which asks for a key for all but its metrics and health."""
NODE_LOCAL_DNS = "169.254.20.10"
"""Where NodeLocal DNSCache listens on each node: Kubernetes documentation, "Using NodeLocal DNSCache"."""

# Pods without a GPU (downloads, a frontend, a debugging shell) and claims of models that have no replica now.
_SPARE = 20


@dataclass(frozen=True, kw_only=True)
class NamespacePlan:
    """A namespace and the Pod Security Standard that its pods must meet."""

    name: str
    pod_security: str

    @property
    def labels(self) -> dict[str, str]:
        """Enforced, and also reported: a Deployment whose pods would be refused is warned of at once."""
        modes = {f"pod-security.kubernetes.io/{mode}": self.pod_security for mode in ("enforce", "audit", "warn")}
        return LABELS | modes


def namespace_plans(plan: CloudPlan) -> list[NamespacePlan]:
    """The namespaces that a plan needs."""
    # Host paths and capabilities, where a network's driver wants them, are allowed by the standard `privileged` alone.
    exempt = any(pool.fabric and pool.fabric.exception for pool in plan.pools)
    wanted = [NamespacePlan(name=SERVING, pod_security="privileged" if exempt else "restricted")]
    if "lws" not in plan.brings:
        wanted.append(NamespacePlan(name=LEADER_WORKER_SET, pod_security="restricted"))
    if "gpu-operator" not in plan.brings:
        # The operator's DaemonSets are the vendor's own: they mount the host's /dev, /sys and container runtime, and
        # the MIG manager stops services of the host. Of ours only the MIG gate runs here, which meets `restricted`.
        wanted.append(NamespacePlan(name=GPU_OPERATOR, pod_security="privileged"))
    if any(pool.fabric and pool.fabric.raise_memlock for pool in plan.pools):
        # The one DaemonSet of ours that acts on nodes: it is root, and sees their processes.
        wanted.append(NamespacePlan(name=NODES, pod_security="privileged"))
    return wanted


def namespaces(plan: CloudPlan, name: str, parent: pulumi.Resource) -> dict[str, Namespace]:
    """All of them, by name."""
    return {
        space.name: Namespace(
            f"{name}-{space.name}",
            metadata=ObjectMetaArgs(name=space.name, labels=space.labels),
            opts=pulumi.ResourceOptions(parent=parent),
        )
        for space in namespace_plans(plan)
    }


def limits(plan: CloudPlan) -> dict[str, str]:
    """The most that the serving namespace may ask for: what the plan's pools have when every group is at its largest.

    Every pod that builds or serves asks for GPUs, so their number bounds those pods. Nothing is reached from outside.
    """
    hard: dict[str, int] = {}
    for pool in plan.pools:
        nodes = sum(group.max_nodes for group in pool.node_groups)
        if pool.gpu_resource:
            _add(hard, f"requests.{pool.gpu_resource}", nodes * pool.units_per_node)
        if pool.fabric and pool.fabric.resource:
            _add(hard, f"requests.{pool.fabric.resource}", nodes * pool.rdma_interfaces)
    units = sum(sum(group.max_nodes for group in pool.node_groups) * pool.units_per_node for pool in plan.pools)
    hard |= {"pods": units + _SPARE, "persistentvolumeclaims": units + _SPARE}
    hard |= {"services.loadbalancers": 0, "services.nodeports": 0}
    return {resource: str(count) for resource, count in sorted(hard.items())}


def serving_rules(
    plan: CloudPlan, *, name: str, parent: pulumi.Resource, depends_on: Sequence[pulumi.Resource]
) -> list[pulumi.Resource]:
    """Quota and network policies of the serving namespace. What one model's pods need, its own component adds."""
    opts = pulumi.ResourceOptions(parent=parent, depends_on=depends_on)
    quota = ResourceQuota(
        f"{name}-quota",
        metadata=ObjectMetaArgs(name="tritonfleet", namespace=SERVING, labels=LABELS),
        spec=ResourceQuotaSpecArgs(hard=limits(plan)),
        opts=opts,
    )
    policies = {
        "default-deny": NetworkPolicySpecArgs(pod_selector=LabelSelectorArgs(), policy_types=["Ingress", "Egress"]),
        "allow-dns": NetworkPolicySpecArgs(
            pod_selector=LabelSelectorArgs(),
            policy_types=["Egress"],
            egress=[
                NetworkPolicyEgressRuleArgs(
                    to=[
                        NetworkPolicyPeerArgs(
                            namespace_selector=_labelled({"kubernetes.io/metadata.name": "kube-system"}),
                            pod_selector=_labelled({"k8s-app": app}),
                        )
                        for app in ("kube-dns", "node-local-dns")
                    ]
                    + [NetworkPolicyPeerArgs(ip_block=IPBlockArgs(cidr=f"{NODE_LOCAL_DNS}/32"))],
                    ports=[NetworkPolicyPortArgs(port=53, protocol=protocol) for protocol in ("UDP", "TCP")],
                )
            ],
        ),
        "allow-metrics": NetworkPolicySpecArgs(
            pod_selector=_labelled({"app.kubernetes.io/name": "triton"}),
            policy_types=["Ingress"],
            ingress=[
                NetworkPolicyIngressRuleArgs(
                    from_=[NetworkPolicyPeerArgs(namespace_selector=_labelled({METRICS_LABEL: "true"}))],
                    ports=[NetworkPolicyPortArgs(port=port, protocol="TCP") for port in METRICS_PORTS],
                )
            ],
        ),
    }
    return [
        quota,
        *(
            NetworkPolicy(
                f"{name}-{policy}",
                metadata=ObjectMetaArgs(name=policy, namespace=SERVING, labels=LABELS),
                spec=spec,
                opts=opts,
            )
            for policy, spec in policies.items()
        ),
    ]


def _labelled(labels: dict[str, str]) -> LabelSelectorArgs:
    return LabelSelectorArgs(match_labels=labels)


def _add(hard: dict[str, int], resource: str, count: int) -> None:
    hard[resource] = hard.get(resource, 0) + count
