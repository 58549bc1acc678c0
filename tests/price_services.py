"""The clouds' price services on this machine: moto's server for EC2, and what the others' documentation shows."""

import json
import re
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen
from xml.etree import ElementTree

import pytest

from tests.object_stores import MOTO, running
from tests.ports import free_ports

CLIENTS = MOTO.parents[2] / "catalog" / "bin" / "python"
Answer = tuple[int, bytes]


@contextmanager
def answering(answer: Callable[[str, Mapping[str, str], bytes], Answer]) -> Generator[str]:
    """A server on this machine; `answer` gets path, headers and body. Yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = answer(self.path, dict(self.headers), body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _reply

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def moto_server() -> Generator[str]:
    if not MOTO.exists():
        pytest.skip("no moto here: `make setup` installs it")
    (port,) = free_ports(1)
    with running([MOTO, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        yield f"http://127.0.0.1:{port}"


@dataclass
class Aws:
    """moto's EC2 with spot prices by type, since moto has one for all; and the price list, which moto has not.

    A type in `gone` is no more; `status` is answered to everything; `denied` names actions that the account may not do.
    """

    moto: str
    spot: dict[str, float] = field(default_factory=dict[str, float])
    on_demand: dict[str, object] = field(default_factory=dict[str, object])
    gone: set[str] = field(default_factory=set[str])
    denied: set[str] = field(default_factory=set[str])
    status: int | None = None

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if self.status is not None:
            return self.status, b"{}"
        if headers.get("X-Amz-Target") == "AWSPriceListService.GetProducts":
            if "GetProducts" in self.denied:
                denied = {
                    "__type": "AccessDeniedException",
                    "message": "not authorized to perform: pricing:GetProducts",
                }
                return 400, json.dumps(denied).encode()
            return 200, self._products(json.loads(body))
        passed = {
            name: value for name, value in headers.items() if name in ("Content-Type", "Authorization", "X-Amz-Date")
        }
        try:
            with urlopen(Request(self.moto + path, body or None, passed), timeout=60) as reply:
                text = reply.read().decode()
        except HTTPError as error:
            return error.code, error.read()
        return 200, self._edited(text)

    def _edited(self, text: str) -> bytes:
        tree = ElementTree.fromstring(text)
        for parent in list(tree.iter()):
            for item in list(parent):
                tags = {child.tag.rpartition("}")[2]: child for child in item}
                name = tags["instanceType"].text if "instanceType" in tags else None
                if name in self.gone:
                    parent.remove(item)
                elif name in self.spot and "spotPrice" in tags:
                    tags["spotPrice"].text = str(self.spot[name])
        return ElementTree.tostring(tree)

    def _products(self, query: dict[str, Any]) -> bytes:
        wanted = {each["Field"]: each["Value"] for each in query["Filters"]}
        usd = self.on_demand.get(wanted["instanceType"])
        product = {
            "product": {"attributes": wanted},
            "terms": {
                "OnDemand": {"A.B": {"priceDimensions": {"A.B.C": {"unit": "Hrs", "pricePerUnit": {"USD": usd}}}}}
            },
        }
        return json.dumps(
            {"FormatVersion": "aws_v1", "PriceList": [] if usd is None else [json.dumps(product)]}
        ).encode()


@dataclass
class AzureRetail:
    """Retail prices of sizes by region, in pages of two; `raw` is answered to everything instead."""

    prices: dict[str, dict[str, tuple[object, object]]]
    status: int = 200
    raw: bytes | None = None
    url: str = ""
    asked: list[str] = field(default_factory=list[str])

    def answer(self, path: str, _headers: Mapping[str, str], _body: bytes) -> Answer:
        if self.raw is not None or self.status != 200:
            return self.status, self.raw or b""
        query = parse_qs(urlsplit(path).query)
        self.asked.append(query["$filter"][0])
        region = re.findall(r"armRegionName eq '([^']*)'", query["$filter"][0])[0]
        items = [item for name, pair in self.prices.get(region, {}).items() for item in _retail(name, region, *pair)]
        skip = int(query.get("$skip", ["0"])[0])
        more = f"{self.url}{path.partition('&$skip')[0]}&$skip={skip + 2}" if skip + 2 < len(items) else None
        page = {"BillingCurrency": "USD", "Items": items[skip : skip + 2], "NextPageLink": more, "Count": 2}
        return 200, json.dumps(page).encode()


def _retail(name: str, region: str, on_demand: object, spot: object) -> list[dict[str, object]]:
    short = name.removeprefix("Standard_").replace("_", " ")
    item: dict[str, object] = {
        "currencyCode": "USD",
        "armRegionName": region,
        "armSkuName": name,
        "unitOfMeasure": "1 Hour",
    }
    item |= {"effectiveStartDate": "2026-10-01T00:00:00Z", "isPrimaryMeterRegion": True}
    item |= {
        "type": "Consumption",
        "serviceName": "Virtual Machines",
        "productName": f"Virtual Machines {short} Series",
    }
    windows: dict[str, object] = {
        "productName": f"Virtual Machines {short} Series Windows",
        "meterName": short,
        "retailPrice": 999.0,
    }
    # As the service has them: once more for another meter region, of before, and of a day to come.
    others: list[dict[str, object]] = [
        {"armSkuName": None},
        {"isPrimaryMeterRegion": False},
        {"effectiveStartDate": "2025-01-01T00:00:00Z"},
        {"effectiveStartDate": "2999-01-01T00:00:00Z"},
        {"productName": f"{short} Series Cloud Services"},
    ]
    return [
        item | {"meterName": short, "retailPrice": on_demand},
        item | {"meterName": f"{short} Low Priority", "retailPrice": 0.001},
        item | windows,
        item | {"meterName": f"{short} Spot", "retailPrice": spot},
        *(item | {"meterName": short, "retailPrice": 777.0} | each for each in others),
    ]


@dataclass
class GoogleBilling:
    """SKUs of Compute Engine by description: region, USD and unit; in pages of five."""

    skus: dict[str, tuple[str, float, str]]
    status: int = 200
    raw: bytes | None = None

    def answer(self, path: str, _headers: Mapping[str, str], _body: bytes) -> Answer:
        if self.raw is not None or self.status != 200:
            return self.status, self.raw or b"{}"
        url = urlsplit(path)
        assert url.path == "/v1/services/6F81-5844-456A/skus"
        first = int(parse_qs(url.query).get("pageToken", ["0"])[0])
        every = [_sku(number, *each) for number, each in enumerate(self.skus.items())]
        more = str(first + 5) if first + 5 < len(every) else ""
        return 200, json.dumps({"skus": every[first : first + 5], "nextPageToken": more}).encode()


def _sku(number: int, description: str, price: tuple[str, float, str]) -> dict[str, object]:
    region, usd, unit = price
    units, nanos = divmod(round(usd * 1_000_000_000), 1_000_000_000)
    rate = {"startUsageAmount": 0, "unitPrice": {"currencyCode": "USD", "units": str(units), "nanos": nanos}}
    return {
        "name": f"services/6F81-5844-456A/skus/{number:04}",
        "skuId": f"{number:04}",
        "description": description,
        "category": {"serviceDisplayName": "Compute Engine", "resourceFamily": "Compute", "usageType": "OnDemand"},
        "serviceRegions": [region],
        "pricingInfo": [{"pricingExpression": {"usageUnit": unit, "displayQuantity": 1, "tieredRates": [rate]}}],
        "serviceProviderName": "Google",
    }
