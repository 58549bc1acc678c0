"""`fleet catalog`: specs and prices from the clouds' own clients, and a saved catalogue that no failure touches."""

import csv
import datetime
import json
import os
import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet.__main__ import main
from fleet.catalog_merge import merge
from fleet.catalogs.reading import Reading, Region
from planner.errors import PlanError
from planner.gpus import CATALOG
from planner.instances import InstanceType, instances, read_instances, read_zones, stale
from tests.price_services import CLIENTS, Aws, AzureRetail, GoogleBilling, answering, moto_server

TODAY = datetime.datetime.now(datetime.UTC).date().isoformat()
SOLD = {name: type_ for name, type_ in instances("aws").items() if type_.on_demand_usd_h}

A3 = {
    "A3 Instance Core running in Iowa": ("us-central1", 0.03, "h"),
    "A3 Instance Ram running in Iowa": ("us-central1", 0.003, "GiBy.h"),
    "Nvidia H100 80GB GPU running in Iowa": ("us-central1", 9.5, "h"),
    "SSD backed Local Storage": ("us-central1", 0.08, "GiBy.mo"),
    "Spot Preemptible A3 Instance Core running in Iowa": ("us-central1", 0.01, "h"),
    "Spot Preemptible A3 Instance Ram running in Iowa": ("us-central1", 0.001, "GiBy.h"),
    "Nvidia H100 80GB GPU attached to Spot Preemptible VMs running in Iowa": ("us-central1", 3.5, "h"),
    "SSD backed Local Storage attached to Spot Preemptible VMs": ("us-central1", 0.04, "GiBy.mo"),
    "Nvidia H100 80GB GPU attached to DWS Defined Duration VMs running in Iowa": ("us-central1", 4.0, "h"),
    "Reserved Nvidia H100 80GB GPU in Iowa in Calendar Mode": ("us-central1", 4.5, "h"),
    "Nvidia H100 80GB GPU running in Tokyo": ("asia-northeast1", 12.0, "h"),
}


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the catalogue, which `fleet catalog` takes for its own."""
    folder = tmp_path / "catalog"
    shutil.copytree(CATALOG, folder)
    monkeypatch.setattr("fleet.catalog.CATALOG", folder)
    return folder


@pytest.fixture(scope="module")
def moto() -> Generator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture
def aws(moto: str) -> Aws:
    """What moto has, at the prices of the saved catalogue."""
    if not CLIENTS.exists():
        pytest.skip("no client libraries here: `make catalog-clients` installs them")
    spot = {name: type_.spot_usd_h for name, type_ in instances("aws").items() if type_.spot_usd_h}
    on_demand: dict[str, object] = {name: str(type_.on_demand_usd_h) for name, type_ in SOLD.items()}
    new = {"p5e.48xlarge": 20.0, "gr6.4xlarge": 0.5, "gr6.8xlarge": 0.9}
    return Aws(moto, spot=spot | new, on_demand=on_demand | {"gr6.4xlarge": "1.5"})


def refresh(*arguments: str) -> int:
    return main(["catalog", "refresh", *arguments])


def rows(folder: Path, name: str = "gpu_instances.csv") -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_aws_as_boto3_reads_it_from_moto(aws: Aws, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aws.spot["p5.48xlarge"], aws.on_demand["p5.48xlarge"] = 21.5, "60.25"
    aws.gone = {"p3dn.24xlarge"}
    before = {row["instance_type"]: row for row in rows(saved)}
    zones_before = read_zones(saved / "aws_zones.csv", "aws")
    with answering(aws.answer) as url:
        assert refresh("--cloud", "aws", "--endpoint", f"aws={url}", "--json") == 0
    told = json.loads(capsys.readouterr().out)["clouds"]["aws"]
    assert {(each["instance_type"], each["column"], each["before"], each["after"]) for each in told["changed"]} == {
        ("p5.48xlarge", "spot_usd_h", "19.4933", "21.5"),
        ("p5.48xlarge", "on_demand_usd_h", "55.04", "60.25"),
        ("p5e.48xlarge", "spot_usd_h", "", "20"),
    }
    assert sorted(told["new"]) == ["gr6.4xlarge", "gr6.8xlarge"]
    assert told["vanished"] == ["p3dn.24xlarge"]
    assert any("RTX PRO 4500 of 32768 MiB is not in gpus.csv" in text for text in told["unread"])

    after = read_instances(saved / "gpu_instances.csv")
    assert ("aws", "p3dn.24xlarge") in after, "what is known of it stays"
    p5 = after["aws", "p5.48xlarge"]
    assert (p5.on_demand_usd_h, p5.price_as_of, p5.spot_usd_h, p5.spot_as_of) == (60.25, TODAY, 21.5, TODAY)
    gr6 = after["aws", "gr6.8xlarge"]
    assert (gr6.gpu, gr6.gpu_count, gr6.vcpus, gr6.memory_gib) == ("L4", 1, 32, 256)
    assert (gr6.network_gbps, gr6.rdma, gr6.rdma_interfaces, gr6.local_nvme_gb) == (25, "efa", 1, 900)
    assert (gr6.on_demand_usd_h, gr6.spot_usd_h, gr6.price_region) == (None, 0.9, "us-east-1")
    for row in rows(saved):
        old = before.get(row["instance_type"])
        if row["cloud"] != "aws":
            assert row == old, "another cloud's row"
        elif old:
            prices = ("on_demand_usd_h", "spot_usd_h", "price_as_of", "price_source")
            # The shipped specs were compiled from the same moto.
            assert {column for column in row if row[column] != old[column]} <= {*prices}, row["instance_type"]
    types = {name for cloud, name in after if cloud == "aws"}
    zones = read_zones(saved / "aws_zones.csv", "aws", types=types)
    assert zones["use1-az6"][1] == (zones_before["use1-az6"][1] | {"gr6.4xlarge", "gr6.8xlarge"}) - aws.gone
    assert zones["euw1-az1"] == zones_before["euw1-az1"], "a region that was not read"


def test_what_the_account_may_not_read_stays_and_is_told(
    aws: Aws, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aws.denied, aws.spot["p5.48xlarge"] = {"GetProducts"}, 21.5
    with answering(aws.answer) as url:
        assert refresh("--cloud", "aws", "--endpoint", f"aws={url}", "--json") == 0
    unread = json.loads(capsys.readouterr().out)["clouds"]["aws"]["unread"]
    assert any("on-demand prices of us-east-1: " in text and "not authorized" in text for text in unread)
    p5 = read_instances(saved / "gpu_instances.csv")["aws", "p5.48xlarge"]
    assert (p5.on_demand_usd_h, p5.price_as_of) == (55.04, "2026-07-20")
    assert (p5.spot_usd_h, p5.spot_as_of) == (21.5, TODAY)


def test_another_region_moves_the_types_it_has(aws: Aws, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    before = contents(saved)
    with answering(aws.answer) as url:
        assert refresh("--cloud", "aws", "--region", "eu-west-1", "--endpoint", f"aws={url}", "--out", str(out)) == 0
    types = read_instances(out / "gpu_instances.csv")
    assert types["aws", "g6.xlarge"].price_region == "eu-west-1"
    assert types["aws", "p5e.48xlarge"].price_region == "us-east-2", "eu-west-1 does not have it"
    assert contents(saved) == before, "another folder was asked for"


def test_moto_itself_sells_at_a_price_that_is_none(moto: str, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(saved)
    priceless = Aws(moto, on_demand={name: str(type_.on_demand_usd_h) for name, type_ in SOLD.items()})
    if not CLIENTS.exists():
        pytest.skip("no client libraries here: `make catalog-clients` installs them")
    with answering(priceless.answer) as url:
        assert refresh("--cloud", "aws", "--region", "us-east-1", "--endpoint", f"aws={url}") == 1
    error = capsys.readouterr().err
    assert "EC2 DescribeSpotPriceHistory says 1e-05 USD/h for g4dn.xlarge" in error
    assert "the saved catalogue is unchanged" in error
    assert contents(saved) == before


@pytest.mark.parametrize(
    ("usd", "says"),
    [("-55.04", "says -55.04 USD/h"), ("a lot", "is 'a lot', which is no number"), (["55"], "which is no number")],
)
def test_prices_that_are_none_are_refused(
    aws: Aws, saved: Path, usd: object, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(saved)
    aws.on_demand["p5.48xlarge"] = usd
    with answering(aws.answer) as url:
        assert refresh("--cloud", "aws", "--region", "us-east-1", "--endpoint", f"aws={url}", "--json") == 1
    problem = json.loads(capsys.readouterr().out)["problems"][0]
    assert says in problem["what"]
    assert problem["consequence"] == "the saved catalogue is unchanged"
    assert contents(saved) == before


@pytest.mark.parametrize(
    ("column", "usd", "says"),
    [
        ("on_demand", float("nan"), "says nan USD/h"),
        ("on_demand", 0.0, "says 0 USD/h"),
        ("on_demand", 1e9, "says 1e+09 USD/h"),
        ("on_demand", 550.4, "and 55.04 USD/h before"),
        ("spot", 1e-5, "cost between 0.08 and 1600 USD/h"),
        ("spot", 99.0, "99 USD/h for p5.48xlarge on spot, and 55.04 USD/h on demand"),
    ],
)
def test_each_limit_of_a_price(column: str, usd: float, says: str) -> None:
    types = rows(CATALOG)
    found = Region(on_demand={"p5.48xlarge": 55.04}, spot={"p5.48xlarge": 20.0})
    setattr(found, column, {"p5.48xlarge": usd})
    reading = Reading(regions={"us-east-1": found}, sources={"on_demand": "the list", "spot": "the market"})
    with pytest.raises(PlanError) as refused:
        merge("aws", types, [], reading, today=TODAY, move=False, accept_jumps=False)
    assert says in refused.value.problems[0].what


def test_a_price_of_before_keeps_its_source() -> None:
    reading = Reading(regions={"us-central1": Region(spot={"a2-highgpu-8g": 14.0})}, sources={"spot": "the market"})
    merged = merge("gcp", rows(CATALOG), [], reading, today=TODAY, move=False, accept_jumps=False)
    (row,) = (row for row in merged.types if row["instance_type"] == "a2-highgpu-8g")
    on_demand, spot = row["price_source"].split("; ")
    assert on_demand.startswith("od: cloudpilot-ai/karpenter-provider-gcp@417f047 ")
    assert spot == f"spot: the market us-central1 ({TODAY})"
    assert (row["price_as_of"], row["on_demand_usd_h"], row["spot_usd_h"]) == ("2026-08-03", "29.38708", "14")


def test_a_price_that_did_move_far_is_believed_when_told_to(aws: Aws, saved: Path) -> None:
    aws.on_demand["g6.xlarge"] = "4.0"
    with answering(aws.answer) as url:
        assert refresh("--cloud", "aws", "--region", "us-east-1", "--endpoint", f"aws={url}", "--accept-jumps") == 0
    assert read_instances(saved / "gpu_instances.csv")["aws", "g6.xlarge"].on_demand_usd_h == 4.0


def test_an_answer_that_lacks_most_types_is_refused(aws: Aws, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(saved)
    aws.gone = set(instances("aws")) - {"p5.48xlarge"}
    with answering(aws.answer) as url:
        assert refresh("--cloud", "aws", "--region", "us-east-1", "--endpoint", f"aws={url}") == 1
    assert "the answer lacks 38 of the 39 types" in capsys.readouterr().err
    assert contents(saved) == before


def azure_prices() -> dict[str, dict[str, tuple[object, object]]]:
    """Every size of the catalogue at its price, spot at a fifth of it."""
    found: dict[str, dict[str, tuple[object, object]]] = {}
    for name, type_ in instances("azure").items():
        usd = type_.on_demand_usd_h or 1.0
        found.setdefault(type_.price_region, {})[name] = (usd, usd / 5)
    return found


def serve_azure(retail: AzureRetail, *arguments: str) -> int:
    with answering(retail.answer) as url:
        # NextPageLink is below the address that was asked.
        retail.url = url
        return refresh("--cloud", "azure", "--endpoint", f"azure={url}/api/retail/prices", *arguments)


def test_azure_in_pages_without_windows_and_batch(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retail = AzureRetail(azure_prices())
    retail.prices["eastus"] |= {"Standard_ND96isr_H100_v5": (101.5, 20.25), "Standard_ND9_new": (1.0, 0.5)}
    del retail.prices["eastus"]["Standard_NC64as_T4_v3"]
    assert serve_azure(retail, "--json") == 0
    told = json.loads(capsys.readouterr().out)["clouds"]["azure"]
    h100 = [each for each in told["changed"] if each["instance_type"] == "Standard_ND96isr_H100_v5"]
    assert [(each["column"], each["after"]) for each in h100] == [("on_demand_usd_h", "101.5"), ("spot_usd_h", "20.25")]
    assert told["vanished"] == ["Standard_NC64as_T4_v3"]
    assert any("no specs of: Standard_ND9_new" in text for text in told["unread"])
    types = read_instances(saved / "gpu_instances.csv")
    assert types["azure", "Standard_ND96isr_H100_v5"].spot_as_of == TODAY
    names = {name for cloud, name in types if cloud == "azure"}
    zones = read_zones(saved / "azure_zones.csv", "azure", types=names)
    assert all("Standard_NC64as_T4_v3" not in offered for region, offered in zones.values() if region == "eastus")
    assert "Standard_NC64as_T4_v3" in names, "other regions have it"
    assert {region for each in retail.asked for region in ("eastus", "eastus2") if f"'{region}'" in each} == {
        "eastus",
        "eastus2",
    }


@pytest.mark.parametrize(
    ("retail", "says"),
    [
        (AzureRetail({}, status=503), "HTTP status 503"),
        (AzureRetail({}, raw=b"<html>"), "no JSON"),
        (AzureRetail({}, raw=b'{"Items": "none"}'), "Items is no list"),
        (AzureRetail({}, raw=b'{"Count": 0}'), "no Items"),
        (AzureRetail({}, raw=b'{"Items": [{"armSkuName": 5, "type": "Consumption"}]}'), "no productName"),
        (AzureRetail({}, raw=b'{"Items": [{"armSkuName": "Standard_N", "type": 5}]}'), "type is no str"),
        (AzureRetail({"eastus": {"Standard_ND96isr_H100_v5": (-1, 5)}}), "says -1 USD/h"),
        (AzureRetail({"eastus": {"Standard_ND96isr_H100_v5": (98.32, 400)}}), "400 USD/h"),
        (AzureRetail({}), "no price and no type"),
    ],
)
def test_azure_down_or_out_of_its_mind(
    saved: Path, retail: AzureRetail, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(saved)
    assert serve_azure(retail) == 1
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert contents(saved) == before


def test_nobody_answers(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(saved)
    with answering(AzureRetail({}).answer) as url:
        pass
    assert refresh("--cloud", "azure", "--endpoint", f"azure={url}/api/retail/prices") == 1
    assert "Azure retail prices: " in (error := capsys.readouterr().err)
    assert "refused" in error
    assert contents(saved) == before


def test_google_prices_are_sums_of_parts(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _needs_clients()
    with answering(GoogleBilling(A3).answer) as url:
        assert refresh("--cloud", "gcp", "--region", "us-central1", "--endpoint", f"gcp={url}", "--json") == 0
    told = json.loads(capsys.readouterr().out)["clouds"]["gcp"]
    types = read_instances(saved / "gpu_instances.csv")
    eight, four = types["gcp", "a3-highgpu-8g"], types["gcp", "a3-highgpu-4g"]
    ssd_gib = 16 * 375
    assert eight.on_demand_usd_h == pytest.approx(208 * 0.03 + 1872 * 0.003 + 8 * 9.5 + ssd_gib * 0.08 / 730, abs=1e-6)
    assert eight.spot_usd_h == pytest.approx(208 * 0.01 + 1872 * 0.001 + 8 * 3.5 + ssd_gib * 0.04 / 730, abs=1e-6)
    assert four.on_demand_usd_h is None, "the smaller shapes are not sold on demand"
    assert four.spot_usd_h == pytest.approx((eight.spot_usd_h or 0) / 2, abs=1e-5)
    assert any("no on-demand price of g2-standard-4" in text for text in told["unread"])
    assert any("gcp_skus.csv does not say" in text for text in told["unread"])
    assert contents(saved)["gcp_zones.csv"] == (CATALOG / "gcp_zones.csv").read_bytes()


@pytest.mark.parametrize(
    ("billing", "says"),
    [
        (GoogleBilling({}, status=503), "503"),
        (GoogleBilling({}, raw=b"<html>"), "Cloud Billing catalogue"),
        (GoogleBilling({}), "lists no SKU"),
        (GoogleBilling(A3 | {"A3 Instance Core running in Iowa": ("us-central1", 0.03, "mo")}), "per 'mo'"),
        (GoogleBilling(A3 | {"Nvidia H100 80GB GPU running in Iowa": ("us-central1", 9500.0, "h")}), "USD/h"),
        (GoogleBilling(A3 | {"A3 Instance Core running in Omaha": ("us-central1", 0.5, "h")}), "2 prices of"),
    ],
)
def test_google_down_or_out_of_its_mind(
    saved: Path, billing: GoogleBilling, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _needs_clients()
    before = contents(saved)
    with answering(billing.answer) as url:
        assert refresh("--cloud", "gcp", "--region", "us-central1", "--endpoint", f"gcp={url}") == 1
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert contents(saved) == before


def test_one_cloud_that_cannot_be_read_keeps_all_as_they_are(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _needs_clients()
    before = contents(saved)
    retail = AzureRetail(azure_prices())
    with answering(retail.answer) as url, answering(GoogleBilling({}, status=503).answer) as google:
        retail.url = url
        clouds = ("--cloud", "azure", "--cloud", "gcp", "--endpoint", f"azure={url}/api/retail/prices")
        assert refresh(*clouds, "--endpoint", f"gcp={google}") == 1
    assert "--cloud azure reads the others without it" in capsys.readouterr().err
    assert contents(saved) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cloud", "awz"),
        ("--region", "us-east-1"),
        ("--cloud", "aws", "--cloud", "gcp", "--region", "us-east-1"),
        ("--endpoint", "azure"),
        ("--endpoint", "azure=ftp://here"),
    ],
)
def test_wrong_usage(saved: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(saved)
    assert refresh(*arguments) == 2
    assert "nothing was saved" in capsys.readouterr().err
    assert contents(saved) == before


@pytest.mark.usefixtures("saved")
def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert serve_azure(AzureRetail(azure_prices()), "--out", str(tmp_path / "file" / "new")) == 1
    assert "--out: " in capsys.readouterr().err


def test_files_are_replaced_all_or_none(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, replace_file = contents(saved), os.replace

    def only_types(source: Path, target: Path) -> None:
        if target.name != "gpu_instances.csv":
            raise OSError(28, "No space left on device")
        replace_file(source, target)

    monkeypatch.setattr("fleet.catalog.os.replace", only_types)
    assert serve_azure(AzureRetail(azure_prices())) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert contents(saved) == before


def test_a_refresh_killed_between_its_files_leaves_a_sound_catalogue(
    aws: Aws, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file = os.replace

    def killed_after_one(source: Path, target: Path) -> None:
        if read_instances(saved / "gpu_instances.csv").keys() > {("aws", "gr6.4xlarge")}:
            raise SystemExit
        replace_file(source, target)

    monkeypatch.setattr("fleet.catalog.os.replace", killed_after_one)
    with answering(aws.answer) as url, pytest.raises(SystemExit):
        refresh("--cloud", "aws", "--region", "us-east-1", "--endpoint", f"aws={url}")
    types = {name for cloud, name in read_instances(saved / "gpu_instances.csv") if cloud == "aws"}
    assert "gr6.4xlarge" in types
    assert read_zones(saved / "aws_zones.csv", "aws", types=types)


def test_without_the_client_library(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(saved)
    monkeypatch.setattr("fleet.catalog.CLIENTS", saved / "no-python-here")
    assert refresh("--cloud", "aws") == 1
    error = capsys.readouterr().err
    assert "No module named 'boto3'" in error
    assert "make catalog-clients" in error
    assert contents(saved) == before


def test_show_says_prices_and_their_dates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "show", "--cloud", "aws"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "p5.48xlarge" in line)
    assert " ".join(line.split()) == "aws p5.48xlarge 8 H100-80GB us-east-1 55.0400 2026-07-20 19.4933 2026-08-06"


def test_show_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "show", "--json"]) == 0
    types: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["types"]
    assert {type_["cloud"] for type_ in types} == {"aws", "azure", "gcp"}


def test_old_prices_are_told_by_their_date() -> None:
    g6: InstanceType = replace(instances("aws")["g6.xlarge"], price_as_of="2026-07-20", spot_as_of="2026-08-06")
    assert stale("aws", [g6], datetime.date(2026, 10, 18)) is None
    said = stale("aws", [g6], datetime.date(2026, 10, 19))
    assert said is not None
    assert "of 2026-07-20, 91 days old" in said


def _needs_clients() -> None:
    if not CLIENTS.exists():
        pytest.skip("no client libraries here: `make catalog-clients` installs them")
