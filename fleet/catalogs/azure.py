"""Azure: the retail prices, a public REST service without a client library; it has prices of sizes and no specs."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from fleet.catalogs.reading import LATER, NONSENSE, Reading, Region, Request, Unreadable, number, part, serve, short

ENDPOINT = "https://prices.azure.com/api/retail/prices"
MAX_PAGES = 200
"""Of 100 to 1,000 prices each; a region's virtual machines take some tens."""

SOURCE = "Azure retail prices"


def read(request: Request) -> Reading:
    """The prices of the regions, for Linux and without a commitment."""
    reading = Reading(regions={}, sources={"on_demand": SOURCE, "spot": SOURCE})
    for region in request.regions:
        unlisted: set[str] = set()
        # By name and capacity: since when, and USD per hour.
        latest: dict[tuple[str, bool], tuple[str, float]] = {}
        for item in _items(request.endpoint or ENDPOINT, region):
            if not _sold(item):
                continue
            name, since = part(item, str, "armSkuName"), part(item, str, "effectiveStartDate")
            if name not in request.types:
                # N-series are the sizes with GPUs.
                unlisted |= {name} if name.startswith("Standard_N") else set()
                continue
            if item.get("currencyCode") != "USD":
                raise Unreadable(f"the price of {name} is in {item.get('currencyCode')!r:.20}, not USD", NONSENSE)
            price = since, number(item.get("retailPrice"), f"the retail price of {name}")
            other = latest.setdefault((name, _spot(item)), price)
            if other[0] == since and other != price:
                raise Unreadable(f"{region} has two prices of {name}: {other[1]} and {price[1]} USD/h", NONSENSE)
            latest[name, _spot(item)] = max(other, price)
        reading.regions[region] = Region(
            on_demand={name: usd for (name, spot), (_, usd) in latest.items() if not spot},
            spot={name: usd for (name, spot), (_, usd) in latest.items() if spot},
            offered=sorted({name for name, _ in latest}),
        )
        if unlisted:
            reading.unread.append(f"{region} sells what the catalogue has no specs of: {', '.join(sorted(unlisted))}")
    reading.unread.append("specs of sizes: the retail prices have none; the saved ones stay")
    return reading


def _sold(item: dict[str, Any]) -> bool:
    """Whether it is the price of an hour of a Linux machine, from today or before."""
    if item.get("armSkuName") is None or part(item, str, "type") != "Consumption":
        return False
    # "Low Priority" is what spot was before, of batch pools only; Cloud Services are machines of another service.
    other = ("Windows", "Low Priority", "CloudServices", "Cloud Services")
    named = f"{part(item, str, 'productName')} {part(item, str, 'meterName')}"
    if any(word in named for word in other) or part(item, str, "unitOfMeasure") != "1 Hour":
        return False
    now = datetime.now(UTC).isoformat()
    return item.get("isPrimaryMeterRegion") is not False and part(item, str, "effectiveStartDate") <= now


def _spot(item: dict[str, Any]) -> bool:
    return part(item, str, "meterName").endswith(" Spot")


def _items(endpoint: str, region: str) -> Iterator[dict[str, Any]]:
    wanted = f"serviceName eq 'Virtual Machines' and armRegionName eq '{region}' and priceType eq 'Consumption'"
    # Spaces as %20: the service's own links have them so.
    url: str | None = f"{endpoint}?{urlencode({'$filter': wanted, 'currencyCode': 'USD'}).replace('+', '%20')}"
    for _ in range(MAX_PAGES):
        page = _page(url)
        yield from (part(item, dict) for item in part(page, list, "Items"))
        url = page.get("NextPageLink")
        if not url:
            return
        if not str(url).startswith(endpoint.split("/api/")[0]):
            raise Unreadable(f"the next page lies elsewhere: {url!r:.80}", NONSENSE)
    raise Unreadable(f"{region} has more than {MAX_PAGES} pages of prices", NONSENSE)


def _page(url: str) -> dict[str, Any]:
    try:
        with urlopen(url, timeout=60) as answer:
            content = answer.read()
    except HTTPError as error:
        raise Unreadable(f"{SOURCE}: HTTP status {error.code}", LATER) from None
    except (URLError, OSError, HTTPException) as error:
        raise Unreadable(f"{SOURCE}: {short(getattr(error, 'reason', error))}", LATER) from None
    try:
        return part(json.loads(content), dict)
    except ValueError:
        raise Unreadable(f"{SOURCE}: the answer is no JSON: {content[:40]!r}", NONSENSE) from None


if __name__ == "__main__":
    serve(read)
