"""The names that objects of a model find each other by."""

from components.labels import LABELS

CLIENT_LABEL = "tritonfleet.io/client"
"""Namespaces that carry it, with the value true, may send requests to the models."""
ENGINE_LABEL = "tritonfleet.io/engine"
CHECKPOINT_LABEL = "tritonfleet.io/checkpoint"

# Set by the LeaderWorkerSet controller on every pod of a group (kubernetes-sigs/lws, leaderworkerset_types.go).
SET_LABEL = "leaderworkerset.sigs.k8s.io/name"
GROUP_INDEX_LABEL = "leaderworkerset.sigs.k8s.io/group-index"
WORKER_INDEX_LABEL = "leaderworkerset.sigs.k8s.io/worker-index"

NAME_LABEL = "app.kubernetes.io/name"
INSTANCE_LABEL = "app.kubernetes.io/instance"
SERVER = "triton"
BUILDER = "engine-build"
FETCHER = "weights-fetch"
INSTALLER = "environment"


def common_labels(instance: str | None = None) -> dict[str, str]:
    """The labels of every object; `instance` is the model that it belongs to."""
    return LABELS | ({INSTANCE_LABEL: instance} if instance else {})


def pods_of(model: str) -> dict[str, str]:
    """What selects every serving pod of a model, leaders and workers."""
    return {NAME_LABEL: SERVER, INSTANCE_LABEL: model}


def fetch_of(checkpoint: str) -> dict[str, str]:
    """What selects the pods that download one checkpoint, by the name of its folder."""
    return {NAME_LABEL: FETCHER, CHECKPOINT_LABEL: checkpoint}


def set_name(model: str) -> str:
    """The model's LeaderWorkerSet; its controller makes a headless Service of the same name."""
    return f"{model}-group"


def leaders_of(model: str) -> dict[str, str]:
    """What selects the leaders of a model's groups and nothing else."""
    return {SET_LABEL: set_name(model), WORKER_INDEX_LABEL: "0"}
