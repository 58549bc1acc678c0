"""The stack file, typed. The only reader of configuration: nothing else looks into a stack file."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning

from planner.config_problems import cross_field_problems, problems_of
from planner.errors import PlanError, Problem, did_you_mean, shown
from planner.untyped import as_list, as_mapping

NAMESPACE = "tritonfleet"
MAX_STACK_FILE_BYTES = 128 << 10

WeightQuantization = Literal["none", "fp8", "int8_wo", "int4_wo", "int4_awq", "w4a8_awq", "int8_sq", "nvfp4"]
KvCacheQuantization = Literal["none", "fp8", "int8"]
Backend = Literal["cpu", "tensorrt", "pytorch"]


class _Strict(BaseModel):
    # strict: "3" is not 3 and 1 is not true; an unknown key is an error, never ignored.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class QuantizationConfig(_Strict):
    """Number formats of the weights and of the KV cache; `none` keeps the checkpoint's own."""

    weights: WeightQuantization = "none"
    kv_cache: KvCacheQuantization = "none"


class BuildFlags(_Strict):
    """Flags of trtllm-build, by its own names. Every one is part of the engine key."""

    gemm_plugin: Literal["auto", "float16", "bfloat16", "fp8", "nvfp4", "disable"] = "auto"
    gpt_attention_plugin: Literal["auto", "float16", "bfloat16"] = "auto"
    max_beam_width: int = Field(default=1, ge=1, le=64)
    tokens_per_block: Literal[8, 16, 32, 64, 128] = 32
    use_paged_context_fmha: bool = True
    use_fp8_context_fmha: bool = True
    multiple_profiles: bool = False
    reduce_fusion: bool = False


class ServingConfig(_Strict):
    """How an engine is served. Nothing here changes the engine, so nothing here is part of its key."""

    max_queue_size: int = Field(default=64, ge=1, le=1_000_000)
    kv_cache_free_gpu_mem_fraction: float = Field(default=0.9, gt=0, le=1)
    kv_cache_tokens: int | None = Field(default=None, ge=1, le=1 << 40)
    enable_kv_cache_reuse: bool = True
    enable_chunked_context: bool = True
    batch_scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = "guaranteed_no_evict"
    max_queue_delay_microseconds: int = Field(default=0, ge=0, le=60_000_000)


class ModelConfig(_Strict):
    """One model to serve. `max_seq_len` counts prompt and answer tokens of one request."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    source: str = Field(min_length=1, max_length=1024)
    revision: str | None = Field(default=None, min_length=1, max_length=256)
    config: str | None = Field(default=None, min_length=1, max_length=1024)
    backend: Backend
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default_factory=lambda data: "float32" if data.get("backend") == "cpu" else "bfloat16"
    )
    tensor_parallel: int = Field(default=1, ge=1, le=4096)
    pipeline_parallel: int = Field(default=1, ge=1, le=4096)
    quantization: QuantizationConfig = QuantizationConfig()
    gpu: str | None = Field(default=None, min_length=1, max_length=64)
    gpus_per_node: int = Field(default=8, ge=1, le=256)
    mig_profile: str | None = Field(default=None, min_length=1, max_length=64)
    max_batch_size: int = Field(
        default_factory=lambda data: 8 if data.get("backend") == "cpu" else 2048, ge=1, le=1 << 20
    )
    max_seq_len: int = Field(default=4096, ge=2, le=1 << 30)
    max_num_tokens: int = Field(default=8192, ge=1, le=1 << 30)
    build: BuildFlags = BuildFlags()
    serving: ServingConfig = ServingConfig()

    @property
    def world_size(self) -> int:
        """Ranks of one replica."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def converted(self) -> bool:
        """Whether convert_checkpoint.py makes the engine's checkpoint; what needs calibration, quantize.py makes."""
        return self.quantization.kv_cache == "none" and self.quantization.weights in ("none", "int8_wo", "int4_wo")


class StackConfig(_Strict):
    """A whole stack: where to run, and which models."""

    cloud: Literal["existing"]
    models: Annotated[tuple[ModelConfig, ...], Field(strict=False, min_length=1)]


@dataclass(frozen=True, kw_only=True)
class ParsedStack:
    """What could be read: the models that are sound by themselves, by their place in the file, and all problems."""

    cloud: Literal["existing"]
    models: dict[int, ModelConfig]
    problems: tuple[Problem, ...]


def load_stack(path: Path) -> StackConfig:
    """The stack file at `path`; raises PlanError with every problem in it."""
    return _sound(parse_stack(read_stack_file(path)))


def stack_from_mapping(values: Mapping[str, Any]) -> StackConfig:
    """The same from the stack's `tritonfleet:` configuration, namespace removed (`cloud`, `models`)."""
    return _sound(parse_stack(values))


def parse_stack(values: Mapping[str, Any]) -> ParsedStack:
    """Each model checked by itself, so that one model's fault hides no other's."""
    problems: list[Problem] = []
    models: dict[int, ModelConfig] = {}
    raw = values.get("models")
    for index, entry in enumerate(as_list(raw)):
        model, found = _parse_model(entry, f"models[{index}]")
        problems += found
        if model is not None:
            models[index] = model
    problems += _duplicate_names(models)
    try:
        # The models were judged above; here only that the list is one, and is not empty.
        StackConfig.model_validate({**values, "models": ()} if raw else values)
    except ValidationError as error:
        mine = [line for line in error.errors() if not (raw and line["loc"] == ("models",))]
        problems += problems_of(mine, StackConfig, prefix="")
        if raw and not isinstance(raw, list):
            problems.append(_not_a_list(raw))
    return ParsedStack(cloud="existing", models=models, problems=tuple(problems))


