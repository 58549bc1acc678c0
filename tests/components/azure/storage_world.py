"""Storage, readers and claims of Azure by themselves, in a cluster and a network that only have names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pulumi

from components.clouds.azure.identity import Readers, ReadersArgs
from components.clouds.azure.storage import DataKey, Storage, StorageArgs
from components.clouds.azure.volumes import Claims, ClaimsArgs
from components.clouds.base import Volumes
from planner.fleet import StoragePlan
from planner.plan import ModelPlan, plan_file
from tests.components.world import SUBSCRIPTION, Recorded, run

NFS = StoragePlan(
    kind="nfs", capacity_gib=5120, throughput_mb_s_per_tib=500, zone="eastus-1", node_cache=True, keep_data=True
)
LUSTRE = replace(NFS, kind="lustre", capacity_gib=8192, zone="eastus-2")
ZONES = ("eastus-1", "eastus-2")
ISSUER = "https://eastus.oic.prod-aks.azure.com/tenant/cluster/"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a test calls as other rooms would."""

    storage: Storage
    readers: Readers
    volumes: Volumes


@cache
def models(*prefixes: str | None) -> tuple[ModelPlan, ...]:
    """A model for each prefix of the bucket, called `m0`, `m1` and so on; with None it comes from elsewhere."""
    model = plan_file(Path(__file__).parents[3] / "stacks" / "Pulumi.aws-small-mig.yaml").models[0]
    return tuple(replace(model, name=f"m{index}", config=_from(model, prefix)) for index, prefix in enumerate(prefixes))


def _from(model: ModelPlan, prefix: str | None) -> Any:
    return model.config.model_copy(update={"source": f"bucket://{prefix}"} if prefix else {})


def build(
    plan: StoragePlan,
    mounted: Sequence[ModelPlan] = (),
    use: Callable[[Parts], object] = lambda _: None,
    *,
    zones: Sequence[str] = ZONES,
    api_cidrs: Sequence[str] = (),
    protect: bool = True,
    preview: bool = False,
) -> Recorded:
    """What these parts register for a plan of the storage and for models that mount it."""

    def program() -> None:
        granted = pulumi.CustomResource("test:index:Granted", "granted", {})
        namespace = pulumi.CustomResource("test:index:Namespace", "namespace", {})
        storage = Storage(
            "fleet-storage",
            StorageArgs(
                plan=plan,
                resource_group="group",
                region="eastus",
                zones=zones,
                api_cidrs=api_cidrs,
                network_id="vnet-id",
                endpoint_subnet_id="endpoints-id",
                lustre_subnet_id="lustre-id",
                key=DataKey(
                    vault_id="vault-id",
                    vault_uri="https://vault/",
                    name="data",
                    url="https://vault/keys/data/1",
                    identity_id="keeper-id",
                    granted=[granted],
                ),
                protect=protect,
            ),
        )
        readers = Readers(
            "fleet-readers",
            ReadersArgs(
                subscription=SUBSCRIPTION, resource_group="group", region="eastus", issuer=ISSUER, bucket=storage.bucket
            ),
        )
        claims = Claims(
            "fleet-claims",
            ClaimsArgs(
                namespace="serving",
                models=mounted,
                files=storage.files,
                bucket=storage.bucket,
                readers=readers,
                protect=protect,
                depends_on=[namespace],
            ),
        )
        use(Parts(storage=storage, readers=readers, volumes=claims.volumes))

    return run(program, preview=preview)
