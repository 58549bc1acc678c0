"""The Pulumi program: plan the stack, build what the plan says, export what its users need."""

from dataclasses import asdict
from pathlib import Path

import pulumi
from pulumi.runtime.config import CONFIG

from components.clouds import cloud_class
from components.platform import Platform, PlatformArgs
from components.serving import Serving, ServingArgs
from fleet.preview import show
from planner.errors import PlanError, Problem
from planner.fleet import CloudPlan
from planner.plan import FleetPlan, plan_values
from planner.pulumi_config import values_of


def main() -> None:
    plan, site = planned()
    for model in plan.models:
        for warning in model.warnings:
            pulumi.warn(f"{model.name}: {warning}")
    show(plan)
    cloud = cloud_class(plan.cloud)(site.name, site, plan.models)
    platform = Platform("platform", PlatformArgs(cloud=cloud, plan=site))
    secret = pulumi.Config("tritonfleet").get_secret
    token, keys = secret("hugging_face_token"), secret("api_keys")
    args = ServingArgs(cloud=cloud, platform=platform, plan=plan, hugging_face_token=token, api_keys=keys)
    serving = Serving("serving", args)
    pulumi.export("endpoints", serving.endpoints)
    if serving.generated_keys is not None:
        pulumi.export("api_keys", serving.generated_keys)
    if cloud.bucket is not None:
        pulumi.export("bucket", cloud.bucket)
    pulumi.export("kubeconfig", pulumi.Output.secret(cloud.kubeconfig))
    pulumi.export("engine_keys", {model.name: model.engine.id for model in plan.models})
    pulumi.export("cost", asdict(site.cost))
    pulumi.export("quotas", [asdict(quota) for quota in site.quotas])


def planned() -> tuple[FleetPlan, CloudPlan]:
    """The plan of the whole configuration; one that cannot be deployed ends the program with every reason."""
    try:
        # All of it, not key by key: a key that nobody reads is a typing slip, and has to be refused.
        plan = plan_values(values_of(CONFIG.get()), base_dir=Path(__file__).parent / "stacks")
        if plan.infrastructure is None:
            fix = "`python -m fleet serve` serves it on this machine; to deploy, choose a cloud"
            raise PlanError([Problem(key="cloud", what=plan.cloud, consequence="there is nothing to deploy", fix=fix)])
        # `fleet synth` runs this file by another name: it has no credentials, and looks at no cluster.
        if __name__ == "__main__" and (found := cloud_class(plan.cloud).unreachable(plan.infrastructure)):
            raise PlanError(found)
    except PlanError as error:
        count = len(error.problems)
        raise pulumi.RunError(f"{count} problem{'s' if count > 1 else ''} in the stack\n{error}") from error
    return plan, plan.infrastructure


main()
