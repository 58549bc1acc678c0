"""The stack file, typed. The only reader of configuration: nothing else looks into a stack file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from planner.cloud_choice import EXISTING, misplaced, on_pool
from planner.cloud_config import (
    AwsConfig,
    AzureConfig,
    ClusterConfig,
    ExistingConfig,
    GcpConfig,
    ImagesConfig,
    NetworkConfig,
    PoolConfig,
    StorageConfig,
)
from planner.config_problems import cross_field_problems, problems_of
from planner.errors import PlanError, Problem, shown
from planner.strict import Strict
from planner.untyped import as_list, as_mapping

NAMESPACE = "tritonfleet"

WeightQuantization = Literal["none", "fp8", "int8_wo", "int4_wo", "int4_awq", "w4a8_awq", "int8_sq", "nvfp4"]
KvCacheQuantization = Literal["none", "fp8", "int8"]
Backend = Literal["cpu", "tensorrt", "pytorch"]


MODEL_NAME = r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"
"""A DNS-1035 label, as Services need; Kubernetes adds up to 23 characters for the pods' and their revision's names."""


class QuantizationConfig(Strict):
    """Number formats of the weights and of the KV cache; `none` keeps the checkpoint's own."""

    weights: WeightQuantization = "none"
    kv_cache: KvCacheQuantization = "none"


class BuildFlags(Strict):
    """Flags of trtllm-build, by its own names. Every one is part of the engine key."""

    gemm_plugin: Literal["auto", "float16", "bfloat16", "fp8", "nvfp4", "disable"] = "auto"
    gpt_attention_plugin: Literal["auto", "float16", "bfloat16"] = "auto"
    max_beam_width: int = Field(default=1, ge=1, le=64)
    tokens_per_block: Literal[8, 16, 32, 64, 128] = 32
    use_paged_context_fmha: bool = True
    use_fp8_context_fmha: bool = True
    multiple_profiles: bool = False
    reduce_fusion: bool = False


class ServingConfig(Strict):
    """How an engine is served. Nothing here changes the engine, so nothing here is part of its key."""

    replicas: int = Field(default=1, ge=0, le=1000)
    log_level: Literal["error", "warning", "info", "verbose"] = "info"
    max_queue_size: int = Field(default=64, ge=1, le=1_000_000)
    kv_cache_free_gpu_mem_fraction: float = Field(default=0.9, gt=0, le=1)
    kv_cache_tokens: int | None = Field(default=None, ge=1, le=1 << 40)
    enable_kv_cache_reuse: bool = True
    enable_chunked_context: bool = True
    batch_scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = "guaranteed_no_evict"
    max_queue_delay_microseconds: int = Field(default=0, ge=0, le=60_000_000)


class ModelConfig(Strict):
    """One model to serve. `max_seq_len` counts prompt and answer tokens of one request."""

    name: str = Field(pattern=MODEL_NAME)
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
    pool: str | None = Field(default=None, min_length=1, max_length=64)
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


Cloud = Literal["existing", "aws", "gcp", "azure"]


class SiteConfig(Strict):
    """Where a stack runs: everything but its models and the pools they run on."""

    cloud: Cloud
    region: str | None = Field(default=None, min_length=1, max_length=64)
    network: NetworkConfig | None = None
    cluster: ClusterConfig = ClusterConfig()
    storage: StorageConfig = StorageConfig()
    images: ImagesConfig = ImagesConfig()
    aws: AwsConfig = AwsConfig()
    gcp: GcpConfig = GcpConfig()
    azure: AzureConfig = AzureConfig()
    existing: ExistingConfig | None = None
    allow_replacement: Annotated[tuple[str, ...], Field(strict=False)] = ()
    hugging_face_token: bool = False


class StackConfig(SiteConfig):
    """A whole stack: where to run, on what, and which models."""

    pools: Annotated[tuple[PoolConfig, ...], Field(strict=False)] = ()
    models: Annotated[tuple[ModelConfig, ...], Field(strict=False, min_length=1)]


@dataclass(frozen=True, kw_only=True)
class ParsedStack:
    """What could be read: what is sound by itself, by its place in the file, and all problems.

    `site` is None when not even the cloud could be read; a section of it that is at fault has its defaults.
    """

    site: SiteConfig | None
    pools: dict[int, PoolConfig]
    models: dict[int, ModelConfig]
    problems: tuple[Problem, ...]


def stack_from_mapping(values: Mapping[str, Any]) -> StackConfig:
    """The stack of a `tritonfleet:` configuration, namespace removed. Raises PlanError with every problem in it."""
    parsed = parse_stack(values)
    if parsed.problems or parsed.site is None:
        raise PlanError(parsed.problems)
    site = {name: getattr(parsed.site, name) for name in SiteConfig.model_fields}
    return StackConfig(**site, pools=tuple(parsed.pools.values()), models=tuple(parsed.models.values()))


