"""No choice of the search violates what TensorRT-LLM, GPU, memory or cloud assert: random models, every GPU."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_models import case

from planner import sharding
from planner.candidate import Candidate
from planner.cloud_config import PoolConfig
from planner.clouds import CLOUDS, cloud_facts
from planner.config import ModelConfig
from planner.gpus import gpus
from planner.instances import InstanceType, instances, zones
from planner.memory import rank_memory
from planner.model import ModelFacts, facts_from_hf
from planner.model_problems import cross_field_problems
from planner.pools import check_pool
from planner.search import search
from planner.shapes import MARGIN, MAX_BATCH_SIZE, Shape, shapes_of
from planner.target import Target

TYPES = [type_ for cloud in CLOUDS for type_ in instances(cloud).values()]
BARE = ModelConfig(name="m", source="hf://org/m", revision="r", backend="tensorrt", gpu="H100-80GB")


@st.composite
def models(draw: st.DrawFn) -> ModelFacts:
    """A decoder of any proportions that a config.json may have: dense, or with experts."""
    kind = draw(st.sampled_from(["LlamaForCausalLM", "Qwen3ForCausalLM", "MixtralForCausalLM", "Qwen3MoeForCausalLM"]))
    kv_heads = draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 3, 4, 7, 8, 16]))
    config: dict[str, Any] = {
        "architectures": [kind],
        "num_hidden_layers": draw(st.integers(1, 130)),
        "hidden_size": heads * draw(st.sampled_from([64, 80, 96, 128])),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": draw(st.sampled_from([64, 1536, 2752, 8960, 11008, 14336, 18944, 53248])),
        "vocab_size": draw(st.sampled_from([257, 32000, 128256, 151936])),
        "max_position_embeddings": 8192,
        "num_local_experts": 8,
        "num_experts": draw(st.sampled_from([8, 60, 128])),
        "num_experts_per_tok": 2,
        "moe_intermediate_size": draw(st.sampled_from([64, 768, 1408, 1536])),
    }
    return facts_from_hf(config, "config.json")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    facts=models(),
    gpu=st.sampled_from(sorted(gpus())),
    formats=st.sets(st.sampled_from(["none", "fp8", "int8_wo", "int4_awq", "w4a8_awq", "nvfp4"]), min_size=1),
    context=st.sampled_from([512, 4096, 8192]),
    backend=st.sampled_from(["tensorrt", "pytorch"]),
)
def test_no_shape_violates_what_is_asserted_upstream(
    facts: ModelFacts, gpu: str, formats: set[str], context: int, backend: Any
) -> None:
    target = Target(prompt_tokens=256, output_tokens=256, context_tokens=context, gpus=(gpu,), formats=(*formats,))
    model = BARE.model_copy(update={"backend": backend})
    types = [type_ for type_ in TYPES if type_.gpu == gpu]
    found = shapes_of(model, facts, target, types)
    for shape in found.found:
        _holds(shape, facts, context)
    if backend == "tensorrt" and "none" in formats:
        _finds_what_there_is(found.found, facts, types, context)


def _holds(shape: Shape, facts: ModelFacts, context: int) -> None:
    """The rules, written down once more from TensorRT-LLM's asserts and not from planner.sharding."""
    model, gpu = shape.model, gpus()[shape.model.gpu or ""]
    tp, pp = model.tensor_parallel, model.pipeline_parallel
    assert gpu.capability >= (8, 0)
    assert facts.num_heads % tp == 0
    assert facts.num_kv_heads % tp == 0 or tp % facts.num_kv_heads == 0
    assert pp <= facts.num_layers
    dense = facts.moe is None or facts.moe.dense_layers
    for width in [*([facts.intermediate_size] if dense else []), *([facts.moe.expert_size] if facts.moe else [])]:
        assert width % tp == 0
        if model.quantization.weights in ("int4_awq", "w4a8_awq") and tp > 1:
            assert width // tp % 128 == 0
    assert model.quantization.weights != "fp8" or gpu.capability >= (8, 9)
    assert model.quantization.weights != "nvfp4" or gpu.capability >= (10, 0)
    for type_ in shape.instances:
        assert (type_.gpu, type_.gpu_count) == (model.gpu, shape.instances[0].gpu_count)
        if model.mig_profile:
            assert type_.mig_capable
            assert tp * pp == 1
        elif shape.nodes == 1:
            assert type_.gpu_count % (tp * pp) == 0
        else:
            assert tp * pp == shape.nodes * type_.gpu_count
        assert tp <= type_.gpu_count or type_.rdma_interfaces
    for rank in shape.memory:
        held = rank.weights_bytes + rank.activation_bytes + rank.runtime_bytes + context * rank.kv_bytes_per_token
        assert rank.capacity_bytes
        assert held <= rank.capacity_bytes * (1 - MARGIN)
        assert rank.kv_tokens >= context
    assert not cross_field_problems(model, "m")
    assert not sharding.check(model, facts, "m")
    whole = rank_memory(model, facts)
    assert all(rank.fits for rank in whole)
    assert shape.weights_bytes == sum(rank.weights_bytes for rank in whole)


