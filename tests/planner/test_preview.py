"""The figures of a preview: what they are made of, that they add up, and what they say of the pinned choice."""

from dataclasses import replace
from pathlib import Path

import pytest

from planner.drift import Drift, drift, pinned_throughput
from planner.errors import PlanError
from planner.instances import InstanceType, instances, offering, zones
from planner.memory import GIB
from planner.plan import FleetPlan, plan_file
from planner.preview import ModelPreview, previews, total
from planner.pricing import HOURS_PER_MONTH
from tests.planner.sample_sites import CLOUDS, Values, plan

STACKS = Path(__file__).parents[2] / "stacks"


def stack(name: str) -> FleetPlan:
    return plan_file(STACKS / f"Pulumi.{name}.yaml")


def only(fleet: FleetPlan) -> ModelPreview:
    (found,) = previews(fleet)
    return found


def test_ranks_that_hold_the_same_are_one_line() -> None:
    fleet = stack("aws-llama-405b")
    memory = fleet.models[0].memory
    fits = only(fleet).fit
    assert [(fit.first, fit.last) for fit in fits] == [(0, 7), (8, 15)]
    for fit in fits:
        rank = memory[fit.first]
        assert rank.capacity_bytes is not None
        assert rank.margin_bytes is not None
        assert fit.margin_gib == rank.margin_bytes / GIB
        assert fit.needed_gib + (fit.margin_gib or 0) == pytest.approx(fit.capacity_gib) == rank.capacity_bytes / GIB


def test_a_start_is_the_sum_of_steps_that_name_their_source() -> None:
    fleet = stack("aws-llama-405b")
    found = only(fleet)
    serving = fleet.models[0].serving
    assert serving is not None
    assert [step.name for step in found.start] == ["node", "image", "engine load", "initialise"]
    assert found.start_seconds == sum(step.seconds for step in found.start)
    load = found.start[2]
    assert (load.seconds, load.source) == (serving.load_seconds, serving.load_source)
    assert all(step.source for step in found.start)


def test_nodes_that_are_there_need_no_start_and_cost_nothing() -> None:
    fleet = stack("local")
    found = only(fleet)
    assert [step.name for step in found.start] == ["engine load", "initialise"]
    assert (found.cost, found.throughput, found.drift, total(fleet)) == (None, None, None, None)
    assert found.fit[0].capacity_gib is None


def test_a_month_on_demand_and_on_spot() -> None:
    fleet = stack("aws-llama-405b")
    p5 = instances("aws")["p5.48xlarge"]
    cost, whole = only(fleet).cost, total(fleet)
    assert cost is not None
    assert cost == whole
    assert cost.on_demand == pytest.approx(2 * (p5.on_demand_usd_h or 0) * HOURS_PER_MONTH)
    assert cost.spot == pytest.approx(2 * (p5.spot_usd_h or 0) * HOURS_PER_MONTH)
    # The same nodes as the stack's own estimate of its preferred capacity.
    assert fleet.infrastructure is not None
    assert cost.spot == pytest.approx(fleet.infrastructure.cost.usd_per_month, abs=0.5)


def test_models_on_one_pool_share_its_cost() -> None:
    fleet = stack("aws-small-mig")
    whole = total(fleet)
    assert whole is not None
    shares = [found.cost.spot for found in previews(fleet) if found.cost]
    assert len(shares) == 3
    assert sum(share or 0 for share in shares) == pytest.approx(whole.spot)


def test_an_unknown_price_is_none_and_makes_no_sum() -> None:
    fleet = stack("gcp-llama-405b")
    found, whole = only(fleet), total(fleet)
    assert whole is not None
    assert found.cost == whole
    assert (whole.on_demand, whole.spot) == (None, None)
    assert found.drift is not None
    assert found.drift.pinned_usd_per_million is None
    assert "no spot price of a3-ultragpu-8g" in found.drift.why


def test_an_engine_is_built_once_for_all_its_models() -> None:
    def twice(values: Values) -> None:
        values["models"] = [values["models"][0], values["models"][0] | {"name": "again"}]
        values["pools"][0]["max_nodes"] = 4

    first, second = previews(plan("aws", twice))
    assert first.engine.key == second.engine.key
    assert (first.engine.shared_with, second.engine.shared_with) == (None, "smollm2")
    assert first.engine.build_seconds > 0


def test_the_pytorch_backend_compiles_nothing() -> None:
    assert only(stack("aws-llama-405b-fp8")).engine.build_seconds == 0


