"""Google Cloud: the billing catalogue prices cores, memory, GPUs and local SSDs; a machine type is their sum."""

# The client library is in an environment of its own, where types are not checked.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.cloud.billing_v1 import CloudCatalogClient, ListSkusRequest
from google.cloud.billing_v1.services.cloud_catalog.transports.rest import CloudCatalogRestTransport
from google.protobuf.json_format import ParseError
from requests.exceptions import RequestException

from fleet.catalogs.reading import LATER, NONSENSE, Reading, Region, Request, Unreadable, serve, short

COMPUTE_ENGINE = "services/6F81-5844-456A"
SKU_NAMES = Path(__file__).parent / "gcp_skus.csv"
HOURS_PER_MONTH = 730
"""Google's own month, in which it prices storage."""

LOCAL_SSD_GIB = 375
"""Of one local SSD; the catalogue has their sum in decimal GB."""

UNITS = {"h": 1.0, "GiBy.h": 1.0, "GiBy.mo": 1 / HOURS_PER_MONTH}
SOURCE = "Cloud Billing catalogue, Compute Engine: cores, memory, GPUs and bundled local SSDs of the type"


def read(request: Request) -> Reading:
    """The prices of the machine types whose SKUs `gcp_skus.csv` names."""
    try:
        skus = list(_skus(request.endpoint))
    except DefaultCredentialsError:
        fix = "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS"
        raise Unreadable("Cloud Billing catalogue: no Google credentials", fix) from None
    except (GoogleAPICallError, RetryError, GoogleAuthError, RequestException) as error:
        raise Unreadable(f"Cloud Billing catalogue: {short(error)}", LATER) from None
    except (
        ParseError,
        ValueError,
        TypeError,
    ) as error:  # what the library makes of no JSON, and of fields of other kinds
        raise Unreadable(f"Cloud Billing catalogue: {short(error)}", NONSENSE) from None
    if not skus:
        raise Unreadable("the Cloud Billing catalogue lists no SKU of Compute Engine", NONSENSE)
    reading = Reading(regions={}, sources={"on_demand": SOURCE, "spot": SOURCE})
    reading.unread.append("specs and zones of machine types: the billing catalogue has none; the saved ones stay")
    with SKU_NAMES.open(encoding="utf-8", newline="") as file:
        names = list(csv.DictReader(file))
    for region in request.regions:
        found = reading.regions[region] = Region(on_demand={}, spot={})
        here = {sku.description: sku for sku in skus if region in sku.service_regions}
        for name, type_ in request.types.items():
            # The longest beginning is the most exact one.
            beginnings = sorted((row for row in names if name.startswith(row["machine_types"])), key=_exactness)
            if not beginnings:
                reading.unread.append(f"{name}: gcp_skus.csv does not say by which SKUs it is billed")
                continue
            for capacity in beginnings[-1]["capacity"].split():
                usd = _price(here, type_, beginnings[-1], spot=capacity == "spot")
                prices = found.spot if capacity == "spot" else found.on_demand
                if usd is not None and prices is not None:
                    prices[name] = round(usd, 6)
    return reading


def _exactness(row: dict[str, str]) -> int:
    return len(row["machine_types"])


def _skus(endpoint: str | None) -> Iterator[Any]:
    if endpoint is None:
        client = CloudCatalogClient(transport="rest", client_options=ClientOptions())
    else:
        address = urlsplit(endpoint)
        client = CloudCatalogClient(
            transport=CloudCatalogRestTransport(
                host=address.netloc, url_scheme=address.scheme, credentials=AnonymousCredentials()
            )
        )
    yield from client.list_skus(ListSkusRequest(parent=COMPUTE_ENGINE, page_size=5000, currency_code="USD"), timeout=60)


def _price(skus: dict[str, Any], type_: dict[str, str], names: dict[str, str], *, spot: bool) -> float | None:
    """USD per hour, None where the region does not price one of the parts."""
    ssds = round(float(type_["local_nvme_gb"] or 0) * 1e9 / 2**30 / LOCAL_SSD_GIB)
    parts = [
        (float(type_["vcpus"]), [f"{names['instance']} Core"]),
        (float(type_["memory_gib"]), [f"{names['instance']} Ram"]),
        (float(type_["gpu_count"]), names["gpu"].split("|")),
        (float(ssds * LOCAL_SSD_GIB), ["SSD backed Local Storage"]),
    ]
    total = 0.0
    for amount, called in parts:
        usd = next((found for each in called if (found := _unit_price(skus, each, spot=spot)) is not None), None)
        if amount and usd is None:
            return None
        total += amount * (usd or 0)
    return total


def _unit_price(skus: dict[str, Any], called: str, *, spot: bool) -> float | None:
    beginnings = (f"{called} running",)
    if spot:
        beginnings = (f"Spot Preemptible {called} running", f"{called} attached to Spot Preemptible VMs")
    elif called.startswith("SSD"):
        beginnings = (called,)
    # Commitments, calendar mode and flex-start go on otherwise, and so does what is not spot of local SSDs.
    others = ("Calendar Mode", "DWS", "Reserved", "Commitment", *(() if spot else ("attached to",)))
    found = [
        sku
        for text, sku in sorted(skus.items())
        if text.startswith(beginnings) and not any(word in text for word in others)
    ]
    prices = {_hourly(sku) for sku in found}
    if len(prices) > 1:
        raise Unreadable(f"{len(prices)} prices of {found[0].description!r}", NONSENSE)
    return prices.pop() if prices else None


def _hourly(sku: Any) -> float:
    try:
        expression = sku.pricing_info[-1].pricing_expression
        price = expression.tiered_rates[-1].unit_price
    except IndexError:
        raise Unreadable(f"{sku.description!r} has no price", NONSENSE) from None
    if price.currency_code != "USD" or expression.usage_unit not in UNITS:
        what = f"{sku.description!r} is priced in {price.currency_code!r} per {expression.usage_unit!r}"
        raise Unreadable(what, NONSENSE)
    return (price.units + price.nanos / 1e9) * UNITS[expression.usage_unit]


if __name__ == "__main__":
    serve(read)
