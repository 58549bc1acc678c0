"""Everything that serves the models of a plan on a cluster."""

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as kubernetes
import pulumi_random
from pulumi_kubernetes.core.v1 import Secret
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs

from components.clouds.base import Cloud, Identity
from components.platform import Platform
from components.platform.charts import mirrored
from components.serving import engine_build, groups, weights_fetch
from components.serving.common import Common, config_map
from components.serving.config_maps import frontend_files, repository_files, runtime_files
from components.serving.engine_build import EngineBuild, EngineBuildArgs
from components.serving.environment import Environment, EnvironmentArgs
from components.serving.groups import ModelGroups, ModelGroupsArgs
from components.serving.keys import ApiKeys, ApiKeysArgs
from components.serving.labels import common_labels
from components.serving.placement import room_to_surge
from components.serving.service import endpoint
from components.serving.weights_fetch import TOKEN_KEY, WeightsFetch, WeightsFetchArgs
from planner.cloud_config import KeyLimits
from planner.fleet import ServingPlan
from planner.object_sources import cloud_source
from planner.plan import FleetPlan, ModelPlan
from planner.sources import bucket_prefix
from planner.versions import TRITON_IMAGE, python_image

TOKEN_SECRET = "hugging-face-token"


@dataclass(frozen=True, kw_only=True)
class ServingArgs:
    """`plan` is the one that `cloud` and `platform` were made for; the token is for gated models of the Hub, and
    `api_keys` are the stack's value of that name."""

    cloud: Cloud
    platform: Platform
    plan: FleetPlan
    hugging_face_token: pulumi.Input[str] | None
    api_keys: pulumi.Input[str] | None