def pinned_on(instance: str, capacity: list[str]) -> Drift:
    def change(values: Values) -> None:
        values["pools"][0] |= {"instance_types": [instance], "capacity": capacity}
        values["network"]["zones"] = ["use1-az4", "use1-az6"]

    found = only(plan("aws", change)).drift
    assert found is not None
    return found


def test_a_costly_choice_has_a_best_that_saves() -> None:
    found = pinned_on("g6.16xlarge", ["on-demand"])
    assert found.saves is not None
    assert found.saves > 0.3
    assert "on-demand" in found.best
    assert "g6.16xlarge" not in found.best


def test_the_best_choice_has_none_better() -> None:
    costly = pinned_on("g6.16xlarge", ["on-demand"])
    best = next(name for name in costly.best.split() if name in instances("aws"))
    found = pinned_on(best, ["on-demand"])
    assert found.saves == 0
    assert found.best == ""
    assert found.pinned_usd_per_million == pytest.approx(found.best_usd_per_million)


def test_drift_follows_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = stack("aws-dev")
    before = only(fleet).drift
    known = instances("aws")
    dear = known | {"g6.xlarge": replace(known["g6.xlarge"], spot_usd_h=5.0)}

    def dearer(cloud: str) -> dict[str, InstanceType]:
        return dear if cloud == "aws" else instances(cloud)

    for module in ("planner.drift", "planner.preview", "planner.offers"):
        monkeypatch.setattr(f"{module}.instances", dearer)
    after = only(fleet).drift
    assert before is not None
    assert after is not None
    assert before.saves == 0
    assert (after.saves or 0) > 0.5


def test_a_share_of_a_node_is_what_a_shared_pool_costs_a_model() -> None:
    fleet = stack("aws-small-mig")
    cloud, model = fleet.infrastructure, fleet.models[0]
    assert cloud is not None
    estimate = pinned_throughput(model, instances("aws")["p5.4xlarge"])
    alone = drift(model, cloud, estimate, None).pinned_usd_per_million
    shared = drift(model, cloud, estimate, 640.0).pinned_usd_per_million
    assert alone is not None
    assert shared is not None
    assert shared < alone / 2


def test_time_sliced_gpus_have_a_cost_and_no_estimate() -> None:
    def sliced(values: Values) -> None:
        values["pools"][0]["time_slicing"] = 2
        values["models"][0]["serving"] = {"kv_cache_free_gpu_mem_fraction": 0.4}

    found = only(plan("aws", sliced))
    assert found.cost is not None
    assert (found.throughput, found.drift) == (None, None)


def test_what_reserved_capacity_costs_is_not_known() -> None:
    def reserved(values: Values) -> None:
        values["pools"][0] |= {"instance_types": ["p5.48xlarge"], "capacity": ["reserved"], "zones": ["use1-az6"]}
        values["pools"][0]["reservation"] = "cr-0123456789abcdef0"
        values["network"]["zones"] = ["use1-az4", "use1-az6"]

    found = only(plan("aws", reserved)).drift
    assert found is not None
    assert found.pinned_usd_per_million is None
    assert "no reserved price of p5.48xlarge" in found.why


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_gpu_of_a_cloud_has_figures(cloud: str) -> None:
    """One instance type of each GPU, where it is offered."""
    shown: set[str] = set()
    for gpu, type_ in {type_.gpu: type_ for type_ in instances(cloud).values()}.items():
        region = next((region for region in offering(cloud, [type_.name])), None)
        if region is None:
            continue
        able = [zone for zone, types in zones(cloud, region).items() if type_.name in types]
        spot = type_.spot_supported and type_.spot_usd_h is not None

        def change(
            values: Values, name: str = type_.name, region: str = region, able: list[str] = able, spot: bool = spot
        ) -> None:
            values["region"] = region
            values["network"]["zones"] = [*able, *(zone for zone in zones(cloud, region) if zone not in able)][:3]
            capacity = ["spot"] if spot else ["on-demand"]
            values["pools"] = [{"name": "gpu", "instance_types": [name], "capacity": capacity, "zones": able[:1]}]

        try:
            fleet = plan(cloud, change)
        except PlanError:
            continue  # TensorRT-LLM has no such GPU any more, or nobody may ask for this capacity
        found = only(fleet)
        assert found.throughput is not None
        assert found.throughput.output_tokens_per_s > 0
        assert found.drift is not None
        shown.add(gpu)
    assert len(shown) >= 3, shown
