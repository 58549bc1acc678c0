"""AWS: EC2's instance types, their zones and spot price history, and the price list."""

# The client library is in an environment of its own, where types are not checked.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from statistics import median
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.parsers import ResponseParserError

from fleet.catalogs.reading import LATER, NONSENSE, Reading, Region, Request, Unreadable, number, part, serve, short

R = TypeVar("R")

PRICE_LIST_REGION = "us-east-1"
"""The price list has an address in few regions; each of them has the prices of all."""

DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "OptInRequired"}

PRODUCT = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "marketoption": "OnDemand",
}
"""The one product of an instance type that is a Linux node on demand."""

SOURCES = {
    "on_demand": "AWS price list GetProducts",
    "spot": "EC2 DescribeSpotPriceHistory, Linux/UNIX, the median over zones of what holds now",
    "specs": "EC2 DescribeInstanceTypes",
    "zones": "EC2 DescribeInstanceTypeOfferings",
}


def read(request: Request) -> Reading:
    """What AWS says of the regions. A call that the account may not make leaves its figures unread."""
    reading = Reading(regions={}, sources=SOURCES)
    for region in request.regions:
        found = reading.regions[region] = Region()
        ec2 = _client("ec2", region, request.endpoint)
        described = _asked(reading, f"instance types of {region}", partial(_described, ec2))
        if described is not None:
            found.specs, unknown = _specs(described, request.gpus)
            found.offered = sorted(described)
            reading.unread += unknown
        types: list[str] = sorted(set(request.types) | set(found.specs or ()))
        here = [name for name in types if found.offered is None or name in found.offered]
        found.zones = _asked(reading, f"zones of {region}", partial(_zones, ec2, types))
        found.spot = _asked(reading, f"spot prices of {region}", partial(_spot, ec2, here))
        prices = _client("pricing", PRICE_LIST_REGION, request.endpoint)
        found.on_demand = _asked(reading, f"on-demand prices of {region}", partial(_on_demand, prices, region, here))
    return reading


def _client(service: str, region: str, endpoint: str | None) -> Any:
    config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 3})
    return boto3.client(service, region_name=region, endpoint_url=endpoint, config=config)


def _asked(reading: Reading, what: str, ask: Callable[[], R]) -> R | None:
    """What a call answers; None, and a line in `unread`, where the account may not make it."""
    try:
        return ask()
    except NoCredentialsError:
        raise Unreadable(
            f"{what}: no AWS credentials", "give credentials, as `aws sts get-caller-identity` reads them"
        ) from None
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code not in DENIED:
            raise Unreadable(f"{what}: {short(error)}", LATER) from None
        reading.unread.append(f"{what}: {short(error)}; the saved ones stay")
        return None
    except (BotoCoreError, ResponseParserError) as error:
        raise Unreadable(f"{what}: {short(error)}", LATER) from None


def _described(ec2: Any) -> dict[str, dict[str, Any]]:
    """The types with NVIDIA GPUs that the region has."""
    pages = ec2.get_paginator("describe_instance_types").paginate()
    every = [part(type_, dict) for page in pages for type_ in part(page, list, "InstanceTypes")]
    if not every:
        raise Unreadable("DescribeInstanceTypes lists no instance type at all", NONSENSE)
    found: dict[str, dict[str, Any]] = {}
    for type_ in every:
        gpus = type_.get("GpuInfo", {}).get("Gpus", [])
        if gpus and gpus[0].get("Manufacturer") == "NVIDIA":
            found[part(type_, str, "InstanceType")] = type_
    return found


