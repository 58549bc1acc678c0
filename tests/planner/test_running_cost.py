"""What a month costs beside its nodes: interruptions, loading, builds, traffic; data that is checked on reading."""

from pathlib import Path

import pytest
from sample_models import case

from planner.cloud_config import StorageConfig
from planner.clouds import CLOUDS
from planner.instances import instances
from planner.running_cost import (
    EGRESS_BYTES_PER_TOKEN,
    UNKNOWN_INTERRUPTIONS,
    egress_usd_per_gb,
    interruptions,
    lost_share,
    monthly_cost,
    nodes_of,
    read_interruptions,
    starting,
)
from planner.shapes import Shape, shapes_of
from planner.target import Target

P5, P5EN = instances("aws")["p5.48xlarge"], instances("aws")["p5en.48xlarge"]


def shape_of(name: str, tp: int, pp: int, gpu: str = "H100-80GB", instance: str = "p5.48xlarge") -> Shape:
    model, facts = case(name)
    found = shapes_of(model, facts, Target(formats=("none",)), [instances("aws")[instance]]).found
    return next(
        shape
        for shape in found
        if (shape.model.tensor_parallel, shape.model.pipeline_parallel) == (tp, pp)
        and (shape.model.gpu, shape.model.mig_profile) == (gpu, None)
    )


def test_rates_are_published_ranges_or_a_named_assumption() -> None:
    assert interruptions(P5EN).per_month == 0.025
    assert "0% to 5% a month as of 2025-06-28 (AWS Spot Instance Advisor" in interruptions(P5EN).source
    assert interruptions(P5).per_month == UNKNOWN_INTERRUPTIONS
    assert "above 20%, taken as 30%" in interruptions(P5).source
    assert interruptions(instances("gcp")["g2-standard-4"]).source == "assumption: 30% a month"
    assert all(0 < egress_usd_per_gb(cloud) < 1 for cloud in CLOUDS)


def test_a_group_over_more_nodes_is_lost_more_often_and_loads_again_whole() -> None:
    one, two = shape_of("llama-3.1-70b", 8, 1), shape_of("llama-3.1-405b", 8, 2)
    starts = [starting(shape, P5, None) for shape in (one, two)]
    assert starts[1].load_seconds > starts[0].load_seconds
    assert lost_share(two, P5, starts[1]) > 2 * lost_share(one, P5, starts[0])
    # 30 % a month of two nodes, each time 900 s for nodes, 300 s to initialise, and the load.
    expected = 2 * 0.30 / 730 * (1200 + starts[1].load_seconds) / 3600
    assert lost_share(two, P5, starts[1]) == pytest.approx(expected, rel=0.01)


def test_small_models_load_from_nfs_and_large_ones_from_lustre_unless_the_stack_says() -> None:
    small, large = shape_of("llama-3.1-8b", 1, 1), shape_of("llama-3.1-405b", 8, 2)
    assert starting(small, P5, None).storage == "nfs"
    quick, slow = starting(large, P5, None), starting(large, P5, StorageConfig(shared="nfs"))
    assert (quick.storage, slow.storage) == ("lustre", "nfs")
    assert slow.load_seconds > quick.load_seconds


def test_the_parts_of_a_month() -> None:
    shape = shape_of("llama-3.1-70b", 4, 1)
    start = starting(shape, P5, None)
    cost = monthly_cost(shape, P5, start, usd_h=10, lost=0.01, replicas=3, used=0.5, output_tokens_per_s=1000)
    assert cost.nodes == 2 * 10 * 730
    # Three groups of four GPUs on sixteen, each half busy.
    assert cost.idle == pytest.approx(cost.nodes * (1 - 0.5 * 12 / 16))
    assert cost.interruptions == pytest.approx(cost.nodes * 0.01 / 0.99)
    assert cost.egress == pytest.approx(1000 * 3600 * 730 * EGRESS_BYTES_PER_TOKEN / 1e9 * 0.09)
    gigabytes = shape.weights_bytes / 1e9
    assert cost.build_once == pytest.approx((4 * start.load_seconds + 20 * gigabytes) / 3600 * 10)
    assert cost.total == pytest.approx(cost.nodes + cost.interruptions + cost.egress + cost.build_once / 3)


def test_groups_fill_nodes() -> None:
    assert [nodes_of(shape_of("llama-3.1-70b", 4, 1), replicas) for replicas in (1, 2, 3)] == [1, 1, 2]
    assert nodes_of(shape_of("llama-3.1-405b", 8, 2), 3) == 6


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("aws,p9.large,us-east-1,0,0.05,2025-06-28,x", "line 2, column instance_type: 'p9.large' is not in"),
        ("aws,p5.48xlarge,us-east-1,0,much,2025-06-28,x", "line 2, column most: 'much' is not a number"),
        ("aws,p5.48xlarge,us-east-1,0,5,2025-06-28,x", "line 2, column most: '5' is not a number from 0 to 1"),
        ("aws,p5.48xlarge,us-east-1,0,0.05,June,x", "line 2, column as_of: 'June' is not a date"),
        ("aws,p5.48xlarge,us-east-1,0,0.05,2025-06-28,", "line 2, column source: is empty"),
    ],
)
def test_a_malformed_row_is_named_by_line_and_column(row: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "spot.csv"
    path.write_text(f"cloud,instance_type,region,least,most,as_of,source\n{row}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2, column") as error:
        read_interruptions(path)
    assert told in str(error.value)
