"""The MIG gate in the cluster: one small pod on a system node, and no more rights than it uses."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi_kubernetes.apps.v1 import Deployment, DeploymentSpecArgs
from pulumi_kubernetes.core.v1 import (
    CapabilitiesArgs,
    ConfigMap,
    ConfigMapProjectionArgs,
    ConfigMapVolumeSourceArgs,
    ContainerArgs,
    EmptyDirVolumeSourceArgs,
    EnvVarArgs,
    ExecActionArgs,
    KeyToPathArgs,
    PodSecurityContextArgs,
    PodSpecArgs,
    PodTemplateSpecArgs,
    ProbeArgs,
    ProjectedVolumeSourceArgs,
    ResourceRequirementsArgs,
    SeccompProfileArgs,
    SecurityContextArgs,
    ServiceAccount,
    ServiceAccountTokenProjectionArgs,
    VolumeArgs,
    VolumeMountArgs,
    VolumeProjectionArgs,
)
from pulumi_kubernetes.meta.v1 import LabelSelectorArgs, ObjectMetaArgs
from pulumi_kubernetes.networking.v1 import (
    NetworkPolicy,
    NetworkPolicyEgressRuleArgs,
    NetworkPolicyPortArgs,
    NetworkPolicySpecArgs,
)
from pulumi_kubernetes.rbac.v1 import ClusterRole, ClusterRoleBinding, PolicyRuleArgs, RoleRefArgs, SubjectArgs

from components.platform.charts import Mirrors, mirrored
from components.platform.namespaces import LABELS
from planner.fleet import PoolPlan
from planner.pool_labels import DEVICE_PLUGIN_LABEL
from planner.versions import PYTHON_IMAGE

NAME = "mig-gate"
SCRIPT = Path(__file__).with_name("gate.py")
_USER = 65532
_CREDENTIALS = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True, kw_only=True)
class MigGateArgs:
    """`pools` are those whose nodes begin closed. `depends_on` is what the pod needs to start: the namespace,
    and nodes."""

    namespace: str
    pools: Sequence[PoolPlan]
    mirrors: Mirrors
    image: str = PYTHON_IMAGE
    depends_on: Sequence[pulumi.Resource]


class MigGate(pulumi.ComponentResource):
    """Opens MIG nodes when their GPUs are divided; see gate.py."""

    def __init__(self, name: str, args: MigGateArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:platform:MigGate", name, None, opts)
        source = SCRIPT.read_text(encoding="utf-8")
        labels = LABELS | {"app.kubernetes.io/name": NAME}
        selector = {"app.kubernetes.io/name": NAME}
        child = pulumi.ResourceOptions(parent=self, depends_on=args.depends_on)

        def metadata(object_name: str, namespace: str | None = args.namespace) -> ObjectMetaArgs:
            return ObjectMetaArgs(name=object_name, namespace=namespace, labels=labels)

        account = ServiceAccount(
            f"{name}-account", metadata=metadata(NAME), automount_service_account_token=False, opts=child
        )
        role = ClusterRole(
            f"{name}-role",
            metadata=metadata(NAME, None),
            # Kubernetes has no narrower right than patching nodes for changing a taint or a label.
            rules=[PolicyRuleArgs(api_groups=[""], resources=["nodes"], verbs=["get", "list", "watch", "patch"])],
            opts=child,
        )
        binding = ClusterRoleBinding(
            f"{name}-binding",
            metadata=metadata(NAME, None),
            role_ref=RoleRefArgs(api_group="rbac.authorization.k8s.io", kind="ClusterRole", name=NAME),
            subjects=[SubjectArgs(kind="ServiceAccount", name=NAME, namespace=args.namespace)],
            opts=child,
        )
        # Named by its content, so that a new script rolls the pod.
        script_name = f"{NAME}-{hashlib.sha256(source.encode()).hexdigest()[:10]}"
        script = ConfigMap(
            f"{name}-script",
            metadata=metadata(script_name),
            data={SCRIPT.name: source},
            immutable=True,
            opts=child,
        )
        policy = NetworkPolicy(
            f"{name}-policy",
            metadata=metadata(NAME),
            spec=NetworkPolicySpecArgs(
                pod_selector=LabelSelectorArgs(match_labels=selector),
                policy_types=["Ingress", "Egress"],
                # The API server alone, whose address no policy can name; the pod asks no DNS.
                egress=[NetworkPolicyEgressRuleArgs(ports=[NetworkPolicyPortArgs(port=443, protocol="TCP")])],
            ),
            opts=child,
        )
        Deployment(
            f"{name}-deployment",
            metadata=metadata(NAME),
            spec=DeploymentSpecArgs(
                replicas=1,
                selector=LabelSelectorArgs(match_labels=selector),
                template=PodTemplateSpecArgs(metadata=ObjectMetaArgs(labels=labels), spec=_pod(script_name, args)),
            ),
            opts=pulumi.ResourceOptions(
                parent=self, depends_on=[account, role, binding, script, policy, *args.depends_on]
            ),
        )
        self.register_outputs({})


def gated(pool: PoolPlan) -> bool:
    """Whether nodes of the pool begin closed."""
    return any(group.startup_taints or group.labels.get(DEVICE_PLUGIN_LABEL) == "false" for group in pool.node_groups)


def divided(pool: PoolPlan) -> dict[str, Any]:
    """How gate.py knows a node of the pool whose GPUs are divided."""
    labels = {"labels": pool.node_selector}
    if any(group.startup_taints for group in pool.node_groups):
        return labels | {"resource": pool.gpu_resource, "slices": pool.units_per_node}
    # GPU feature discovery calls a divided GPU NVIDIA-H100-NVL-MIG-1g.12gb, or …-MIG-INVALID while it has no slices.
    # The memory in the name differs between GPUs of one family.
    return labels | {"product": f"-MIG-{(pool.mig_profile or '').partition('.')[0]}."}


def _pod(script: str, args: MigGateArgs) -> PodSpecArgs:
    command = ["python3", f"/opt/{NAME}/{SCRIPT.name}"]
    # The probe starts a Python, so it asks seldom.
    probe = ProbeArgs(
        exec_=ExecActionArgs(command=[*command, "--alive"]),
        initial_delay_seconds=5,
        period_seconds=30,
        timeout_seconds=10,
    )
    return PodSpecArgs(
        service_account_name=NAME,
        # Mounted below instead: a token that expires, in this one container.
        automount_service_account_token=False,
        priority_class_name="system-cluster-critical",
        security_context=PodSecurityContextArgs(
            run_as_non_root=True,
            run_as_user=_USER,
            run_as_group=_USER,
            fs_group=_USER,
            seccomp_profile=SeccompProfileArgs(type="RuntimeDefault"),
        ),
        containers=[
            ContainerArgs(
                name=NAME,
                image=mirrored(args.image, args.mirrors),
                image_pull_policy="Always",
                command=command,
                env=[
                    EnvVarArgs(name="POOLS", value=json.dumps([divided(pool) for pool in args.pools], sort_keys=True))
                ],
                liveness_probe=probe,
                readiness_probe=probe,
                resources=ResourceRequirementsArgs(
                    requests={"cpu": "10m", "memory": "32Mi"}, limits={"cpu": "200m", "memory": "128Mi"}
                ),
                security_context=SecurityContextArgs(
                    allow_privilege_escalation=False,
                    read_only_root_filesystem=True,
                    capabilities=CapabilitiesArgs(drop=["ALL"]),
                ),
                volume_mounts=[
                    VolumeMountArgs(name="script", mount_path=f"/opt/{NAME}", read_only=True),
                    VolumeMountArgs(name="credentials", mount_path=_CREDENTIALS, read_only=True),
                    VolumeMountArgs(name="run", mount_path=f"/run/{NAME}"),
                ],
            )
        ],
        volumes=[
            VolumeArgs(name="script", config_map=ConfigMapVolumeSourceArgs(name=script)),
            VolumeArgs(
                name="credentials",
                projected=ProjectedVolumeSourceArgs(
                    sources=[
                        VolumeProjectionArgs(
                            service_account_token=ServiceAccountTokenProjectionArgs(
                                path="token", expiration_seconds=3600
                            )
                        ),
                        VolumeProjectionArgs(
                            config_map=ConfigMapProjectionArgs(
                                name="kube-root-ca.crt", items=[KeyToPathArgs(key="ca.crt", path="ca.crt")]
                            )
                        ),
                    ]
                ),
            ),
            VolumeArgs(name="run", empty_dir=EmptyDirVolumeSourceArgs(size_limit="1Mi")),
        ],
    )
