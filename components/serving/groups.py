"""A model's groups: a LeaderWorkerSet whose leader and workers run the same launcher, on one node or on many."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pulumi
from pulumi_kubernetes.apiextensions import CustomResource
from pulumi_kubernetes.core.v1 import (
    ContainerArgs,
    ContainerPortArgs,
    ExecActionArgs,
    HTTPGetActionArgs,
    LifecycleArgs,
    LifecycleHandlerArgs,
    PodSpecArgs,
    PodTemplateSpecArgs,
    ProbeArgs,
    Secret,
    SleepActionArgs,
)
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs
from pulumi_random import RandomPassword

from components.clouds.base import Identity
from components.serving import pods
from components.serving.common import Common, config_map, service_account
from components.serving.config_maps import Files
from components.serving.frontend import Frontend
from components.serving.labels import common_labels, pods_of, set_name
from components.serving.placement import placement
from components.serving.policies import bucket_policy, client_policy, rank_policy
from components.serving.service import disruption_budget, model_service
from planner.endpoints import TRITON_PORTS
from planner.fleet import Fabric, ServingPlan
from planner.plan import ModelPlan
from planner.sources import bucket_prefix

TOKEN_FOLDER = "/etc/tritonfleet/token"
TOKEN_KEY = "token"
RENDEZVOUS_PORT = 8470

_PERIOD_SECONDS = 5
_PATIENT_PERIOD_SECONDS = 10
_UNREADY_SECONDS = 15
# A worker's launcher checks the engine's files before it says anything, on storage that others load from.
_LAUNCH_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class ModelGroupsArgs:
    """`repository` is the Triton model repository, and `frontend` the frontend's code; `identity` is the service
    account's. With `surge` an update starts a new group before it ends an old one."""

    model: ModelPlan
    serving: ServingPlan
    common: Common
    repository: Files
    frontend: Files
    identity: Identity
    surge: bool
    random: pulumi.ProviderResource
    depends_on: Sequence[pulumi.Resource]


