"""Everything that a cluster needs around the models."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pulumi
from pulumi_kubernetes.core.v1 import ConfigMap
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs

from components.platform.autoscaler import NAMESPACE, PRIORITIES, cluster_autoscaler, priorities
from components.platform.charts import install
from components.platform.controllers import leader_worker_set, metrics_server
from components.platform.gpu_operator import gpu_operator
from components.platform.memlock.component import Memlock, MemlockArgs
from components.platform.mig_gate.component import MigGate, MigGateArgs, gated
from components.platform.namespaces import GPU_OPERATOR, LABELS, NODES, SERVING, namespaces, serving_rules
from planner.fleet import CloudPlan
from planner.versions import python_image

if TYPE_CHECKING:
    # The clouds hand over charts of their own, and so import this package.
    from components.clouds.base import Cloud


@dataclass(frozen=True, kw_only=True)
class PlatformArgs:
    """`cloud` is the cluster that `plan` has become."""

    cloud: "Cloud"
    plan: CloudPlan


class Platform(pulumi.ComponentResource):
    """Namespaces and their rules, GPU operator, device plugins, LeaderWorkerSet, autoscaler, metrics.

    Models are served in `namespace`, once everything in `ready` is there.
    """

    namespace: str
    ready: list[pulumi.Resource]

    def __init__(self, name: str, args: PlatformArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        provider = pulumi.ResourceOptions(providers=[args.cloud.kubernetes])
        super().__init__("tritonfleet:platform:Platform", name, None, pulumi.ResourceOptions.merge(provider, opts))
        cloud, plan = args.cloud, args.plan
        child = pulumi.ResourceOptions(parent=self)
        spaces = namespaces(plan, name, self)
        rules = serving_rules(plan, name=name, parent=self, depends_on=[spaces[SERVING]])

        autoscaling = cloud.autoscaling()
        needs = [*cloud.nodes, *spaces.values()]
        if autoscaling.group_pattern is not None:
            expander = ConfigMap(
                f"{name}-priorities",
                metadata=ObjectMetaArgs(name=PRIORITIES, namespace=NAMESPACE, labels=LABELS),
                data={"priorities": priorities(plan, autoscaling.group_pattern)},
                opts=child,
            )
            needs.append(expander)
        own = [gpu_operator(plan, cloud.mirrors), leader_worker_set(cloud.mirrors), metrics_server(cloud.mirrors)]
        charts = [*(chart for chart in own if chart.chart not in plan.brings), *cloud.charts()]
        ready: list[pulumi.Resource] = [
            *rules,
            *autoscaling.resources,
            *(install(chart, name=name, parent=self, depends_on=needs) for chart in charts),
        ]
        if autoscaling.chart is not None:
            autoscaler = cluster_autoscaler(plan, autoscaling.chart, cloud.mirrors)
            needs = [*needs, *autoscaling.resources]
            ready.append(install(autoscaler, name=name, parent=self, depends_on=needs))
        closed = [pool for pool in plan.pools if gated(pool)]
        if closed:
            gate = MigGateArgs(
                namespace=GPU_OPERATOR,
                pools=closed,
                mirrors=cloud.mirrors,
                image=python_image(plan.images.python_digest),
                depends_on=[spaces[GPU_OPERATOR], *cloud.nodes],
            )
            ready.append(MigGate(f"{name}-mig-gate", gate, child))
        locked = [pool.name for pool in plan.pools if pool.fabric and pool.fabric.raise_memlock]
        if locked:
            space = pulumi.ResourceOptions(parent=self, depends_on=[spaces[NODES]])
            image = python_image(plan.images.python_digest)
            memlock = MemlockArgs(namespace=NODES, pools=locked, mirrors=cloud.mirrors, image=image)
            ready.append(Memlock(f"{name}-memlock", memlock, space))
        self.namespace = SERVING
        self.ready = ready
        self.register_outputs({"namespace": SERVING})