def read_stack_file(path: Path) -> dict[str, Any]:
    """The `tritonfleet:` values of a Pulumi stack file, namespace removed; other namespaces are not ours to judge."""
    document = _read_yaml(path)
    config = as_mapping(document).get("config")
    if not isinstance(config, dict):
        raise PlanError([_no_config(path, document)])
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in as_mapping(config).items():
        if not isinstance(key, str):
            problems.append(_foreign_key(shown(key), "a configuration key is a name, not a value"))
            continue
        namespace, _, name = key.rpartition(":")
        if namespace == NAMESPACE:
            values[name] = value
        elif not namespace and name in StackConfig.model_fields:
            problems.append(_foreign_key(key, f"did you mean {NAMESPACE}:{name}?"))
        elif namespace and did_you_mean(namespace, [NAMESPACE], ""):
            problems.append(_foreign_key(shown(key)[1:-1], f"did you mean {NAMESPACE}:{shown(name)[1:-1]}?"))
    if problems:
        raise PlanError([*problems, *parse_stack(values).problems])
    return values


def _parse_model(entry: object, key: str) -> tuple[ModelConfig | None, list[Problem]]:
    try:
        model = ModelConfig.model_validate(entry)
    except ValidationError as error:
        problems = problems_of(error.errors(), ModelConfig, prefix=key)
        return None, problems + _problems_of_the_rest(entry, error, key)
    problems = cross_field_problems(model, key)
    return (None if problems else model), problems


def _problems_of_the_rest(entry: object, error: ValidationError, key: str) -> list[Problem]:
    # What the sound fields contradict among themselves should not wait for the next run.
    if not isinstance(entry, dict):
        return []
    bad = {line["loc"][0] for line in error.errors() if line["loc"]}
    try:
        kept = {name: value for name, value in as_mapping(entry).items() if name not in bad}
        rest = ModelConfig.model_validate({"name": "unnamed", **kept})
    except ValidationError:
        return []
    return [
        problem
        for problem in cross_field_problems(rest, key)
        if problem.key.removeprefix(f"{key}.").split(".")[0] not in bad
    ]


def _duplicate_names(models: dict[int, ModelConfig]) -> list[Problem]:
    first: dict[str, int] = {}
    return [
        Problem(
            key=f"models[{index}].name",
            what=f"{model.name} is already the name of models[{first[model.name]}]",
            consequence="both would claim one service and one route; requests would reach either model",
            fix="give each model a name of its own",
        )
        for index, model in models.items()
        if first.setdefault(model.name, index) != index
    ]


def _sound(parsed: ParsedStack) -> StackConfig:
    if parsed.problems:
        raise PlanError(parsed.problems)
    return StackConfig(cloud=parsed.cloud, models=tuple(parsed.models.values()))


def _read_yaml(path: Path) -> object:
    def refuse(what: str, fix: str) -> PlanError:
        return PlanError(
            [Problem(key=str(path), what=what, consequence="no model of this stack can be planned", fix=fix)]
        )

    try:
        with path.open("rb") as file:
            content = file.read(MAX_STACK_FILE_BYTES + 1)
        if len(content) > MAX_STACK_FILE_BYTES:
            raise refuse(f"larger than {MAX_STACK_FILE_BYTES >> 10} KiB", "give a stack file: Pulumi.<stack>.yaml")
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse(f"not UTF-8 text (byte {error.start})", "save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        raise refuse(f"cannot be read: {reason}", "give the path of a stack file, stacks/Pulumi.<stack>.yaml") from None
    try:
        # A reused anchor is legal YAML; ruamel would warn of it on standard error.
        with warnings.catch_warnings(action="ignore", category=ReusedAnchorWarning):
            return YAML(typ="safe", pure=True).load(text)  # pyright: ignore[reportUnknownMemberType]
    except MarkedYAMLError as error:
        raise refuse(_where_and_why(error), "correct that line") from None
    except RecursionError:
        raise refuse("nested too deeply", "a stack file needs at most six levels") from None
    except Exception as error:
        # ruamel raises many types for text that is no YAML: ValueError for 2001-99-99, AssertionError, AttributeError.
        raise refuse(f"not valid YAML: {shown(str(error))[1:-1]}", "correct the file") from None


def _where_and_why(error: Any) -> str:
    # Any: ruamel's errors carry no types.
    mark = error.problem_mark or error.context_mark
    return f"not valid YAML{f' at line {mark.line + 1}' if mark else ''}: {shown(str(error.problem))[1:-1]}"


def _no_config(path: Path, document: object) -> Problem:
    found = "the file is empty" if document is None else "there is no mapping `config` in it"
    return Problem(
        key=f"{path}: config",
        what=found,
        consequence="the stack names no model to serve",
        fix=f"write `config:` with `{NAMESPACE}:cloud` and `{NAMESPACE}:models` under it",
    )


def _foreign_key(key: str, fix: str) -> Problem:
    return Problem(
        key=f"config.{key}",
        what=f"not a key of {NAMESPACE}",
        consequence="it would be ignored, and a default used in its place",
        fix=fix,
    )


def _not_a_list(raw: object) -> Problem:
    return Problem(
        key="models",
        what=f"{shown(raw)} is not a list",
        consequence="the stack names no model to serve",
        fix="write each model as an item: `- name: …`",
    )
