"""From a stack to a FleetPlan: every downstream part reads the plan and nothing else."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner import sharding
from planner.cloud_choice import EXISTING
from planner.config import ModelConfig
from planner.config_problems import Finding
from planner.engine_key import EngineSpec, engine_spec
from planner.errors import PlanError, Problem
from planner.existing import plan_existing
from planner.fleet import CloudPlan, ServingPlan
from planner.gpus import gpus
from planner.memory import GIB, RankMemory, rank_memory
from planner.model import ModelFacts
from planner.parsing import ParsedStack, parse_stack
from planner.site import plan_site
from planner.sources import facts_of, fingerprint
from planner.stack_file import read_stack_file

CPU_KV_CACHE_TOKENS = 16_384
"""Most tokens that the CPU backend's KV cache holds unless the stack asks for more."""


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """One model, decided. `config` has every default filled in, and the fingerprint of local weights as revision."""

    name: str
    config: ModelConfig
    facts: ModelFacts
    world_size: int
    nodes: int
    ranks_per_node: int
    memory: tuple[RankMemory, ...]
    engine: EngineSpec
    warnings: tuple[str, ...]
    serving: ServingPlan | None = None

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache of a whole replica holds: the rank with least room decides."""
        return min(rank.kv_tokens for rank in self.memory)


@dataclass(frozen=True, kw_only=True)
class FleetPlan:
    """A whole stack, decided. `infrastructure` is None on a laptop."""

    cloud: str
    models: tuple[ModelPlan, ...]
    infrastructure: CloudPlan | None = None


def plan_file(path: Path) -> FleetPlan:
    """The plan of a stack file; relative paths in it start at its folder. Raises PlanError with all problems."""
    return plan_values(read_stack_file(path), base_dir=path.parent)


def plan_values(values: Mapping[str, Any], *, base_dir: Path) -> FleetPlan:
    """The plan of a `tritonfleet:` configuration, namespace removed. Raises PlanError with all problems."""
    return _plan(parse_stack(values), base_dir)


def plan_model(model: ModelConfig, *, base_dir: Path, key: str) -> ModelPlan:
    """The plan of one model; `key` is its place in the stack file. Raises PlanError with all its problems."""
    facts = facts_of(model, base_dir, key)
    resolved = resolve(model, facts, base_dir)
    problems = [*suitability_problems(resolved, facts, key), *sharding.check(resolved, facts, key)]
    if problems:
        raise PlanError(problems)
    memory = rank_memory(resolved, facts)
    if not all(rank.fits for rank in memory):
        raise PlanError([_does_not_fit(resolved, facts, memory, key)])
    nodes = 1 if resolved.backend == "cpu" else -(-resolved.world_size // resolved.gpus_per_node)
    return ModelPlan(
        name=resolved.name,
        config=resolved,
        facts=facts,
        world_size=resolved.world_size,
        nodes=nodes,
        ranks_per_node=resolved.world_size // nodes,
        memory=memory,
        engine=engine_spec(resolved, facts),
        warnings=(*sharding.warnings(resolved), *_risks(resolved, facts)),
    )


def resolve(model: ModelConfig, facts: ModelFacts, base_dir: Path) -> ModelConfig:
    """The model with the defaults filled in that depend on its facts."""
    update: dict[str, object] = {}
    max_seq_len = model.max_seq_len
    if "max_seq_len" not in model.model_fields_set:
        max_seq_len = update["max_seq_len"] = min(facts.max_position_embeddings, model.max_seq_len)
    if model.revision is None:
        update["revision"] = fingerprint(model, base_dir)
    if model.backend == "cpu":
        update["gpus_per_node"] = model.world_size
        if model.serving.kv_cache_tokens is None:
            tokens = max(max_seq_len, min(model.max_batch_size * max_seq_len, CPU_KV_CACHE_TOKENS))
            update["serving"] = model.serving.model_copy(update={"kv_cache_tokens": tokens})
    return model.model_copy(update=update)


def _plan(parsed: ParsedStack, base_dir: Path) -> FleetPlan:
    problems = list(parsed.problems)
    plans: dict[int, ModelPlan] = {}
    for index, model in parsed.models.items():
        try:
            plans[index] = plan_model(model, base_dir=base_dir, key=f"models[{index}]")
        except PlanError as error:
            problems += error.problems
    site = None
    if parsed.site is not None:
        # An existing cluster that is not named is a laptop's stack: there is nothing to deploy to.
        where = plan_site if parsed.site.cloud != EXISTING else plan_existing if parsed.site.existing else None
        site, found = where(parsed, plans) if where else (None, [])
        problems += parsed.judged(found)
    if problems or parsed.site is None:
        raise PlanError(problems)
    if site is None:
        return FleetPlan(cloud=parsed.site.cloud, models=tuple(plans.values()))
    models = tuple(
        replace(plan, serving=site.serving[index], warnings=(*plan.warnings, *site.warnings[index]))
        for index, plan in plans.items()
    )
    return FleetPlan(cloud=parsed.site.cloud, models=models, infrastructure=site.cloud)


def suitability_problems(model: ModelConfig, facts: ModelFacts, key: str) -> list[Problem]:
    """Why the model cannot run on its backend and GPU, however it is sharded."""
    found = (*_backend(model, facts), *_stored_weights(model, facts))
    problems = [Problem(key=f"{key}.{field}", what=what, consequence=cost, fix=fix) for field, what, cost, fix in found]
    if model.max_seq_len > facts.max_position_embeddings:
        problems.append(
            Problem(
                key=f"{key}.max_seq_len",
                what=f"{model.max_seq_len} tokens, but the model has {facts.max_position_embeddings} positions",
                consequence="positions beyond what the model was trained on give nonsense",
                fix=f"give at most {facts.max_position_embeddings}",
            )
        )
    return problems


def _backend(model: ModelConfig, facts: ModelFacts) -> Iterator[Finding]:
    family = facts.family
    if model.backend not in family.backends:
        cost = f"the {model.backend} backend has no {facts.architecture}; the engine could not be built"
        fix = f"give one of {', '.join(sorted(family.backends))}"
        yield "backend", f"{model.backend} does not run {family.name}", cost, fix
    elif model.backend == "cpu":
        parts = {
            f"RoPE scaling ({facts.rope_scaling})": facts.rope_scaling is not None,
            "attention biases": facts.attention_bias,
            "feed-forward biases": facts.mlp_bias,
        }
        for part in (name for name, present in parts.items() if present):
            cost = "it would compute without them, and answers be nonsense"
            yield "backend", f"the CPU engine has no {part}", cost, "choose a GPU backend"
    weight_only = model.quantization.weights in ("int8_wo", "int4_wo")
    if model.backend == "tensorrt" and weight_only and not family.engine_weight_only:
        what = f"{family.name}'s convert_checkpoint.py has no --use_weight_only"
        yield "quantization.weights", what, "the engine could not be built", "give none or fp8, or backend: pytorch"


def _stored_weights(model: ModelConfig, facts: ModelFacts) -> Iterator[Finding]:
    stored, wanted = facts.checkpoint_quantization, model.quantization.weights
    if stored is None:
        return
    if model.backend != "pytorch":
        cost = f"the {model.backend} backend's build reads unquantised checkpoints; it would fail"
        fix = "give an unquantised checkpoint, or backend: pytorch"
        yield "source", f"the weights are stored as {stored.method}", cost, fix
    elif wanted != "none" and not stored.weights.startswith(wanted):
        cost = "the PyTorch backend loads weights as they are stored, of another size than planned"
        fix = "remove it, or give a checkpoint stored so"
        yield "quantization.weights", f"{wanted}, but the weights are stored as {stored.method}", cost, fix
    needed = {"fp8": (8, 9), "fp8_block": (9, 0), "mxfp4": (9, 0), "nvfp4": (10, 0)}.get(stored.weights)
    gpu = gpus()[model.gpu] if model.gpu else None
    if gpu and needed and gpu.capability < needed:
        what = f"weights stored as {stored.method} need compute capability {needed[0]}.{needed[1]}"
        cost = f"{gpu.name} has compute capability {gpu.compute_capability}, and no kernels for them"
        yield "gpu", what, cost, "choose a newer GPU"


def _does_not_fit(model: ModelConfig, facts: ModelFacts, memory: tuple[RankMemory, ...], key: str) -> Problem:
    worst = min(memory, key=lambda rank: (rank.kv_tokens, rank.margin_bytes or 0))
    if worst.capacity_bytes is None:
        return Problem(
            key=f"{key}.serving.kv_cache_tokens",
            what=f"{worst.kv_tokens} tokens, fewer than max_seq_len {model.max_seq_len}",
            consequence="a request of max_seq_len would wait for ever",
            fix=f"give at least {model.max_seq_len}, or lower max_seq_len",
        )
    device = " ".join(filter(None, (model.gpu, model.mig_profile)))
    needed = worst.capacity_bytes - (worst.margin_bytes or 0)
    fitting = sharding.smallest_that_fits(model, facts)
    fix = (
        f"smallest that fits: tensor_parallel {fitting.tensor_parallel}, pipeline_parallel {fitting.pipeline_parallel}"
        if fitting
        else "choose a larger GPU, quantise the weights, or lower max_seq_len, max_num_tokens or max_batch_size"
    )
    return Problem(
        key=f"{key}.tensor_parallel",
        what=(
            f"rank {worst.rank} needs about {needed / GIB:.1f} GiB (estimate) for one request of "
            f"{model.max_seq_len} tokens, and {device} has {worst.capacity_bytes / GIB:.1f} GiB"
        ),
        consequence="the engine would run out of memory while it loads",
        fix=fix,
    )


def _risks(model: ModelConfig, facts: ModelFacts) -> tuple[str, ...]:
    if model.backend == "tensorrt" and model.quantization.weights == "nvfp4":
        return ("nvfp4 on the engine path has been reported to lose much accuracy; compare answers before serving",)
    if model.backend == "pytorch" and model.quantization.weights != "none" and not facts.checkpoint_quantization:
        return (f"planned for {model.quantization.weights} weights: the PyTorch backend needs them stored so already",)
    return ()