class ModelGroups(pulumi.ComponentResource):
    """Everything of one model that serves: its groups, their token, Service, budget and network policies."""

    def __init__(self, name: str, args: ModelGroupsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:serving:ModelGroups", name, None, opts)
        model, namespace = args.model.name, args.common.namespace
        child = args.common.child(self)
        token = RandomPassword(
            f"{name}-token",
            length=48,
            special=False,
            opts=pulumi.ResourceOptions(parent=self, provider=args.random),
        )
        needs: list[pulumi.Resource] = [
            *args.depends_on,
            config_map(f"{name}-repository", args.repository, args.common, parent=self),
            service_account(f"{name}-account", account_name(model), args.identity, args.common, parent=self),
            Secret(
                f"{name}-rendezvous",
                metadata=ObjectMetaArgs(name=token_name(model), namespace=namespace, labels=common_labels(model)),
                immutable=True,
                string_data={TOKEN_KEY: token.result},
                opts=child,
            ),
            client_policy(f"{name}-clients", model=model, namespace=namespace, opts=child),
        ]
        if loads_bucket(args.model) and args.common.volumes.weights_egress:
            needs.append(
                bucket_policy(
                    f"{name}-bucket",
                    pods=pods_of(model),
                    ways=args.common.volumes.weights_egress,
                    policy=f"{model}-bucket",
                    namespace=namespace,
                    opts=child,
                )
            )
        if args.serving.group_size > 1:
            needs.append(rank_policy(f"{name}-ranks", model=model, namespace=namespace, opts=child))
        CustomResource(
            f"{name}-set",
            api_version="leaderworkerset.x-k8s.io/v1",
            kind="LeaderWorkerSet",
            metadata=ObjectMetaArgs(name=set_name(model), namespace=namespace, labels=common_labels(model)),
            spec=set_spec(args),
            opts=pulumi.ResourceOptions(parent=self, depends_on=needs),
        )
        model_service(f"{name}-service", model=model, namespace=namespace, opts=child)
        disruption_budget(f"{name}-budget", model=model, namespace=namespace, opts=child)
        self.register_outputs({})


def account_name(model: str) -> str:
    """The service account of the model's serving pods."""
    return f"{model}-serve"


def engine_folder(model: ModelPlan) -> str:
    """Where a serving pod finds the model's engine."""
    return f"{pods.STORE}/engines/{model.engine.id}"


def loads_bucket(model: ModelPlan) -> bool:
    """Whether serving pods read the bucket: the LLM API loads the checkpoint itself, all others their engine alone."""
    return model.config.backend == "pytorch" and bucket_prefix(model.config.source) is not None


def token_name(model: str) -> str:
    """The Secret by which the hosts of a group know each other."""
    return f"{model}-rendezvous"


def set_spec(args: ModelGroupsArgs) -> dict[str, Any]:
    """The LeaderWorkerSet's spec; pods in it are the core API's own types."""
    serving = args.serving
    return {
        "replicas": serving.replicas,
        # A leader is ready only with its workers, so they cannot wait for that.
        "startupPolicy": "LeaderCreated",
        "networkConfig": {"subdomainPolicy": "Shared"},
        "rolloutStrategy": {
            "type": "RollingUpdate",
            # Without room for one more group, waiting for it would be waiting for ever.
            "rollingUpdateConfiguration": {
                "maxSurge": int(args.surge),
                "maxUnavailable": int(not args.surge),
                "partition": 0,
            },
        },
        "leaderWorkerTemplate": {
            "size": serving.group_size,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": _template(args, leader=True),
            "workerTemplate": _template(args, leader=False),
        },
    }


def _template(args: ModelGroupsArgs, *, leader: bool) -> PodTemplateSpecArgs:
    model, serving, common = args.model.name, args.serving, args.common
    parts = [
        pods.runtime_code(common.runtime),
        pods.model_repository(args.repository),
        pods.claim("shared", common.volumes.engines_ro, pods.SHARED, read_only=True),
        pods.secret("token", token_name(model), TOKEN_FOLDER),
        *pods.scratch(serving),
    ]
    annotations = dict(pods.ANNOTATIONS)
    if loads_bucket(args.model):
        parts.append(pods.claim("weights", common.volumes.weights[model], pods.WEIGHTS, read_only=True))
        annotations |= common.volumes.weights_annotations
    sidecars: list[ContainerArgs] = []
    if fabric := _fabric(serving):
        parts += pods.host_folders(fabric)
        sidecars = pods.sidecars(fabric)
        annotations |= fabric.annotations
    volumes = pods.volumes(parts)
    if leader:
        frontend = Frontend(
            model=args.model, serving=serving, common=common, code=args.frontend, engine=engine_folder(args.model)
        )
        volumes += pods.volumes(frontend.parts())
        sidecars.append(frontend.container())
    where = placement(model, serving)
    spec = PodSpecArgs(
        service_account_name=account_name(model),
        automount_service_account_token=False,
        enable_service_links=False,
        security_context=pods.pod_security(),
        node_selector=serving.pool.node_selector or None,
        tolerations=pods.tolerations(serving.pool) or None,
        affinity=where.affinity,
        topology_spread_constraints=where.spread,
        init_containers=sidecars or None,
        containers=[_container(args, parts, leader=leader)],
        volumes=volumes,
        termination_grace_period_seconds=serving.grace_seconds,
    )
    labels = common_labels() | pods_of(model)
    return PodTemplateSpecArgs(metadata=ObjectMetaArgs(labels=labels, annotations=annotations), spec=spec)


def _container(args: ModelGroupsArgs, parts: Sequence[pods.Mounted], *, leader: bool) -> ContainerArgs:
    serving = args.serving
    ports = {**TRITON_PORTS, "rendezvous": RENDEZVOUS_PORT}
    start, ready, live = _leader_probes(serving) if leader else _worker_probes()
    return ContainerArgs(
        name="triton",
        image=args.common.image,
        image_pull_policy="Always",
        command=_command(args),
        working_dir=pods.ROOT,
        env=pods.environment(*_transport(args)),
        ports=[ContainerPortArgs(name=name, container_port=port) for name, port in ports.items()] if leader else None,
        # Of workers too: one that is told to end has its leader drain, which proxies must have left when all pods end.
        lifecycle=LifecycleArgs(pre_stop=LifecycleHandlerArgs(sleep=SleepActionArgs(seconds=serving.prestop_seconds))),
        startup_probe=start,
        readiness_probe=ready,
        liveness_probe=live,
        resources=pods.resources(_of_triton(serving) if leader else serving, devices=_devices(serving)),
        security_context=pods.container_security(),
        volume_mounts=pods.mounts(parts),
    )


def _of_triton(serving: ServingPlan) -> ServingPlan:
    """What is left to Triton of a leader's pod."""
    cpu, memory = serving.cpu_millis - serving.frontend_cpu_millis, serving.memory_mib - serving.frontend_memory_mib
    return replace(serving, cpu_millis=cpu, memory_mib=memory)


def _command(args: ModelGroupsArgs) -> list[str]:
    serving = args.serving
    options = {
        "--model-repository": pods.MODELS,
        "--engine": engine_folder(args.model),
        "--token-file": f"{TOKEN_FOLDER}/{TOKEN_KEY}",
        "--drain-seconds": str(serving.drain_seconds),
        "--log-level": serving.log_level,
    }
    return ["python3", "-m", "runtime.launch", *(word for option in options.items() for word in option)]


def _leader_probes(serving: ServingPlan) -> tuple[ProbeArgs, ProbeArgs, ProbeArgs]:
    """Start-up, readiness, liveness: Triton of rank 0, which is ready when every rank has loaded the model.

    The last is as patient as the first: after the loss of a rank the launcher starts them all again in place, and a
    shorter one would make each loss a new group on new nodes.
    """
    return (
        _http("ready", serving.startup_seconds, _PATIENT_PERIOD_SECONDS),
        _http("ready", _UNREADY_SECONDS, _PERIOD_SECONDS),
        _http("live", serving.startup_seconds, _PATIENT_PERIOD_SECONDS),
    )


def _worker_probes() -> tuple[ProbeArgs, ProbeArgs, ProbeArgs]:
    """The same three of the launcher, the only thing on a worker that can be asked. It is ready when it has joined its
    leader; until then it waits, which is no fault of its own."""
    return (
        _launcher([], _LAUNCH_SECONDS, _PATIENT_PERIOD_SECONDS),
        _launcher(["--ready"], _UNREADY_SECONDS, _PERIOD_SECONDS),
        _launcher([], _LAUNCH_SECONDS, _PATIENT_PERIOD_SECONDS),
    )


def _http(check: str, seconds: int, period: int) -> ProbeArgs:
    return ProbeArgs(
        http_get=HTTPGetActionArgs(path=f"/v2/health/{check}", port="http"),
        period_seconds=period,
        timeout_seconds=_PERIOD_SECONDS,
        failure_threshold=math.ceil(seconds / period),
    )


def _launcher(options: list[str], seconds: int, period: int) -> ProbeArgs:
    return ProbeArgs(
        exec_=ExecActionArgs(command=["python3", "-m", "runtime.health", *options]),
        period_seconds=period,
        timeout_seconds=_PERIOD_SECONDS,
        failure_threshold=math.ceil(seconds / period),
    )


def _transport(args: ModelGroupsArgs) -> list[Mapping[str, str]]:
    verbose = {"NCCL_DEBUG": "INFO"} if args.serving.log_level == "verbose" else {}
    fabric = _fabric(args.serving)
    return [fabric.environment if fabric else {}, verbose]


def _fabric(serving: ServingPlan) -> Fabric | None:
    """The network between GPUs that the model's pods use."""
    return serving.pool.fabric if serving.rdma_per_pod else None


def _devices(serving: ServingPlan) -> dict[str, str]:
    """RDMA interfaces, and the huge pages that their driver maps."""
    fabric = _fabric(serving)
    if fabric is None:
        return {}
    interfaces = {fabric.resource: str(serving.rdma_per_pod)} if fabric.resource else {}
    pages = {"hugepages-2Mi": pods.mebibytes(serving.hugepages_mib)} if serving.hugepages_mib else {}
    return interfaces | pages
