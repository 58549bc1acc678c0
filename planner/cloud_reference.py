"""Prints docs/clouds.md, what each cloud has, side by side: python -m planner.cloud_reference > docs/clouds.md"""

from collections.abc import Callable

from planner.clouds import CLOUDS, CloudFacts
from planner.clouds.facts import Sizes
from planner.fleet import Fabric
from planner.gpus import gpus
from planner.instances import instances, regions
from planner.object_sources import STORES
from planner.pool_problems import PRIORITY

INTRODUCTION = """\
# What each cloud has

<!-- Made by `python -m planner.cloud_reference > docs/clouds.md` from planner/clouds. Do not edit. -->

The same stack file with another `cloud:`, its region, zones, instance types and project, gives the same models. What
differs is data (`planner/clouds/`, where each figure names its source), and this is that data. Which fields of the pods
differ is in [clouds-405b-pods.md](clouds-405b-pods.md); how to run on one cloud, in [aws.md](aws.md), [gcp.md](gcp.md),
[azure.md](azure.md). An existing cluster ([existing.md](existing.md)) brings its own nodes, storage class and identity;
nothing of this table is made there.
"""

_GATES = {
    "taint": "a start-up taint, until all slices are offered",
    "device-plugin": "a device plugin that starts only when the GPUs are seen divided",
    None: "the cloud's device plugin, which offers nothing before",
}
_DIVIDED_BY = {True: "the GPU operator's MIG manager", False: "the cloud, as its nodes start"}


def reference() -> str:
    """The whole page as Markdown."""
    clouds = list(CLOUDS.values())
    lines = [
        INTRODUCTION,
        "| | " + " | ".join(cloud.title for cloud in clouds) + " |",
        "| --- |" + " --- |" * len(clouds),
    ]
    lines += [f"| {name} | " + " | ".join(map(row, clouds)) + " |" for name, row in _ROWS.items()]
    lines += ["", "## What a stack file can ask for and a cloud does not give", ""]
    lines += ["Asked for, it is refused in planning, with the reason and the nearest thing that works.", ""]
    lines += ["| | Key | Why | Instead |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {cloud.title} | `{key}` | {why.reason} | {why.instead} |"
        for cloud in clouds
        for key, why in sorted(cloud.unsupported.items())
    ]
    return "\n".join([*lines, ""])


def _capacity(cloud: CloudFacts) -> str:
    kinds = sorted(PRIORITY, key=lambda kind: -PRIORITY[kind])
    return ", ".join(kind for kind in kinds if f"pools[].capacity={kind}" not in cloud.unsupported)


def _order(cloud: CloudFacts) -> str:
    return f"a ComputeClass (`{cloud.pool_label}`)" if cloud.pool_label else "the autoscaler's priority expander"


def _notices(cloud: CloudFacts) -> str:
    return "; ".join(
        f"{notice.seconds} s, of which pods have {notice.pod_seconds}"
        + (f" (from Kubernetes {'.'.join(map(str, notice.since))})" if any(notice.since) else "")
        for notice in cloud.spot_notices
    )


def _slices(cloud: CloudFacts) -> str:
    if not cloud.mig.whole_resource:
        return "`nvidia.com/mig-<profile>`"
    labels = ", ".join(f"`{label}`" for label in cloud.mig.node_labels)
    return "`nvidia.com/gpu`" + (f", with the node label {labels}" if labels else "")


def _profiles(cloud: CloudFacts) -> str:
    return ", ".join(cloud.mig.profiles(gpus()["H100-80GB"]))


def _fabric(fabric: Fabric) -> str:
    asked = f"`{fabric.resource}`" if fabric.resource else "annotations"
    return f"{fabric.kind} ({asked}{'; not `restricted`' if fabric.exception else ''})"


def _nfs(cloud: CloudFacts) -> str:
    nfs = cloud.nfs
    smallest = nfs.sizes.smallest if nfs.sizes else None
    one, together = nfs.rate(smallest)
    size = f"{_sizes(nfs.sizes)}; at its smallest" if nfs.sizes else "elastic;"
    return f"{nfs.name}: {size} {one:.2f} GB/s for a node, {together:.2f} GB/s for all"


def _lustre(cloud: CloudFacts) -> str:
    tiers = "; ".join(f"{tier} MB/s per TiB: {_sizes(sizes)}" for tier, sizes in sorted(cloud.lustre.tiers.items()))
    return f"{cloud.lustre.name}. {tiers}"


def _others(cloud: CloudFacts) -> str:
    return " and ".join(f"`{scheme}://`" for scheme in STORES if scheme != cloud.object_store)


def _sizes(sizes: Sizes) -> str:
    return f"{sizes.smallest:,} to {sizes.largest:,} GiB by {sizes.step:,}"


_ROWS: dict[str, Callable[[CloudFacts], str]] = {
    "`cloud:`": lambda cloud: f"`{cloud.name}`",
    "GPU instance types, regions in the catalogue": lambda cloud: (
        f"{len(instances(cloud.name))}, {len(regions(cloud.name))}"
    ),
    "Capacity types, in the order tried": _capacity,
    "Order kept by": _order,
    "Reservations": lambda cloud: ", ".join(cloud.reservation_kinds),
    "Notice of spot nodes": _notices,
    "Taint of spot nodes": lambda cloud: f"`{cloud.spot_taint.key}={cloud.spot_taint.value}`",
    "Instance types of one pool": lambda cloud: "several alike" if cloud.mixed_types else "one",
    "MIG: GPUs are divided by": lambda cloud: _DIVIDED_BY[cloud.mig.labelled],
    "MIG: a pod asks for": _slices,
    "MIG: kept off undivided GPUs by": lambda cloud: _GATES[cloud.mig.gate],
    "MIG profiles of an H100 80 GB": _profiles,
    "Between nodes": lambda cloud: ", ".join(map(_fabric, cloud.fabrics.values())),
    "`storage.shared: nfs`": _nfs,
    "`storage.shared: lustre`": _lustre,
    "Pods' identity": lambda cloud: cloud.identity,
    "`bucket://` weights": lambda cloud: cloud.bucket,
    "Weights in other buckets": lambda cloud: (
        f"`{cloud.object_store}://`; and what everybody may read in {_others(cloud)}"
    ),
    "The cloud's own, not installed": lambda cloud: ", ".join(sorted(cloud.brings)) or "nothing",
    "Quotas are counted in": lambda cloud: cloud.quota_unit,
}

if __name__ == "__main__":
    print(reference(), end="")
