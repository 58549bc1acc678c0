"""Values of the controllers that run on system nodes: groups of ranks, metrics of pods."""

from components.platform.charts import ChartValues, Mirrors, controller_resources, mirrored
from components.platform.namespaces import LEADER_WORKER_SET
from planner import versions


def leader_worker_set(mirrors: Mirrors) -> ChartValues:
    """The controller that makes and restarts groups of ranks. Two replicas: its webhook must admit every rank's pod."""
    return ChartValues(
        chart="lws",
        namespace=LEADER_WORKER_SET,
        values={
            "image": {
                "manager": {
                    "repository": mirrored("registry.k8s.io/lws/lws", mirrors),
                    "tag": f"v{versions.LEADER_WORKER_SET}",
                    "pullPolicy": "IfNotPresent",
                }
            },
            "replicaCount": 2,
            "priorityClassName": "system-cluster-critical",
            # The chart asks for a whole core; the system nodes are small.
            "resources": controller_resources("100m", "128Mi", "512Mi"),
            "podSecurityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        },
    )


def metrics_server(mirrors: Mirrors) -> ChartValues:
    """CPU and memory of pods and nodes, for `kubectl top` and pod autoscaling."""
    return ChartValues(
        chart="metrics-server",
        namespace="kube-system",
        values={
            "image": {"repository": mirrored("registry.k8s.io/metrics-server/metrics-server", mirrors)},
            "replicas": 2,
            "podDisruptionBudget": {"enabled": True, "maxUnavailable": 1},
            "resources": controller_resources("100m", "200Mi", "400Mi"),
        },
    )
