"""Bucket, file system, claims and identities of an example stack, made without the rest of its cluster."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import pulumi
import pulumi_gcp as gcp
import pulumi_kubernetes

from components.clouds.base import Volumes
from components.clouds.gcp.identity import Identities
from components.clouds.gcp.storage import Storage, StorageArgs
from components.clouds.gcp.volumes import Claims, ClaimsArgs
from planner.fleet import CloudPlan
from planner.plan import ModelPlan
from tests.components.gcp.stacks import MIG, RDMA, example, site
from tests.components.world import Recorded, run

LUSTRE, NFS = RDMA, MIG  # what the example stacks keep their data on
PROJECT, NUMBER = "tritonfleet-example", "345678901234"


def loose(plan: CloudPlan) -> CloudPlan:
    """The same, its data not kept."""
    return replace(plan, storage=replace(plan.storage, keep_data=False))


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the program of a test may use."""

    storage: Storage
    identities: Identities
    claims: Callable[[Sequence[ModelPlan]], Volumes]


def build(plan: CloudPlan, use: Callable[[Parts], object] = lambda _: None, *, preview: bool = False) -> Recorded:
    """What the parts of a plan register. Data is protected where it is kept."""
    (subnet,) = plan.network.subnets

    def program() -> None:
        provider = gcp.Provider("fleet", project=PROJECT, region=plan.region)
        of_cloud = pulumi.ResourceOptions(provider=provider)
        network = gcp.compute.Network("network", auto_create_subnetworks=False, opts=of_cloud)
        services = gcp.servicenetworking.Connection(
            "services", network=network.id, service="services", reserved_peering_ranges=["range"], opts=of_cloud
        )
        grant = gcp.kms.CryptoKeyIAMMember("grant", crypto_key_id="key", role="role", member="agent", opts=of_cloud)
        cluster = gcp.container.Cluster("cluster", opts=of_cloud)
        cloud = pulumi.ComponentResource(
            "test:index:Cloud", "fleet", None, pulumi.ResourceOptions(providers=[provider])
        )
        child = pulumi.ResourceOptions(parent=cloud)
        storage = Storage(
            "fleet-storage",
            StorageArgs(
                plan=plan.storage,
                project=PROJECT,
                region=plan.region,
                network=network,
                private_services=services,
                nodes_cidr=subnet.private_cidr,
                key_id="the-key",
                key_grants=[grant],
                protect=plan.storage.keep_data,
            ),
            child,
        )
        identities = Identities(
            "fleet-identities",
            cluster_name="tritonfleet-stack",
            project=PROJECT,
            project_number=NUMBER,
            bucket=storage.bucket,
            cluster=cluster,
            parent=cloud,
        )

        def claims(models: Sequence[ModelPlan]) -> Volumes:
            kubernetes = pulumi_kubernetes.Provider("kubernetes", kubeconfig="{}")
            made = Claims(
                "fleet-claims",
                ClaimsArgs(
                    namespace="serving",
                    models=models,
                    files=storage.files,
                    bucket=storage.bucket,
                    protect=plan.storage.keep_data,
                    depends_on=[cluster, *storage.files.ready],
                ),
                pulumi.ResourceOptions(parent=cloud, providers=[kubernetes]),
            )
            return made.volumes

        use(Parts(storage=storage, identities=identities, claims=claims))

    return run(program, preview=preview)


@cache
def claimed(stack: str) -> Recorded:
    """An example stack's parts, with the claims of its models."""
    return build(site(stack), lambda parts: parts.claims(example(stack).models))
