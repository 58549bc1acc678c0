"""What pods may say to whom, on top of the namespace's default-deny, DNS and metrics."""

from collections.abc import Mapping, Sequence

import pulumi
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

from components.clouds.base import Way
from components.serving.labels import CLIENT_LABEL, common_labels, fetch_of, leaders_of, pods_of

NOT_INTERNET = ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
"""Private networks, which clusters and their services lie in, and link-local: instance metadata, credential agents."""


def rank_policy(name: str, *, model: str, namespace: str, opts: pulumi.ResourceOptions) -> NetworkPolicy:
    """Ranks reach each other on every port: Open MPI and NCCL choose theirs. The launchers prove themselves by the
    group's token, Open MPI's sockets do not, so nobody else may reach them."""
    ranks = NetworkPolicyPeerArgs(pod_selector=LabelSelectorArgs(match_labels=pods_of(model)))
    return NetworkPolicy(
        name,
        metadata=ObjectMetaArgs(name=f"{model}-ranks", namespace=namespace, labels=common_labels(model)),
        spec=NetworkPolicySpecArgs(
            pod_selector=LabelSelectorArgs(match_labels=pods_of(model)),
            policy_types=["Ingress", "Egress"],
            ingress=[NetworkPolicyIngressRuleArgs(from_=[ranks])],
            egress=[NetworkPolicyEgressRuleArgs(to=[ranks])],
        ),
        opts=opts,
    )


def client_policy(name: str, *, model: str, namespace: str, opts: pulumi.ResourceOptions) -> NetworkPolicy:
    """Namespaces labelled as clients reach the leaders, for requests only."""
    clients = NetworkPolicyPeerArgs(namespace_selector=LabelSelectorArgs(match_labels={CLIENT_LABEL: "true"}))
    ports = [NetworkPolicyPortArgs(port=port, protocol="TCP") for port in (9000, 8000, 8001)]
    return NetworkPolicy(
        name,
        metadata=ObjectMetaArgs(name=f"{model}-clients", namespace=namespace, labels=common_labels(model)),
        spec=NetworkPolicySpecArgs(
            pod_selector=LabelSelectorArgs(match_labels=leaders_of(model)),
            policy_types=["Ingress"],
            ingress=[NetworkPolicyIngressRuleArgs(from_=[clients], ports=ports)],
        ),
        opts=opts,
    )


def bucket_policy(
    name: str,
    *,
    pods: Mapping[str, str],
    ways: Sequence[Way],
    policy: str,
    namespace: str,
    opts: pulumi.ResourceOptions,
) -> NetworkPolicy:
    """What a pod needs to read the model bucket, on clouds that mount it from inside the pod."""
    return NetworkPolicy(
        name,
        metadata=ObjectMetaArgs(name=policy, namespace=namespace, labels=common_labels()),
        spec=NetworkPolicySpecArgs(
            pod_selector=LabelSelectorArgs(match_labels=dict(pods)),
            policy_types=["Egress"],
            egress=[_out(way) for way in ways],
        ),
        opts=opts,
    )


def fetch_policy(
    name: str, *, checkpoint: str, ways: Sequence[Way], namespace: str, opts: pulumi.ResourceOptions
) -> NetworkPolicy:
    """Weights come by HTTPS, from content networks without fixed addresses. A pod that is somebody in the cloud gets
    its credentials over `ways`."""
    pods, policy = fetch_of(checkpoint), f"weights-{checkpoint}"
    return internet_policy(name, pods=pods, policy=policy, ways=ways, namespace=namespace, opts=opts)


def internet_policy(
    name: str,
    *,
    pods: Mapping[str, str],
    policy: str,
    ways: Sequence[Way] = (),
    namespace: str,
    opts: pulumi.ResourceOptions,
) -> NetworkPolicy:
    """The only way out of the cluster. But for `ways` it leads neither to nodes nor to the Kubernetes API nor to the
    instance's metadata."""
    anywhere = NetworkPolicyPeerArgs(ip_block=IPBlockArgs(cidr="0.0.0.0/0", except_=list(NOT_INTERNET)))
    return NetworkPolicy(
        name,
        metadata=ObjectMetaArgs(name=policy, namespace=namespace, labels=common_labels()),
        spec=NetworkPolicySpecArgs(
            pod_selector=LabelSelectorArgs(match_labels=dict(pods)),
            policy_types=["Egress"],
            egress=[
                NetworkPolicyEgressRuleArgs(to=[anywhere], ports=[NetworkPolicyPortArgs(port=443, protocol="TCP")]),
                *map(_out, ways),
            ],
        ),
        opts=opts,
    )


def _out(way: Way) -> NetworkPolicyEgressRuleArgs:
    return NetworkPolicyEgressRuleArgs(
        to=[NetworkPolicyPeerArgs(ip_block=IPBlockArgs(cidr=way.cidr))],
        ports=[NetworkPolicyPortArgs(port=way.port, protocol="TCP")],
    )
