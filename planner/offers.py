"""What the catalogue sells: instance types, where they are offered, and what a node costs as spot or on-demand."""

from collections.abc import Iterator
from dataclasses import dataclass

from planner.cloud_config import CapacityType
from planner.clouds import CLOUDS, cloud_facts
from planner.instances import InstanceType, instances, offering, zones
from planner.target import Target


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Nodes of one type, as they can be bought: `capacity` in the order it is tried, the price that of the first."""

    instance: InstanceType
    region: str
    capacity: tuple[CapacityType, ...]
    usd_h: float
    price_as_of: str


def offers_of(target: Target) -> dict[InstanceType, tuple[Offer, ...]]:
    """Every instance type that the target allows, with none where no price is known."""
    where = {type_: _region(type_, target) for type_ in _types(target)}
    return {type_: tuple(_offers(type_, region, target)) for type_, region in where.items() if region}


def _types(target: Target) -> list[InstanceType]:
    clouds = target.clouds or tuple(CLOUDS)
    found = [type_ for cloud in clouds for type_ in instances(cloud).values()]
    return [type_ for type_ in found if not target.gpus or type_.gpu in target.gpus]


def _region(type_: InstanceType, target: Target) -> str | None:
    """An allowed region that offers the type: that of its price if it may be, else the first."""
    offered = offering(type_.cloud, [type_.name])
    if target.zones:
        wanted = set(target.zones)
        offered = tuple(
            region
            for region in offered
            if any(type_.name in types for zone, types in zones(type_.cloud, region).items() if zone in wanted)
        )
    allowed = [region for region in offered if not target.regions or region in target.regions]
    return type_.price_region if type_.price_region in allowed else next(iter(allowed), None)


def _offers(type_: InstanceType, region: str, target: Target) -> Iterator[Offer]:
    """Spot first with its fallback, and on-demand alone. What reserved capacity costs is agreed when it is bought."""
    sold = type_.on_demand_usd_h is not None and not type_.name.startswith(cloud_facts(type_.cloud).no_on_demand or "-")
    if type_.spot_supported and type_.spot_usd_h is not None and target.spot_tolerance > 0:
        capacity: tuple[CapacityType, ...] = ("spot", "on-demand") if sold else ("spot",)
        yield Offer(
            instance=type_, region=region, capacity=capacity, usd_h=type_.spot_usd_h, price_as_of=type_.spot_as_of
        )
    if sold and type_.on_demand_usd_h is not None:
        yield Offer(
            instance=type_,
            region=region,
            capacity=("on-demand",),
            usd_h=type_.on_demand_usd_h,
            price_as_of=type_.price_as_of,
        )