class Serving(pulumi.ComponentResource):
    """One download for each distinct source, one build for each distinct engine, one set of groups for each model.

    `endpoints` are the base URLs for OpenAI's clients inside the cluster, by model. `generated_keys` has the key that
    was made for a stack that gives none.
    """

    endpoints: dict[str, str]
    generated_keys: pulumi.Output[Mapping[str, str]] | None

    def __init__(self, name: str, args: ServingArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        provider = pulumi.ResourceOptions(providers=[args.cloud.kubernetes])
        super().__init__("tritonfleet:serving:Serving", name, None, pulumi.ResourceOptions.merge(provider, opts))
        child = pulumi.ResourceOptions(parent=self)
        plan, cloud, namespace, ready = args.plan, args.cloud, args.platform.namespace, args.platform.ready
        common = Common(
            namespace=namespace,
            ready=ready,
            image=_image(plan),
            python_image=mirrored(_python_image(plan), cloud.mirrors),
            runtime=runtime_files(),
            volumes=cloud.volumes(namespace, plan.models, opts=pulumi.ResourceOptions(depends_on=ready)),
            file_system=_file_system(plan),
            # What lies under a name made of its content is that content.
            file_provider=kubernetes.Provider(
                f"{name}-files",
                kubeconfig=cloud.kubeconfig,
                context=cloud.context,
                upsert_existing_objects=True,
                # Without it another API key would replace the Secret, which pods mount.
                enable_secret_mutable=True,
                # Like the cloud's own provider it needs more than a kubeconfig to reach the cluster.
                opts=pulumi.ResourceOptions(parent=self, depends_on=[cloud.kubernetes]),
            ),
        )

        def identity(account: str, prefix: str | None) -> Identity:
            return cloud.identity(account, namespace=namespace, service_account=account, bucket_prefix=prefix)

        random = pulumi_random.Provider(f"{name}-random", opts=child)
        needs: list[pulumi.Resource] = [
            *ready,
            *common.volumes.resources,
            config_map(f"{name}-runtime", common.runtime, common, parent=self),
        ]
        environment = Environment(f"{name}-environment", EnvironmentArgs(common=common, depends_on=needs), child)
        code, limits = frontend_files(), _limits(plan)
        keys = ApiKeys(
            f"{name}-api-keys", ApiKeysArgs(keys=args.api_keys, limits=limits, common=common, random=random), child
        )
        beside: list[pulumi.Resource] = [
            environment.job,
            keys.secret,
            config_map(f"{name}-frontend", code, common, parent=self),
        ]
        fetches = self._fetches(name, args, common, [*needs, environment.job])
        builds: dict[str, EngineBuild] = {}
        for model in plan.models:
            if model.engine.id in builds:
                continue
            folder = weights_fetch.fetched(model)
            builds[model.engine.id] = EngineBuild(
                f"{name}-engine-{model.engine.id}",
                EngineBuildArgs(
                    model=model,
                    serving=_serving(model),
                    common=common,
                    identity=identity(engine_build.account_name(model), bucket_prefix(model.config.source)),
                    depends_on=[*needs, *([fetches[folder].job] if folder else [])],
                ),
                child,
            )
        for model in plan.models:
            ModelGroups(
                f"{name}-{model.name}",
                ModelGroupsArgs(
                    model=model,
                    serving=_serving(model),
                    common=common,
                    identity=identity(
                        groups.account_name(model.name),
                        bucket_prefix(model.config.source) if groups.loads_bucket(model) else None,
                    ),
                    repository=repository_files(model, groups.engine_folder(model)),
                    frontend=code,
                    surge=room_to_surge(plan, _serving(model)),
                    random=random,
                    depends_on=[*needs, *beside, builds[model.engine.id].job],
                ),
                child,
            )
        self.endpoints = {model.name: endpoint(model.name, namespace) for model in plan.models}
        self.generated_keys = keys.generated
        self.register_outputs({"endpoints": self.endpoints})

    def _fetches(
        self, name: str, args: ServingArgs, common: Common, needs: list[pulumi.Resource]
    ) -> dict[str, WeightsFetch]:
        """By the checkpoint's folder: engines and models may share one."""
        models = {folder: model for model in args.plan.models if (folder := weights_fetch.fetched(model))}
        token: list[pulumi.Resource] = []
        gated = any(model.config.source.startswith(weights_fetch.HUB) for model in models.values())
        if gated and args.hugging_face_token is not None:
            metadata = ObjectMetaArgs(name=TOKEN_SECRET, namespace=common.namespace, labels=common_labels())
            data = {TOKEN_KEY: args.hugging_face_token}
            token = [Secret(f"{name}-hub", metadata=metadata, string_data=data, opts=common.child(self))]
        return {
            folder: WeightsFetch(
                f"{name}-weights-{folder}",
                WeightsFetchArgs(
                    model=model,
                    identity=_reader(args.cloud, model, weights_fetch.object_name(folder), common.namespace),
                    common=common,
                    token_secret=TOKEN_SECRET if token else None,
                    deadline_seconds=weights_fetch.deadline_seconds(args.plan.models),
                    depends_on=[*needs, *token],
                ),
                pulumi.ResourceOptions(parent=self),
            )
            for folder, model in models.items()
        }


def _reader(cloud: Cloud, model: ModelPlan, account: str, namespace: str) -> Identity:
    """Who reads a source: nobody in the cloud, but for a bucket that not everybody may read."""
    source = cloud_source(model.config)
    if source is None:
        return Identity()
    return cloud.source_reader(account, namespace=namespace, service_account=account, source=source)


def _image(plan: FleetPlan) -> str:
    # Not through the cloud's mirrors: none caches NVIDIA's registry without an account there.
    own = plan.infrastructure.images.triton if plan.infrastructure else None
    return own or TRITON_IMAGE.reference


def _python_image(plan: FleetPlan) -> str:
    return python_image(plan.infrastructure.images.python_digest if plan.infrastructure else None)


def _limits(plan: FleetPlan) -> Mapping[str, KeyLimits]:
    return plan.infrastructure.key_limits if plan.infrastructure else {}


def _file_system(plan: FleetPlan) -> str:
    if plan.infrastructure is None:
        raise ValueError("the plan has no shared file system: it is not of a managed cloud")
    storage = plan.infrastructure.storage
    # What is in one zone is another file system in another; so is another storage class.
    return f"{storage.kind}-{storage.zone}" if storage.zone else storage.kind


def _serving(model: ModelPlan) -> ServingPlan:
    if model.serving is None:
        raise ValueError(f"the plan does not say how {model.name} is served: it is not of a managed cloud")
    return model.serving