def _finds_what_there_is(found: tuple[Shape, ...], facts: ModelFacts, types: list[InstanceType], context: int) -> None:
    """Whatever planner.sharding lists as fitting one node of the GPU, the search has as well."""
    for count in {type_.gpu_count for type_ in types}:
        update = {"gpu": types[0].gpu, "gpus_per_node": count, "max_seq_len": context, "max_batch_size": MAX_BATCH_SIZE}
        model = BARE.model_copy(update=update)
        if cross_field_problems(model, "m"):
            continue
        mine = {
            (shape.model.tensor_parallel, shape.model.pipeline_parallel)
            for shape in found
            if shape.instances[0].gpu_count == count
            and shape.nodes == 1
            and not shape.model.mig_profile
            and shape.model.quantization.weights == "none"
        }
        for option in sharding.options(model, facts):
            memory = option.memory
            if memory and memory.fits and count % option.world_size == 0:
                with_margin = (memory.margin_bytes or 0) >= MARGIN * (memory.capacity_bytes or 0)
                assert ((option.tensor_parallel, option.pipeline_parallel) in mine) == with_margin


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    facts=models(),
    gpu=st.sampled_from(["L4", "L40S", "A100-40GB", "A100-80GB", "H100-80GB", "H100-94GB", "B200-180GB"]),
    rate=st.sampled_from([None, 10.0, 5000.0]),
    ttft=st.sampled_from([None, 0.2, 1.0]),
    itl=st.sampled_from([None, 0.02, 0.1]),
    budget=st.sampled_from([None, 3000.0, 50_000.0]),
    tolerance=st.sampled_from([0.0, 0.0003, 0.01]),
)
def test_every_ranked_choice_keeps_the_target_and_can_be_bought(
    facts: ModelFacts,
    gpu: str,
    rate: float | None,
    ttft: float | None,
    itl: float | None,
    budget: float | None,
    tolerance: float,
) -> None:
    target = Target(
        prompt_tokens=512,
        output_tokens=128,
        context_tokens=2048,
        gpus=(gpu,),
        output_tokens_per_s=rate,
        time_to_first_token_s=ttft,
        inter_token_latency_s=itl,
        usd_per_month=budget,
        spot_tolerance=tolerance,
    )
    result = search(BARE, facts, target)
    assert bool(result.ranked) == (result.infeasible is None)
    for each in result.ranked:
        assert each.replicas * each.estimate.output_tokens_per_s >= (rate or 0)
        assert each.estimate.time_to_first_token_s <= (ttft or 1e9)
        assert each.estimate.inter_token_latency_s <= (itl or 1e9)
        assert each.cost.total <= (budget or 1e12)
        assert each.lost_share <= tolerance
        assert tolerance or each.offer.capacity == ("on-demand",)
        assert each.nodes * each.shape.per_node >= each.replicas * each.shape.nodes
        assert 0 <= each.cost.idle <= each.cost.nodes
    # The pool's checks are slow; every offer is alike.
    for each in {each.offer: each for each in result.ranked}.values():
        _can_be_bought(each)


def _can_be_bought(each: Candidate) -> None:
    instance = each.offer.instance
    offered = [zone for zone, types in zones(instance.cloud, each.offer.region).items() if instance.name in types]
    pool = PoolConfig(
        name="pool",
        instance_types=(instance.name,),
        capacity=each.offer.capacity,
        zones=tuple(offered[:1]),
        mig_profile=each.shape.model.mig_profile,
    )
    cloud = cloud_facts(instance.cloud)
    _, problems = check_pool(pool, cloud=cloud, region=each.offer.region, network_zones=offered, key="pools[0]")
    # How a pool is named is the cloud's; what it is made of is the search's.
    assert not [problem for problem in problems if not problem.key.endswith(".name")]


@pytest.mark.parametrize("profile", [None, "1g.20gb"])
def test_a_slice_limits_what_a_step_holds_and_whole_gpus_do_not(profile: str | None) -> None:
    model, facts = case("llama-3.1-8b")
    found = shapes_of(model, facts, Target(gpus=("H100-80GB",)), TYPES).found
    mine = next(shape for shape in found if shape.model.mig_profile == profile and shape.model.world_size == 1)
    assert mine.model.max_num_tokens == (2048 if profile else 8192)
    assert mine.per_node in ((1, 8) if profile is None else (4, 32))


def test_what_misses_by_least_memory_is_told() -> None:
    model, facts = case("llama-3.1-405b")
    target = Target(gpus=("L4",), formats=("none",), context_tokens=131_072)
    one = [type_ for type_ in TYPES if type_.name == "g6.12xlarge"]
    result = shapes_of(model, facts, target, one)
    assert result.found == ()
    assert result.refused["memory"]
    assert "PP" in str(result.miss)
    assert "closest: " in str(result.miss)
