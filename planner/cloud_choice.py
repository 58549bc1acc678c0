"""What the choice of a cloud means for a stack file: what belongs there, and the GPU that a pool decides."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from planner.clouds import CLOUDS, CloudFacts, cloud_facts
from planner.config_problems import Finding
from planner.errors import Problem, did_you_mean, shown
from planner.gpus import gpus
from planner.instances import instances, regions
from planner.untyped import as_list, as_mapping

if TYPE_CHECKING:
    from planner.config import SiteConfig

EXISTING = "existing"
_MANAGED_ONLY = ("region", "network", "cluster", "storage", "pools")
_NO_EFFECT = "it would have no effect"


def misplaced(site: "SiteConfig", values: Mapping[str, Any]) -> list[Problem]:
    """What the cloud needs and the file lacks, and what the file asks for and the cloud cannot give."""
    found = [*_foreign(site, values)]
    if site.cloud == EXISTING:
        found += _on_existing(values)
    else:
        found += [*_missing(site, values), *_unsupported(cloud_facts(site.cloud), values)]
    return [Problem(key=key, what=what, consequence=cost, fix=fix) for key, what, cost, fix in found]


def on_pool(
    model: dict[Any, Any], site: "SiteConfig", values: Mapping[str, Any], key: str
) -> tuple[dict[Any, Any], list[Problem]]:
    """The model with the GPU that its pool decides, and what is wrong with the choice of pool."""
    existing = as_list(as_mapping(values.get(EXISTING)).get("nodes"))
    listed = existing if site.cloud == EXISTING else as_list(values.get("pools"))
    pools = {known: pool for pool in map(as_mapping, listed) if isinstance(known := pool.get("name"), str)}
    name = model.get("pool")
    if name is None and site.cloud != EXISTING and model.get("backend") == "cpu":
        cost, fix = "it has no nodes without GPUs for models", "choose tensorrt or pytorch, and a pool"
        return model, [Problem(key=f"{key}.backend", what=f"cpu, on {site.cloud}", consequence=cost, fix=fix)]
    if name is None and site.cloud == EXISTING and (site.existing is None or model.get("backend") == "cpu"):
        return model, []
    if name is not None and not isinstance(name, str):
        return model, []  # said when the model is read
    pool = pools.get(name) if name else None
    if pool is None:
        where = "existing.nodes" if site.cloud == EXISTING else "pools"
        known = f"give one of {', '.join(pools)}" if pools else f"list the pool under `{where}`"
        fix = did_you_mean(name, pools, known) if name else known
        what = "is missing" if name is None else f"no pool named {shown(name)}"
        return model, [Problem(key=f"{key}.pool", what=what, consequence=_NO_GPUS, fix=fix)]
    if model.get("backend") == "cpu":
        what, cost = "cpu, on a pool of GPUs", "the GPUs would be paid for and never used"
        return model, [Problem(key=f"{key}.backend", what=what, consequence=cost, fix="choose tensorrt or pytorch")]
    return _with_gpu_of(model, site.cloud, str(name), pool, key)


_NO_GPUS = "nothing says which GPUs the model runs on"


def _with_gpu_of(
    model: dict[Any, Any], cloud: str, name: str, pool: Mapping[Any, Any], key: str
) -> tuple[dict[Any, Any], list[Problem]]:
    if cloud == EXISTING:
        gpu, count = pool.get("gpu"), pool.get("gpus_per_node")
    else:
        first = next(iter(as_list(pool.get("instance_types"))), None)
        instance = instances(cloud).get(first) if isinstance(first, str) else None
        gpu, count = (instance.gpu, instance.gpu_count) if instance else (None, None)
    if not isinstance(gpu, str) or gpu not in gpus() or not isinstance(count, int) or count < 1:
        return model, []  # said of the pool
    profile = pool.get("mig_profile")
    # A profile that the GPU does not have is said of the pool alone.
    mig_profile = profile if isinstance(profile, str) and profile in gpus()[gpu].mig_slices else None
    decided = {"gpu": gpu, "mig_profile": mig_profile}
    problems = [
        Problem(
            key=f"{key}.{field}",
            what=f"{shown(model[field])}, but pool {name} has {value or 'whole GPUs'}",
            consequence="the engine would be built for a GPU that the pool does not have",
            fix="remove it: the pool decides",
        )
        for field, value in decided.items()
        if field in model and model[field] != value
    ]
    # As many GPUs as the group needs of a node: one engine then serves nodes of any larger size.
    per_node = 1 if mig_profile else min(count, _ranks(model))
    return {"gpus_per_node": per_node, **model, **decided}, problems


def _ranks(model: dict[Any, Any]) -> int:
    degrees = [model.get(degree, 1) for degree in ("tensor_parallel", "pipeline_parallel")]
    tensor, pipeline = (degree if isinstance(degree, int) and degree > 0 else 1 for degree in degrees)
    return tensor * pipeline


def _foreign(site: "SiteConfig", values: Mapping[str, Any]) -> Iterator[Finding]:
    for name in (*CLOUDS, EXISTING):
        if name in values and name != site.cloud:
            yield name, f"is for cloud: {name}", f"{_NO_EFFECT} on {site.cloud}", "remove it"


def _on_existing(values: Mapping[str, Any]) -> Iterator[Finding]:
    of_cluster = ("images", "hugging_face_token", "api_keys", "key_limits", "allow_replacement")
    cluster_only = () if EXISTING in values else of_cluster
    for name in _MANAGED_ONLY:
        if name in values:
            what = "is for a cloud that this program builds the cluster on"
            fix = f"remove it, or choose one of {', '.join(CLOUDS)} as cloud"
            yield name, what, f"{_NO_EFFECT} on an existing cluster", fix
    for name in cluster_only:
        if name in values:
            fix = "remove it, or say under `existing` which cluster to deploy to"
            yield name, "is for a cluster, and the stack names none", _NO_EFFECT, fix
    for index, node in enumerate(as_list(as_mapping(values.get(EXISTING)).get("nodes"))):
        yield from _existing_nodes(f"{EXISTING}.nodes[{index}]", as_mapping(node))


def _existing_nodes(key: str, nodes: Mapping[Any, Any]) -> Iterator[Finding]:
    gpu, profile = nodes.get("gpu"), nodes.get("mig_profile")
    if not isinstance(gpu, str):
        return
    if gpu not in gpus():
        fix = did_you_mean(gpu, gpus(), f"give one of {', '.join(gpus())}")
        cost = "neither memory nor compute capability is known: no engine can be planned"
        yield f"{key}.gpu", f"{shown(gpu)} is not a known GPU", cost, fix
    elif isinstance(profile, str) and profile not in gpus()[gpu].mig_slices:
        listed = ", ".join(gpus()[gpu].mig_slices)
        what, cost = f"{shown(profile)} is not a profile of {gpu}", "no such slice is there to run on"
        yield f"{key}.mig_profile", what, cost, f"give one of {listed}" if listed else "remove it"


def _missing(site: "SiteConfig", values: Mapping[str, Any]) -> Iterator[Finding]:
    cloud = cloud_facts(site.cloud)
    region = next(iter(regions(cloud.name)), "")
    needed = {
        "region": f"give a region, for example {region}",
        "network": f"give at least `{cloud.network.zone_hint}`",
        "pools": "list at least one pool of GPU nodes",
    }
    for name, fix in needed.items():
        # What is of another type is said when it is read.
        if values.get(name) is None or (name == "pools" and not values[name]):
            yield name, "is missing", "nothing says where the models run", fix
    for key, fix in cloud.required.items():
        if all(value is None for _, value in _given(values, key)):
            yield key, "is missing", f"{cloud.title} could not be asked for anything", fix


def _unsupported(cloud: CloudFacts, values: Mapping[str, Any]) -> Iterator[Finding]:
    for pattern, why in cloud.unsupported.items():
        path, _, only = pattern.partition("=")
        for key, value in _given(values, path):
            if only in (as_list(value) or [value]) if only else value not in (None, False):
                what = only or ("asked for" if value is True else "given")
                yield key, f"{what}, and this program does not do that on {cloud.title}", why.reason, why.instead


def _given(values: Mapping[Any, Any], path: str) -> Iterator[tuple[str, object]]:
    """Every place of a path such as `pools[].queued` that the file has, and what stands there."""
    name, _, rest = path.partition(".")
    plain = name.removesuffix("[]")
    if plain not in values:
        return
    found = values[plain]
    if not rest:
        yield plain, found
        return
    entries = [(f"{plain}[{index}]", entry) for index, entry in enumerate(as_list(found))]
    for key, entry in entries if name.endswith("[]") else [(plain, found)]:
        for inner, value in _given(as_mapping(entry), rest):
            yield f"{key}.{inner}", value
