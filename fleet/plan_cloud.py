"""The cloud's part of `fleet plan`: node groups with their price, start and end of pods, quotas."""

import datetime
import sys
from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from planner.cloud_config import ExistingConfig
from planner.fleet import CloudPlan
from planner.instances import instances, stale
from planner.plan import FleetPlan


def warn_of_age(types: Mapping[str, Iterable[str]]) -> None:
    """Tell the oldest price of the instance types of each cloud, where that is old. The planner reads no clock, so that
    a stack has one plan."""
    today = datetime.datetime.now(datetime.UTC).date()
    for cloud, names in types.items():
        known = instances(cloud)
        if text := stale(cloud, [known[name] for name in names], today):
            print(f"warning: {text}", file=sys.stderr)


def types_of(cloud: CloudPlan) -> set[str]:
    """The instance types that a plan rests on."""
    return {name for pool in cloud.pools for group in pool.node_groups for name in group.instance_types}


def print_infrastructure(plan: FleetPlan, cloud: CloudPlan, console: Console) -> None:
    """Print it as tables; money is of GPU nodes alone, and every estimate says so."""
    if cloud.existing:
        _print_cluster(cloud.existing, console)
    else:
        console.print(f"\n{cloud.name} {cloud.region}: {', '.join(cloud.network.zones)}")
        _print_groups(cloud, console)
    console.print(cloud.cost.note, soft_wrap=True)
    for model in plan.models:
        serving = model.serving
        if serving is None:
            continue
        console.print(
            f"{model.name}: {serving.replicas} x {serving.group_size} pods on pool {serving.pool.name}; loads in about "
            f"{serving.load_seconds} s (estimate: {serving.load_source}); {serving.drain_seconds} s to finish requests",
            soft_wrap=True,
        )
        if serving.pool.gpu_resource is None:
            gibibytes = serving.memory_mib / 1024
            console.print(f"each of them asks for {serving.cpu_millis / 1000:g} CPUs and {gibibytes:.1f} GiB of memory")
    for quota in cloud.quotas:
        console.print(f"the account must allow {quota.needed:,} {quota.unit} of {quota.name!r}")


def _print_cluster(existing: ExistingConfig, console: Console) -> None:
    """Nothing of it is made and nothing of it is paid for: where it is, and what of it is used."""
    context = existing.context or "the current one"
    console.print(f"\nexisting cluster: context {context} of {existing.kubeconfig}", markup=False, soft_wrap=True)
    console.print(
        f"a volume of {existing.volume_gib:,} GiB of class {existing.storage_class}, {existing.access_mode}",
        markup=False,
        soft_wrap=True,
    )
    for nodes in existing.nodes:
        gpus = " ".join(filter(None, (nodes.gpu, nodes.mig_profile)))
        console.print(f"{nodes.name}: up to {nodes.nodes} nodes with {nodes.gpus_per_node} {gpus}", markup=False)


def _print_groups(cloud: CloudPlan, console: Console) -> None:
    groups = Table(
        title="Node groups, in the order they are tried",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in ("group", "instance\ntypes", "zones", "nodes\nmin-max", "of a node", "nodes\nplanned", "USD/h"):
        # Where the line is too short, names break: a cut price would be another price.
        names = column in ("instance\ntypes", "zones")
        groups.add_column(column, no_wrap=not names, overflow="fold" if names else "ellipsis")
    prices = {line.node_group: line for line in cloud.cost.lines}
    for pool in cloud.pools:
        for group in pool.node_groups:
            devices = (f"{n} {name.rpartition('/')[2]}" for name, n in group.allocatable.items() if "/" in name)
            price = prices[group.name]
            groups.add_row(
                group.name,
                "\n".join(group.instance_types),
                "\n".join(group.zones),
                f"{group.min_nodes}-{group.max_nodes}",
                "\n".join(devices),
                str(price.nodes),
                "unknown" if price.usd_per_hour is None else f"{price.usd_per_hour:,.2f}",
            )
    console.print(groups)
    if cloud.cost.usd_per_month is not None:
        console.print(f"GPU nodes of the preferred capacity: about {cloud.cost.usd_per_month:,.0f} USD per month")
