"""The shipped instance catalogue: what is in it, how it refuses a malformed row, and that it is the compiled one."""

import csv
from pathlib import Path

import pytest

from planner.gpus import CATALOG
from planner.instances import instances, read_instances, read_zones, regions, zones

SHIPPED = CATALOG / "gpu_instances.csv"
COMPILED = Path(__file__).parents[3] / "shared" / "data" / "gpu_instances.csv"


def test_p5_is_read_in_full() -> None:
    p5 = instances("aws")["p5.48xlarge"]
    assert (p5.gpu, p5.gpu_count, p5.gpu_memory_mib) == ("H100-80GB", 8, 81920)
    assert (p5.vcpus, p5.memory_gib, p5.network_gbps, p5.local_nvme_gb) == (192, 2048.0, 3200.0, 30400)
    assert (p5.rdma, p5.rdma_interfaces) == ("efa", 32)
    assert p5.mig_capable
    assert p5.spot_supported
    assert p5.reservation_kinds == ("capacity-block",)
    assert (p5.price_region, p5.on_demand_usd_h, p5.spot_usd_h) == ("us-east-1", 55.04, 19.4933)
    # The two prices come from sources of different dates.
    assert (p5.price_as_of, p5.spot_as_of) == ("2026-07-20", "2026-08-06")


def test_what_no_source_names_is_not_counted_on() -> None:
    azure = instances("azure")
    assert azure["Standard_ND96amsr_A100_v4"].network_gbps is None
    assert azure["Standard_ND96amsr_A100_v4"].rdma_interfaces == 0
    assert azure["Standard_NC4as_T4_v3"].local_nvme_gb == 0
    assert not azure["Standard_ND128isr_NDR_GB200_v6"].spot_supported
    assert azure["Standard_NC40ads_H100_v5"].reservation_kinds == ()
    assert instances("aws")["p5e.48xlarge"].on_demand_usd_h is None


def test_each_cloud_has_its_own_types_and_an_existing_cluster_has_none() -> None:
    assert all(name.startswith("Standard_") for name in instances("azure"))
    assert set(instances("aws")).isdisjoint(instances("gcp"))
    assert instances("existing") == {}


def test_every_row_says_when_and_where_it_was_read() -> None:
    with SHIPPED.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert row["spec_source"], row["instance_type"]
            assert bool(row["price_source"]) == bool(row["price_as_of"]), row["instance_type"]


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("cloud", "", "empty"),
        ("instance_type", "g4dn.xlarge ", "padded"),
        ("gpu", "T5", "not in gpus.csv"),
        ("gpu_count", "0", "above 0"),
        ("gpu_count", "1.5", "not a number"),
        ("vcpus", "-4", "negative"),
        ("memory_gib", "nan", "not finite"),
        ("network_gbps", "fast", "not a number"),
        ("rdma", "infiniband", "not one of none, efa"),
        ("rdma_interfaces", "2", "must be 0 where rdma is none"),
        ("mig_capable", "", "not one of y, n"),
        ("spot_supported", "yes", "not one of y, n, nothing"),
        ("reservation_kinds", "odcr,reservation", "parted by ;"),
        ("price_as_of", "20 July", "not a date"),
        ("price_as_of", "", "not a date"),
        ("price_source", "od: somewhere; spot: undated", "names no date"),
    ],
)
def test_a_malformed_row_is_named_by_line_and_column(tmp_path: Path, column: str, value: str, complaint: str) -> None:
    with SHIPPED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:2]
    rows[0][column] = value
    with pytest.raises(ValueError, match=rf"^changed\.csv, line 2, column {column}: .*{complaint}"):
        read_instances(_write(tmp_path, rows))


def test_a_type_is_listed_once(tmp_path: Path) -> None:
    with SHIPPED.open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    with pytest.raises(ValueError, match=r"line 3, column instance_type: 'g4dn.xlarge' is listed twice"):
        read_instances(_write(tmp_path, [first, first]))


def test_the_catalogue_is_the_compiled_one() -> None:
    """But for what that one leaves empty, which has a source of its own at the end of the row."""
    if not COMPILED.is_file():
        pytest.skip("the compiled instance catalogue is not beside this checkout")
    with SHIPPED.open(encoding="utf-8", newline="") as ours, COMPILED.open(encoding="utf-8", newline="") as theirs:
        for row, compiled in zip(csv.DictReader(ours), csv.DictReader(theirs), strict=True):
            filled = [column for column, value in compiled.items() if not value and row[column]]
            theirs_source, source = compiled.pop("spec_source"), row.pop("spec_source")
            assert source.startswith(f"{theirs_source}; " if filled else theirs_source), row["instance_type"]
            assert filled or source == theirs_source
            assert row | dict.fromkeys(filled, "") == compiled


def test_zones_say_where_a_type_is_offered() -> None:
    assert set(zones("aws", "us-east-1")) == {f"use1-az{number}" for number in range(1, 7)}
    assert "p5.48xlarge" in zones("aws", "us-east-1")["use1-az6"]
    assert "g6.xlarge" not in zones("aws", "us-east-1")["use1-az3"]
    assert zones("aws", "us-east-2").keys().isdisjoint(zones("aws", "us-east-1"))


def test_every_known_type_is_offered_somewhere() -> None:
    offered = frozenset[str]().union(*(types for region in regions("aws") for types in zones("aws", region).values()))
    assert offered == instances("aws").keys()


def test_an_unknown_region_has_no_zones_and_a_cloud_without_a_catalogue_no_regions() -> None:
    assert zones("aws", "us-east-9") == {}
    assert "us-west-2" in regions("aws")
    assert regions("existing") == ()


def test_a_zone_offers_only_known_types(tmp_path: Path) -> None:
    path = tmp_path / "zones.csv"
    path.write_text("zone_id,region,types,as_of,source\nuse1-az1,us-east-1,p9.xlarge,2026-10-27,moto\n")
    with pytest.raises(ValueError, match=r"zones\.csv, line 2, column types: 'p9\.xlarge' has a type"):
        read_zones(path, "aws")


def _write(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "changed.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path
