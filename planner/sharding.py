"""Which (TP, PP) a model allows, and the reason for each that it does not."""

from collections.abc import Iterator
from dataclasses import dataclass

from planner.config import ModelConfig
from planner.errors import Problem
from planner.memory import RankMemory, stage_memory, weight_format
from planner.model import ModelFacts
from planner.tensors import Split, layer_tensors

MAX_WORLD_SIZE = 128
"""Largest group that is listed: sixteen nodes of eight GPUs. A larger one can still be asked for."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why a degree of parallelism cannot be: `field` is the key that asks for it, `rule` what every degree obeys."""

    field: str
    rule: str
    what: str
    consequence: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Option:
    """One (TP, PP): refused for reasons, or with the memory of its fullest stage."""

    tensor_parallel: int
    pipeline_parallel: int
    refused: tuple[Refused, ...]
    memory: RankMemory | None
    warnings: tuple[str, ...]

    @property
    def world_size(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel


def check(model: ModelConfig, facts: ModelFacts, key: str) -> list[Problem]:
    """Every reason against the sharding that the model asks for."""
    return [
        Problem(key=f"{key}.{refused.field}", what=refused.what, consequence=refused.consequence, fix=refused.fix)
        for refused in _refusals(model, facts)
    ]


def options(model: ModelConfig, facts: ModelFacts) -> tuple[Option, ...]:
    """Every sharding up to MAX_WORLD_SIZE ranks with TP up to the heads and PP up to the layers, smallest first.

    A TP that is refused by itself is listed once, with PP 1.
    """
    found: list[Option] = []
    for tp in range(1, min(facts.num_heads, MAX_WORLD_SIZE) + 1):
        alone = tuple(_tp_refusals(_with(model, tp, 1), facts))
        if alone:
            found.append(Option(tensor_parallel=tp, pipeline_parallel=1, refused=alone, memory=None, warnings=()))
            continue
        found += [
            _option(_with(model, tp, pp), facts) for pp in range(1, min(facts.num_layers, MAX_WORLD_SIZE // tp) + 1)
        ]
    return tuple(sorted(found, key=lambda option: (option.world_size, option.pipeline_parallel)))


def legal_tensor_parallel(model: ModelConfig, facts: ModelFacts) -> list[int]:
    """The TP degrees up to MAX_WORLD_SIZE that the model allows, whatever the PP."""
    degrees = range(1, min(facts.num_heads, MAX_WORLD_SIZE) + 1)
    return [tp for tp in degrees if next(_broken_rules(model, facts, tp), None) is None]


def smallest_that_fits(model: ModelConfig, facts: ModelFacts) -> Option | None:
    """The fewest ranks that hold the model, if possible such that they divide or fill nodes.

    Among equals the one with most TP that stays inside a node: TP answers sooner than PP.
    """
    fitting = [option for option in options(model, facts) if option.memory and option.memory.fits]
    nodes = model.gpus_per_node
    whole = [option for option in fitting if nodes % option.world_size == 0 or option.world_size % nodes == 0]
    return min(
        whole or fitting,
        key=lambda option: (option.world_size, len(option.warnings), option.pipeline_parallel),
        default=None,
    )


def warnings(model: ModelConfig) -> tuple[str, ...]:
    """What is allowed but slow."""
    tp, per_node = model.tensor_parallel, model.gpus_per_node
    if model.backend == "cpu" or model.world_size <= per_node or per_node % tp == 0:
        return ()
    return (
        f"tensor parallel {tp} does not stay inside nodes of {per_node} GPUs: every layer's all-reduce crosses "
        "the network; pipeline parallel over nodes moves far less",
    )


def _option(model: ModelConfig, facts: ModelFacts) -> Option:
    refused = tuple(_refusals(model, facts))
    # The stage with least room decides; without a capacity, the heaviest.
    stages = () if refused else stage_memory(model, facts)
    fullest = min(stages, key=lambda stage: (stage.kv_tokens, -stage.weights_bytes), default=None)
    return Option(
        tensor_parallel=model.tensor_parallel,
        pipeline_parallel=model.pipeline_parallel,
        refused=refused,
        memory=fullest,
        warnings=warnings(model),
    )


def _with(model: ModelConfig, tp: int, pp: int) -> ModelConfig:
    return model.model_copy(update={"tensor_parallel": tp, "pipeline_parallel": pp})


def _refusals(model: ModelConfig, facts: ModelFacts) -> Iterator[Refused]:
    yield from _tp_refusals(model, facts)
    pp, layers = model.pipeline_parallel, facts.num_layers
    if pp > layers:
        yield Refused(
            field="pipeline_parallel",
            rule=f"at most one stage for each of the {layers} layers",
            what=f"{pp} stages for {layers} layers",
            consequence="a stage would have no layer; TensorRT-LLM refuses it",
            fix=f"give at most {layers}",
        )
    if model.backend == "tensorrt" and pp > 1 and not facts.family.engine_pipeline and model.converted:
        yield Refused(
            field="pipeline_parallel",
            rule=f"one stage: {facts.family.name}'s convert_checkpoint.py has no --pp_size",
            what=f"{facts.family.name}'s convert_checkpoint.py has no --pp_size",
            consequence="the engine could not be built",
            fix="give pipeline_parallel: 1, or backend: pytorch",
        )
    world, per_node = model.world_size, model.gpus_per_node
    if model.backend != "cpu" and world > per_node and world % per_node:
        divisors = [str(n) for n in range(per_node, 0, -1) if world % n == 0][:2]
        yield Refused(
            field="gpus_per_node",
            rule=f"ranks fill nodes of {per_node} GPUs",
            what=f"{world} ranks do not fill nodes of {per_node} GPUs",
            consequence="the pods of a group are equal; one of them would ask for GPUs that no rank uses",
            fix=f"give gpus_per_node: {' or '.join(divisors)}, or another world size",
        )
    if model.mig_profile and world > 1:
        field = "tensor_parallel" if model.tensor_parallel > 1 else "pipeline_parallel"
        yield Refused(
            field=field,
            rule="one rank on a MIG slice",
            what=f"{world} ranks on MIG slices",
            consequence="slices cannot reach each other (no peer access, no NVLink): the group would not start",
            fix="use one rank, or whole GPUs",
        )


def _tp_refusals(model: ModelConfig, facts: ModelFacts) -> Iterator[Refused]:
    for rule, what, consequence in _broken_rules(model, facts, model.tensor_parallel):
        fix = f"give one of {', '.join(str(degree) for degree in legal_tensor_parallel(model, facts))}"
        yield Refused(field="tensor_parallel", rule=rule, what=what, consequence=consequence, fix=fix)


def _broken_rules(model: ModelConfig, facts: ModelFacts, tp: int) -> Iterator[tuple[str, str, str]]:
    """Rule, what breaks it, and the consequence, for one TP degree."""
    heads, kv_heads = facts.num_heads, facts.num_kv_heads
    if heads % tp:
        what = f"{heads} attention heads are not divisible by {tp}"
        yield f"TP divides the {heads} attention heads", what, "ranks would hold unequal heads"
    if not facts.mla and kv_heads % tp and tp % kv_heads:
        what = f"{kv_heads} KV heads can be neither divided nor repeated evenly over {tp} ranks"
        rule = f"TP divides the {kv_heads} KV heads, or is a multiple of them"
        yield rule, what, "a rank's query heads would lack their KV head"
    for name, width in _ffn_widths(facts):
        if width % tp:
            what = f"{name} {width} is not divisible by {tp}"
            yield f"TP divides the {name} {width}", what, "the shards would be cut short, and answers wrong"
    group = _shared_scale(model, facts)
    # An unsplit tensor (TP 1) is read as it was written, whatever its size.
    for name, inputs in _row_inputs(facts) if group and tp > 1 else ():
        if group and inputs % tp == 0 and inputs // tp % group:
            what = f"{inputs // tp} inputs of {name} per rank are not a multiple of the {group} that share a scale"
            rule = f"inputs of {name} per rank are a multiple of {group}, which share a scale"
            yield rule, what, "a scale would belong to two ranks; the checkpoint could not be split"


def _shared_scale(model: ModelConfig, facts: ModelFacts) -> int | None:
    """How many inputs of a row-split matrix share a scale. MXFP4 experts are padded when they are loaded."""
    fmt, group = weight_format(model, facts)
    return None if fmt == "mxfp4" else group


def _ffn_widths(facts: ModelFacts) -> list[tuple[str, int]]:
    widths = [("feed-forward width", facts.intermediate_size)]
    if facts.moe:
        dense = widths if facts.moe.dense_layers else []
        widths = [*dense, ("expert width", facts.moe.expert_size)]
        widths += [("shared expert width", facts.moe.shared_size)] if facts.moe.shared_size else []
    return widths


def _row_inputs(facts: ModelFacts) -> list[tuple[str, int]]:
    kinds = (False, True) if facts.moe else (False,)
    return sorted(
        {
            (tensor.name, tensor.inputs)
            for moe in kinds
            for tensor in layer_tensors(facts, moe=moe)
            if tensor.split is Split.ROW and (moe or not facts.moe or facts.moe.dense_layers)
        }
    )
