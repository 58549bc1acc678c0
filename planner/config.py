"""The stack file, typed."""

from typing import Annotated, Literal

from pydantic import Field

from planner.cloud_config import (
    AwsConfig,
    AzureConfig,
    ClusterConfig,
    ExistingConfig,
    GcpConfig,
    ImagesConfig,
    KeyLimits,
    NetworkConfig,
    PoolConfig,
    StorageConfig,
)
from planner.strict import Strict

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
    source_access: Literal["identity", "anonymous"] = "identity"
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
    def max_sequences(self) -> int:
        """Sequences of one replica that run or wait: the engine refuses what comes on top."""
        return self.max_batch_size + self.serving.max_queue_size

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
    api_keys: bool = False
    key_limits: dict[str, KeyLimits] = Field(default={})


class StackConfig(SiteConfig):
    """A whole stack: where to run, on what, and which models."""

    pools: Annotated[tuple[PoolConfig, ...], Field(strict=False)] = ()
    models: Annotated[tuple[ModelConfig, ...], Field(strict=False, min_length=1)]