def parse_stack(values: Mapping[str, Any]) -> ParsedStack:
    """Each section, pool and model checked by itself, so that one's fault hides no other's."""
    values, problems = _without_token(values)
    site, found = _parse_site(values)
    problems += found
    pools: dict[int, PoolConfig] = {}
    models: dict[int, ModelConfig] = {}
    raw_pools = as_list(values.get("pools"))
    for index, entry in enumerate(raw_pools):
        pool, found = _parse_pool(entry, f"pools[{index}]")
        problems += found
        if pool is not None:
            pools[index] = pool
    for index, entry in enumerate(as_list(values.get("models"))):
        key, chosen = f"models[{index}]", entry
        found_of_pool: list[Problem] = []
        if site is not None and isinstance(entry, dict):
            chosen, found_of_pool = on_pool(as_mapping(entry), site, values, key)
        model, found = _parse_model(chosen, key)
        managed = site is not None and site.cloud != EXISTING
        # The pool decides the GPU: without the one a model lacks the other, and one of the two is said.
        decided = managed or any(problem.key == f"{key}.pool" for problem in (*found_of_pool, *found))
        # Without a cloud there is no telling what the pool is, and that is said of the cloud.
        decided |= site is None and "pool" in as_mapping(entry)
        found = [problem for problem in found if problem.key != f"{key}.gpu" or not decided]
        problems += found_of_pool + found
        if model is not None and not found_of_pool:
            models[index] = model
    problems += _colliding_names(models)
    for section, items in (("pools", pools), ("models", models)):
        problems += _duplicate_names(section, items)
        if values.get(section) and not isinstance(values[section], list):
            problems.append(_not_a_list(section, values[section]))
    return ParsedStack(site=site, pools=pools, models=models, problems=tuple(problems))


def _without_token(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    # The planner needs to know that there is a token, never the token: it is a string when Pulumi has decrypted it, and
    # `secure: …` in the file.
    if "hugging_face_token" not in values:
        return dict(values), []
    token = values["hugging_face_token"]
    present = {**values, "hugging_face_token": True}
    if (isinstance(token, str) and token) or set(as_mapping(token)) == {"secure"}:
        return present, []
    problem = Problem(
        key="hugging_face_token",
        what="not a secret string",
        consequence="gated weights could not be downloaded",
        fix=f"run `pulumi config set --secret {NAMESPACE}:hugging_face_token` and paste the token",
    )
    return present, [problem]


def _parse_site(values: dict[str, Any]) -> tuple[SiteConfig | None, list[Problem]]:
    # Pools and models are judged one by one elsewhere; here only that there are some.
    listed = {name: () if values.get(name) else values[name] for name in ("pools", "models") if name in values}
    try:
        StackConfig.model_validate({**values, **listed})
        errors: Sequence[Any] = ()
    except ValidationError as error:
        errors = [line for line in error.errors() if not (line["loc"] == ("models",) and values.get("models"))]
    problems = problems_of(errors, StackConfig, prefix="")
    bad = {line["loc"][0] for line in errors}
    try:
        kept = {name: value for name, value in values.items() if name in SiteConfig.model_fields and name not in bad}
        site = SiteConfig.model_validate(kept)
    except ValidationError:
        return None, problems
    return site, problems + misplaced(site, values)


def _parse_pool(entry: object, key: str) -> tuple[PoolConfig | None, list[Problem]]:
    try:
        return PoolConfig.model_validate(entry), []
    except ValidationError as error:
        return None, problems_of(error.errors(), PoolConfig, prefix=key)


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


def _duplicate_names(section: str, items: Mapping[int, PoolConfig | ModelConfig]) -> list[Problem]:
    first: dict[str, int] = {}
    claims = {
        "models": "both would claim one service and one route; requests would reach either model",
        "pools": "both would claim the same node groups and labels; a model could land on either",
    }
    return [
        Problem(
            key=f"{section}[{index}].name",
            what=f"{item.name} is already the name of {section}[{first[item.name]}]",
            consequence=claims[section],
            fix=f"give each of the {section} a name of its own",
        )
        for index, item in items.items()
        if first.setdefault(item.name, index) != index
    ]


def _colliding_names(models: Mapping[int, ModelConfig]) -> list[Problem]:
    # LeaderWorkerSet makes a Service of the set's own name for the pods of its groups.
    sets = {f"{model.name}-group": index for index, model in models.items()}
    return [
        Problem(
            key=f"models[{index}].name",
            what=f"{model.name} is the name of the Service between the pods of models[{sets[model.name]}]",
            consequence="the two Services would take each other's place; requests would reach workers",
            fix="choose a name that is not another model's with -group after it",
        )
        for index, model in models.items()
        if model.name in sets
    ]


def _not_a_list(section: str, raw: object) -> Problem:
    return Problem(
        key=section,
        what=f"{shown(raw)} is not a list",
        consequence="the stack names no model to serve" if section == "models" else "the models have no GPUs to run on",
        fix=f"write each of the {section} as an item: `- name: …`",
    )
