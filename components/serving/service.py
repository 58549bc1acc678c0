"""How clients find a model, and how many of its groups may be taken down on purpose at once."""

import pulumi
from pulumi_kubernetes.core.v1 import Service, ServicePortArgs, ServiceSpecArgs
from pulumi_kubernetes.meta.v1 import LabelSelectorArgs, ObjectMetaArgs
from pulumi_kubernetes.policy.v1 import PodDisruptionBudget, PodDisruptionBudgetSpecArgs

from components.serving.labels import common_labels, leaders_of, pods_of
from planner.endpoints import OPENAI_PORT, PORTS


def model_service(name: str, *, model: str, namespace: str, opts: pulumi.ResourceOptions) -> Service:
    """Inside the cluster only, and in front of the leaders only: no other rank answers requests."""
    return Service(
        name,
        metadata=ObjectMetaArgs(
            name=model,
            namespace=namespace,
            labels=common_labels(model),
            # By default Pulumi waits for an endpoint, which may need a spot node that nobody has to offer now, and with
            # no replicas never comes.
            annotations={"pulumi.com/skipAwait": "true"},
        ),
        spec=ServiceSpecArgs(
            type="ClusterIP",
            selector=leaders_of(model),
            ports=[
                ServicePortArgs(name=port, port=number, target_port=port, protocol="TCP")
                for port, number in PORTS.items()
            ],
        ),
        opts=opts,
    )


def disruption_budget(name: str, *, model: str, namespace: str, opts: pulumi.ResourceOptions) -> PodDisruptionBudget:
    """One group at a time, workers counted too: the first eviction takes its whole group down, and while any pod of the
    model is missing, no other may be evicted. With a single replica a node can still be drained."""
    return PodDisruptionBudget(
        name,
        metadata=ObjectMetaArgs(name=model, namespace=namespace, labels=common_labels(model)),
        spec=PodDisruptionBudgetSpecArgs(
            max_unavailable=1,
            selector=LabelSelectorArgs(match_labels=pods_of(model)),
            # A group that does not serve protects nothing.
            unhealthy_pod_eviction_policy="AlwaysAllow",
        ),
        opts=opts,
    )


def endpoint(model: str, namespace: str) -> str:
    """The base URL for OpenAI's clients inside the cluster."""
    return f"http://{model}.{namespace}.svc:{PORTS[OPENAI_PORT]}/v1"