def _specs(
    described: dict[str, dict[str, Any]], gpus: list[dict[str, str]]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Catalogue columns of the types whose GPU the catalogue knows, and a line for each GPU that it does not."""
    found: dict[str, dict[str, str]] = {}
    unknown: dict[str, list[str]] = {}
    for name, type_ in sorted(described.items()):
        device = part(type_, dict, "GpuInfo", "Gpus", 0)
        memory, count = part(device, int, "MemoryInfo", "SizeInMiB"), part(device, int, "Count")
        gpu = _known(part(device, str, "Name"), memory, gpus)
        if gpu is None or not count:
            whole = f"{device['Name']} of {memory} MiB" if count else f"a part of one {device['Name']}"
            unknown.setdefault(whole, []).append(name)
            continue
        network = type_.get("NetworkInfo", {})
        interfaces = network.get("EfaInfo", {}).get("MaximumEfaInterfaces", 0) if network.get("EfaSupported") else 0
        storage = type_.get("InstanceStorageInfo", {})
        usage = type_.get("SupportedUsageClasses", [])
        found[name] = {
            "gpu": gpu["gpu"],
            "gpu_count": str(count),
            "gpu_memory_mib": str(memory),
            "vcpus": str(part(type_, int, "VCpuInfo", "DefaultVCpus")),
            "memory_gib": f"{part(type_, int, 'MemoryInfo', 'SizeInMiB') / 1024:g}",
            "network_gbps": _gigabits(network.get("NetworkPerformance", "")),
            "rdma": "efa" if interfaces else "none",
            "rdma_interfaces": str(interfaces),
            "local_nvme_gb": str(storage.get("TotalSizeInGB", 0)) if storage.get("NvmeSupport") == "required" else "",
            "mig_capable": gpu["mig_capable"],
            "spot_supported": "y" if "spot" in usage else "n",
            "reservation_kinds": "capacity-block" if "capacity-block" in usage else "",
        }
    return found, [f"{', '.join(names)}: {gpu} is not in gpus.csv" for gpu, names in unknown.items()]


def _known(name: str, memory_mib: int, gpus: list[dict[str, str]]) -> dict[str, str] | None:
    for gpu in gpus:
        known = int(gpu["memory_mib"])
        if gpu["gpu"].partition("-")[0] == name and abs(memory_mib - known) <= known // 20:
            return gpu
    return None


def _gigabits(performance: str) -> str:
    """Gbit/s of "Up to 25 Gigabit" or "4x 100 Gigabit", "" of words that hold no number."""
    found = re.fullmatch(r"(?:Up to )?(?:(\d+)x )?([\d.]+) Gigabit", performance)
    return f"{int(found[1] or 1) * float(found[2]):g}" if found else ""


def _zones(ec2: Any, types: list[str]) -> dict[str, list[str]]:
    pages = ec2.get_paginator("describe_instance_type_offerings").paginate(
        LocationType="availability-zone-id", Filters=[{"Name": "instance-type", "Values": types}]
    )
    found: dict[str, list[str]] = {}
    for offering in (each for page in pages for each in part(page, list, "InstanceTypeOfferings")):
        found.setdefault(part(offering, str, "Location"), []).append(part(offering, str, "InstanceType"))
    return {zone: sorted(set(names)) for zone, names in sorted(found.items())}


def _spot(ec2: Any, types: list[str]) -> dict[str, float]:
    latest: dict[tuple[str, str], tuple[datetime, float]] = {}
    # From this moment on: then the answer is what holds now, one price for each zone.
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=types, ProductDescriptions=["Linux/UNIX"], StartTime=datetime.now(UTC)
    )
    for price in (each for page in pages for each in part(page, list, "SpotPriceHistory")):
        name, zone = part(price, str, "InstanceType"), part(price, str, "AvailabilityZone")
        when = part(price, datetime, "Timestamp")
        usd = number(price.get("SpotPrice"), f"the spot price of {name}")
        if (name, zone) not in latest or latest[name, zone][0] < when:
            latest[name, zone] = when, usd
    return {name: round(median(_of(latest, name)), 6) for name in sorted({name for name, _ in latest})}


def _of(latest: dict[tuple[str, str], tuple[datetime, float]], name: str) -> Iterable[float]:
    return [usd for (each, _), (_, usd) in latest.items() if each == name]


def _on_demand(pricing: Any, region: str, types: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in types:
        wanted = PRODUCT | {"regionCode": region, "instanceType": name}
        filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
        pages = pricing.get_paginator("get_products").paginate(ServiceCode="AmazonEC2", Filters=filters)
        prices = {usd for page in pages for text in part(page, list, "PriceList") for usd in _hourly(text, name)}
        if len(prices) > 1:
            raise Unreadable(f"GetProducts has {len(prices)} on-demand prices of {name} in {region}", NONSENSE)
        if prices:
            found[name] = prices.pop()
    return found


def _hourly(text: str, name: str) -> Iterable[float]:
    try:
        product = json.loads(text)
    except (TypeError, ValueError):
        raise Unreadable(f"GetProducts' entry of {name} is no JSON: {text!r:.60}", NONSENSE) from None
    for offer in part(product, dict, "terms").get("OnDemand", {}).values():
        for dimension in part(offer, dict, "priceDimensions").values():
            if dimension.get("unit") == "Hrs":
                yield number(part(dimension, dict, "pricePerUnit").get("USD"), f"the on-demand price of {name}")


if __name__ == "__main__":
    serve(read)
