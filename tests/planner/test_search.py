"""Ranked choices for a target: feasible and explained for known models, and the first limit where nothing is."""

from dataclasses import replace
from itertools import pairwise

import pytest
from sample_models import case

from planner.config import ModelConfig
from planner.explain import basis, refused_words, why
from planner.instances import instances
from planner.limits import BUSY, meets
from planner.model import ModelFacts
from planner.plan import suitability_problems
from planner.relaxing import nearest
from planner.search import SAME, Measured, Result, links_of, point_key, search
from planner.target import Target, target_of

KNOWN = ["llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "mixtral-8x7b", "qwen3-235b-a22b", "deepseek-v3"]


def model_of(name: str) -> tuple[ModelConfig, ModelFacts]:
    model, facts = case(name, "pytorch" if name == "deepseek-v3" else "tensorrt")
    return model, facts


def found(name: str, **words: str) -> Result:
    return search(*model_of(name), target_of(words))


@pytest.mark.parametrize("name", KNOWN)
def test_known_models_have_feasible_explained_answers(name: str) -> None:
    result = found(name)
    assert result.infeasible is None
    best, facts = result.ranked[0], model_of(name)[1]
    assert meets(best.estimate, result.target)
    assert not suitability_problems(best.shape.model, facts, "m")
    assert {each.offer.instance.cloud for each in result.ranked} == {"aws", "gcp", "azure"}
    lines = " ".join((*why(result.ranked), refused_words(result), *basis(result)))
    for words in (
        "USD per million output tokens",
        "against the next",
        "GiB more than one request",
        "roofline",
        "as of",
    ):
        assert words in lines
    if name == "deepseek-v3":
        # Its weights are stored in FP8 blocks, which an Ampere GPU has no kernels for; nothing is built for it.
        assert best.shape.weights == "fp8_block"
        assert best.cost.build_once == 0
        assert not any((each.shape.model.gpu or "").startswith("A100") for each in result.ranked)
    else:
        assert best.cost.build_once > 0


def test_choices_are_ranked_by_cost_and_by_nodes_and_speed_where_that_is_the_same() -> None:
    ranked = found("llama-3.1-70b", tokens_per_second="3000").ranked
    for one, other in pairwise(ranked):
        assert one.usd_per_million < other.usd_per_million * (1 + 2 * SAME)
        if one.usd_per_million > other.usd_per_million:
            mine, its = ((each.shape.nodes, each.estimate.inter_token_latency_s) for each in (one, other))
            assert mine <= its
    for each in ranked:
        tokens = each.output_tokens_per_s * 3600 * 730
        assert each.usd_per_million == pytest.approx(each.cost.total / tokens * 1e6)


def test_none_on_the_front_is_beaten_and_everything_else_is() -> None:
    result = found("llama-3.1-8b", tokens_per_second="2000")
    points = [(each.estimate.inter_token_latency_s, each.usd_per_million) for each in result.front]
    assert len(points) > 3
    assert points == sorted(points)
    assert [cost for _, cost in points] == sorted((cost for _, cost in points), reverse=True)
    for each in result.ranked:
        mine = (each.estimate.inter_token_latency_s, each.usd_per_million)
        assert any(latency <= mine[0] and cost <= mine[1] for latency, cost in points)


def test_replicas_are_as_many_as_the_rate_needs_and_idle_ones_are_paid_for() -> None:
    few, many = found("llama-3.1-8b", tokens_per_second="10"), found("llama-3.1-8b", tokens_per_second="100000")
    assert few.ranked[0].usd_per_million > 5 * many.ranked[0].usd_per_million
    assert few.ranked[0].cost.idle > 0.5 * few.ranked[0].cost.nodes
    best = many.ranked[0]
    assert best.replicas * best.estimate.output_tokens_per_s * BUSY >= 100_000
    assert (best.replicas - 1) * best.estimate.output_tokens_per_s * BUSY < 100_000


def test_a_latency_that_binds_limits_the_batch() -> None:
    quick, slow = found("llama-3.1-70b", itl="25", gpu="H100-80GB"), found("llama-3.1-70b", itl="none", gpu="H100-80GB")
    best = quick.ranked[0]
    assert best.estimate.inter_token_latency_s <= 0.025
    assert best.limited
    assert not slow.ranked[0].limited
    assert best.usd_per_million > slow.ranked[0].usd_per_million


def test_spot_costs_less_than_on_demand_and_more_than_its_price() -> None:
    result = found("llama-3.1-70b", gpu="L40S", tokens_per_second="500")
    spot = next(each for each in result.ranked if each.offer.capacity[0] == "spot")
    same = [each for each in result.ranked if each.shape is spot.shape and each.offer.instance is spot.offer.instance]
    demand = next(each for each in same if each.offer.capacity == ("on-demand",))
    assert spot.cost.total < demand.cost.total
    assert spot.cost.interruptions > 0 == demand.cost.interruptions
    none = found("llama-3.1-70b", gpu="L40S", tokens_per_second="500", spot_tolerance="0")
    assert {each.offer.capacity for each in none.ranked} == {("on-demand",)}


def test_clouds_regions_gpus_and_formats_are_those_allowed() -> None:
    result = found(
        "llama-3.1-8b", cloud="gcp,azure", region="europe-west4,westeurope", quantization="fp8", gpu="L4,H100-94GB"
    )
    assert {each.offer.region for each in result.ranked} == {"europe-west4", "westeurope"}
    assert {each.shape.model.gpu for each in result.ranked} == {"L4", "H100-94GB"}
    assert {each.shape.weights for each in result.ranked} == {"fp8"}


def test_the_same_question_has_the_same_answer() -> None:
    assert found("mixtral-8x7b") == found("mixtral-8x7b")


def test_what_has_no_price_is_named_and_not_ranked() -> None:
    result = found("llama-3.1-8b", gpu="H200-141GB")
    assert "a3-ultragpu-8g" in result.unpriced
    assert {each.offer.instance.name for each in result.ranked} == {"p5en.48xlarge", "Standard_ND96isr_H200_v5"}


def test_measured_estimates_stand_in_for_the_rooflines() -> None:
    model, facts = model_of("llama-3.1-70b")
    target = target_of({"gpu": "H100-80GB"})
    best = search(model, facts, target).ranked[0]
    faster = replace(best.estimate, output_tokens_per_s=50_000.0, source="measured")
    key = point_key(best.shape, links_of(best.shape, best.offer.instance))
    again = search(model, facts, target, measured=Measured(points={key: (faster,)}, scale={}))
    assert again.ranked[0].estimate == faster
    assert any(each.estimate.source.startswith("roofline") for each in again.ranked)


LIMITS = [
    ({"itl": "1"}, "itl", "inter-token latency: 1 ms asked", "--itl "),
    ({"ttft": "1"}, "ttft", "time to first token (p95): 1 ms asked", "--ttft "),
    ({"budget": "100", "tokens_per_second": "1000"}, "budget", "100 USD per month are not enough", "--budget "),
    ({"gpu": "A10-24GB"}, "memory", "fits none of", "without --gpu"),
    ({"gpu": "T4"}, "format", "compute capability 7.5, below 8.0", "without --gpu"),
    ({"gpu": "B300-288GB", "region": "eu-west-1"}, "offer", "no instance type of the catalogue", "without --gpu"),
    ({"tokens_per_second": "1e9", "itl": "20"}, "replicas", "replicas would be needed", "--tokens-per-second "),
    ({"gpu": "H100-80GB", "cloud": "gcp", "region": "asia-southeast1", "spot_tolerance": "0.000001"}, None, "", ""),
]


@pytest.mark.parametrize(("words", "limit", "what", "relaxed"), LIMITS, ids=[str(case[1]) for case in LIMITS])
def test_the_first_limit_is_explained_with_what_comes_nearest(
    words: dict[str, str], limit: str | None, what: str, relaxed: str
) -> None:
    model, facts = model_of("llama-3.1-405b")
    result = search(model, facts, target_of(words))
    if limit is None:
        # Spot that may cost a second a month: on-demand is what is left.
        assert {each.offer.capacity for each in result.ranked} == {("on-demand",)}
        return
    assert result.infeasible
    assert (result.infeasible.limit, result.ranked, result.front) == (limit, (), ())
    assert what in result.infeasible.what
    near = nearest(model, facts, result)
    assert near
    assert near.relaxed[0].startswith(relaxed)
    # The nearest answer is an answer: the relaxed target is met.
    again = search(model, facts, near.target)
    assert again.ranked[0] == near.candidate


def test_a_spot_only_type_says_what_interruptions_cost() -> None:
    model, facts = model_of("llama-3.1-8b")
    target = Target(gpus=("H100-80GB",), clouds=("gcp",), spot_tolerance=1e-9, prompt_tokens=64, output_tokens=64)
    types = [name for name, type_ in instances("gcp").items() if type_.gpu == "H100-80GB" and type_.on_demand_usd_h]
    result = search(model, facts, target)
    assert {each.offer.instance.name for each in result.ranked} == set(types)


def test_what_one_measured_shape_of_a_gpu_reaches_scales_the_others() -> None:
    model, facts = model_of("llama-3.1-8b")
    target = target_of({"gpu": "L40S"})
    plain = search(model, facts, target)
    half = search(model, facts, target, measured=Measured(points={}, scale={"L40S": 0.5}))
    assert all(each.estimate.source.endswith("times 0.50 as other shapes on this GPU measure") for each in half.ranked)
    assert half.ranked[0].usd_per_million > plain.ranked[0].usd_per_million


def test_a_model_too_large_for_everything_has_no_nearest_answer() -> None:
    model, facts = model_of("llama-3.1-405b")
    giant = replace(facts, num_layers=30_000)
    result = search(model, giant, Target(formats=("none",)))
    assert result.infeasible
    assert result.infeasible.limit == "memory"
    assert nearest(model, giant, result) is None
