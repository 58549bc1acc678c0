"""The memlock DaemonSet in the cluster: on nodes of pools over RDMA, as root of the node, with one capability."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pulumi
from pulumi_kubernetes.apps.v1 import DaemonSet, DaemonSetSpecArgs
from pulumi_kubernetes.core.v1 import (
    AffinityArgs,
    CapabilitiesArgs,
    ConfigMap,
    ConfigMapVolumeSourceArgs,
    ContainerArgs,
    NodeAffinityArgs,
    NodeSelectorArgs,
    NodeSelectorRequirementArgs,
    NodeSelectorTermArgs,
    PodSpecArgs,
    PodTemplateSpecArgs,
    ResourceRequirementsArgs,
    SeccompProfileArgs,
    SecurityContextArgs,
    TolerationArgs,
    VolumeArgs,
    VolumeMountArgs,
)
from pulumi_kubernetes.meta.v1 import LabelSelectorArgs, ObjectMetaArgs

from components.labels import LABELS
from components.platform.charts import Mirrors, mirrored
from planner.pool_labels import POOL_LABEL
from planner.versions import PYTHON_IMAGE

NAME = "memlock"
SCRIPT = Path(__file__).with_name("memlock.py")


@dataclass(frozen=True, kw_only=True)
class MemlockArgs:
    """`pools` are the names of those whose nodes need it."""

    namespace: str
    pools: Sequence[str]
    mirrors: Mirrors
    image: str = PYTHON_IMAGE


class Memlock(pulumi.ComponentResource):
    """Raises containerd's limit of locked memory; see memlock.py."""

    def __init__(self, name: str, args: MemlockArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:platform:Memlock", name, None, opts)
        source = SCRIPT.read_text(encoding="utf-8")
        labels, selector = LABELS | {"app.kubernetes.io/name": NAME}, {"app.kubernetes.io/name": NAME}
        child = pulumi.ResourceOptions(parent=self)
        # Named by its content, so that a new script rolls the pods.
        script = ConfigMap(
            f"{name}-script",
            metadata=ObjectMetaArgs(
                name=f"{NAME}-{hashlib.sha256(source.encode()).hexdigest()[:10]}",
                namespace=args.namespace,
                labels=labels,
            ),
            data={SCRIPT.name: source},
            immutable=True,
            opts=child,
        )
        DaemonSet(
            f"{name}-daemons",
            metadata=ObjectMetaArgs(
                name=NAME,
                namespace=args.namespace,
                labels=labels,
                # There may be no such node until somebody asks a model something.
                annotations={"pulumi.com/skipAwait": "true"},
            ),
            spec=DaemonSetSpecArgs(
                selector=LabelSelectorArgs(match_labels=selector),
                template=PodTemplateSpecArgs(
                    metadata=ObjectMetaArgs(labels=labels), spec=_pod(script.metadata.name, args)
                ),
            ),
            opts=child,
        )
        self.register_outputs({})


def _pod(script: pulumi.Input[str], args: MemlockArgs) -> PodSpecArgs:
    on_pools = NodeSelectorRequirementArgs(key=POOL_LABEL, operator="In", values=list(args.pools))
    terms = [NodeSelectorTermArgs(match_expressions=[on_pools])]
    return PodSpecArgs(
        automount_service_account_token=False,
        priority_class_name="system-node-critical",
        # To see the node's containerd.
        host_pid=True,
        affinity=AffinityArgs(
            node_affinity=NodeAffinityArgs(
                required_during_scheduling_ignored_during_execution=NodeSelectorArgs(node_selector_terms=terms)
            )
        ),
        tolerations=[TolerationArgs(operator="Exists")],
        containers=[
            ContainerArgs(
                name=NAME,
                image=mirrored(args.image, args.mirrors),
                image_pull_policy="Always",
                command=["python3", f"/opt/{NAME}/{SCRIPT.name}"],
                resources=ResourceRequirementsArgs(
                    requests={"cpu": "10m", "memory": "32Mi"}, limits={"cpu": "200m", "memory": "64Mi"}
                ),
                security_context=SecurityContextArgs(
                    # Another process's limits take this capability, and only a root process keeps it.
                    run_as_user=0,
                    allow_privilege_escalation=False,
                    read_only_root_filesystem=True,
                    capabilities=CapabilitiesArgs(drop=["ALL"], add=["SYS_RESOURCE"]),
                    seccomp_profile=SeccompProfileArgs(type="RuntimeDefault"),
                ),
                volume_mounts=[VolumeMountArgs(name="script", mount_path=f"/opt/{NAME}", read_only=True)],
            )
        ],
        volumes=[VolumeArgs(name="script", config_map=ConfigMapVolumeSourceArgs(name=script))],
    )
