"""Whatever a stack file holds: a plan, or a PlanError that names keys. FUZZ_EXAMPLES sets how many are tried."""

# pyright: basic
# Generated junk has no types to check.

import operator
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from sample_models import GPU, LOCAL
from sample_sites import SITES, site

from planner.cloud_config import (
    AwsConfig,
    AzureConfig,
    ClusterConfig,
    ExistingConfig,
    ExistingNodesConfig,
    GcpConfig,
    ImagesConfig,
    NetworkConfig,
    PoolConfig,
    StorageConfig,
)
from planner.config import BuildFlags, ModelConfig, QuantizationConfig, ServingConfig, StackConfig
from planner.errors import PlanError
from planner.gpus import gpus
from planner.instances import instances
from planner.plan import plan_file, plan_values
from planner.sources import known_by_source

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "1000"))

NAMES = [name for model in (ModelConfig, BuildFlags, QuantizationConfig, ServingConfig) for name in model.model_fields]
WORDS = st.sampled_from([*NAMES, "cpu", "tensorrt", "pytorch", "fp8", "nvfp4", "H100-80GB", "1g.10gb", "..", "/", "\0"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.integers()
    | st.sampled_from([2**63, 2**64, -(2**200), 10**400, 1_000_000_000])
    | st.floats()
    | WORDS
    | st.text(max_size=12)
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | WORDS, inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(NAMES) | st.text(max_size=10)
# Values that a person could mean, so that many stacks get past the types and to sharding and memory.
MEANT = {
    "source": st.sampled_from(sorted(known_by_source()))
    | st.sampled_from(
        ["missing.gguf", ".", "file:///", "hf://a/b", "s3://a-b/c", "gs://B", "az://a@b", "az://abc@abc/d"]
    ),
    "backend": st.sampled_from(["cpu", "tensorrt", "pytorch"]),
    "dtype": st.sampled_from(["float32", "float16", "bfloat16"]),
    "tensor_parallel": st.integers(0, 20) | st.just(4096),
    "pipeline_parallel": st.integers(0, 40) | st.just(4096),
    "quantization": st.fixed_dictionaries(
        {},
        optional={
            "weights": st.sampled_from(["none", "fp8", "int8_wo", "int4_awq", "int8_sq", "nvfp4"]),
            "kv_cache": st.sampled_from(["none", "fp8", "int8"]),
        },
    ),
    "gpu": st.sampled_from(sorted(gpus())),
    "gpus_per_node": st.integers(0, 16),
    "mig_profile": st.sampled_from(["1g.10gb", "7g.80gb", "3g.90gb", "1g.5gb"]),
    "max_batch_size": st.integers(0, 1 << 20),
    "max_seq_len": st.integers(0, 200_000) | st.just(1 << 30),
    "max_num_tokens": st.integers(0, 1 << 17) | st.just(1 << 30),
    "serving": st.fixed_dictionaries(
        {},
        optional={
            "kv_cache_tokens": st.integers(0, 1 << 41),
            "kv_cache_free_gpu_mem_fraction": st.floats(-0.1, 1.1),
            "enable_kv_cache_reuse": st.booleans(),
        },
    ),
    "build": st.fixed_dictionaries(
        {}, optional={"max_beam_width": st.integers(0, 70), "multiple_profiles": st.booleans()}
    ),
}
BASES = st.sampled_from([LOCAL, GPU])
MODELS = st.one_of(
    st.builds(operator.or_, BASES, st.fixed_dictionaries({}, optional=MEANT)),
    st.builds(
        operator.or_,
        BASES,
        st.sampled_from(sorted(MEANT)).flatmap(lambda key: st.fixed_dictionaries({key: MEANT[key]})),
    ),
    st.builds(operator.or_, BASES, st.dictionaries(KEYS, JUNK, max_size=3)),
    st.builds(
        lambda base, section, changed: base | {section: changed},
        BASES,
        st.sampled_from(["build", "serving", "quantization"]),
        st.dictionaries(KEYS, JUNK, max_size=3),
    ),
    st.builds(
        lambda base, lost: {k: v for k, v in base.items() if k != lost}, BASES, st.sampled_from(sorted({*LOCAL, *GPU}))
    ),
    JUNK,
)
STACKS = st.builds(
    lambda models, others: {"tritonfleet:cloud": "existing", "tritonfleet:models": models, **others},
    st.lists(MODELS, min_size=1, max_size=3),
    st.just({}) | st.dictionaries(st.sampled_from(["models", "tritonflet:models", "aws:region"]), JUNK, max_size=1),
)
ANYTHING = st.dictionaries(
    st.sampled_from(["tritonfleet:cloud", "tritonfleet:models", "models"]) | st.text(max_size=12), JUNK, max_size=4
)
DOCUMENTS = st.fixed_dictionaries({"config": ANYTHING}) | JUNK
YAML_TEXT = st.text(alphabet="ab:-[]{}&*!|>%@`'\"#,? \n\t0129.~<\\\x00\x85\u2028é", max_size=60)


def as_yaml(document: Any, scratch: Path) -> bytes | None:
    with scratch.open("wb") as file:
        try:
            YAML(typ="safe", pure=True).dump(document, file)
        except (ValueError, UnicodeEncodeError):
            return None  # lone surrogates cannot be written
    return scratch.read_bytes()


CONTENTS = st.one_of(
    st.fixed_dictionaries({"config": STACKS}),
    st.fixed_dictionaries({"config": STACKS}),
    DOCUMENTS,
    YAML_TEXT.map(str.encode),
    YAML_TEXT.map(lambda text: f"config:\n  tritonfleet:cloud: existing\n  tritonfleet:models: {text}".encode()),
    st.binary(max_size=60),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(content=CONTENTS)
def test_any_file_is_a_plan_or_a_plan_error_that_names_keys(content: Any, folder: Path) -> None:
    path = folder / "Pulumi.fuzz.yaml"
    written = content if isinstance(content, bytes) else as_yaml(content, folder / "scratch")
    if written is None:
        return
    path.write_bytes(written)
    refusal: PlanError | None = None
    try:
        plan = plan_file(path)
    except PlanError as error:
        refusal = error
    else:
        assert plan.models
    if refusal is not None:
        assert refusal.problems
        for problem in refusal.problems:
            assert problem.key.startswith(("config", "cloud", "models", str(path))) or known_stray(problem.key, content)
            assert problem.what
            assert problem.fix
            assert len(str(problem)) < 4000
            str(problem).encode("utf-8")


TYPES = [*instances("aws"), *instances("gcp"), *instances("azure")]
# By key, whichever section it stands in: values that a person could mean on one cloud or another.
MEANT_SITE = {
    "cloud": st.sampled_from(sorted(SITES)),
    "region": st.sampled_from(["us-east-1", "us-central1", "eastus", "us-east-9"]),
    "cidr": st.sampled_from(["10.0.0.0/16", "10.0.0.0/20", "10.0.0.0/28", "10.0.0.0/8", "8.8.0.0/16"]),
    "service_cidr": st.sampled_from(["172.20.0.0/16", "172.16.0.0/12", "10.40.0.0/24"]),
    "zones": st.lists(st.sampled_from(["use1-az1", "use1-az4", "us-central1-a", "eastus-1", "eastus-2"]), max_size=3),
    "existing": st.just({"id": "vpc-0123456789abcdef0", "private_subnets": {"use1-az1": "subnet-0000000a"}}),
    "kubernetes_version": st.sampled_from(["1.33", "1.34", "1.35", "1.99"]),
    "spot_notice_seconds": st.sampled_from([15, 30, 120]),
    "name": st.sampled_from(["gpu", "h100-spot", "a-much-too-long-name", "cpu"]),
    "instance_types": st.lists(st.sampled_from(TYPES), min_size=1, max_size=2),
    "capacity": st.lists(st.sampled_from(["reserved", "spot", "flex-start", "on-demand"]), min_size=1, max_size=3),
    "reservation": st.sampled_from(["cr-0123456789abcdef0", "h200"]),
    "mig_profile": st.sampled_from(["1g.10gb", "4g.40gb", "1g.20gb", "1g.24gb", "9g.9gb"]),
    "time_slicing": st.integers(2, 48),
    "max_nodes": st.integers(1, 1000),
    "shared": st.sampled_from(["nfs", "lustre"]),
    "nfs_capacity_gib": st.integers(1, 1_000_000),
    "lustre_capacity_gib": st.integers(1, 100_000_000),
    "lustre_throughput_mb_s_per_tib": st.sampled_from([40, 125, 250, 500, 1000, 7]),
    "allow_replacement": st.lists(st.sampled_from(["cluster", "storage", "pools.gpu", "pools.x"]), max_size=2),
    "gpu": st.sampled_from([*sorted(gpus()), "H900"]),
    "gpus_per_node": st.integers(1, 16),
    "source": st.sampled_from(sorted(known_by_source())),
    "tensor_parallel": st.sampled_from([1, 2, 4, 8, 16]),
    "pipeline_parallel": st.integers(1, 4),
    "backend": st.sampled_from(["cpu", "tensorrt", "pytorch"]),
}
SECTIONS = {
    "": StackConfig,
    "network": NetworkConfig,
    "cluster": ClusterConfig,
    "storage": StorageConfig,
    "images": ImagesConfig,
    "aws": AwsConfig,
    "gcp": GcpConfig,
    "azure": AzureConfig,
    "existing": ExistingConfig,
    "existing.nodes": ExistingNodesConfig,
    "pools": PoolConfig,
    "models": ModelConfig,
}


@st.composite
def edits(draw: st.DrawFn) -> tuple[str, str, Any]:
    """A section, a key of it, and what to write there."""
    section = draw(st.sampled_from(sorted(SECTIONS)))
    key = draw(st.sampled_from(sorted(SECTIONS[section].model_fields)))
    return section, key, draw(MEANT_SITE[key] | JUNK if key in MEANT_SITE else JUNK)


def entry_of(values: Any, section: str) -> Any:
    """The mapping of a section, or of its first entry; made where it is missing, None where something else stands."""
    for name in filter(None, section.split(".")):
        if not isinstance(values, dict):
            return None
        values = values.setdefault(name, [{}] if name in ("pools", "models", "nodes") else {})
        values = values[0] if isinstance(values, list) and values else values
    return values if isinstance(values, dict) else None


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cloud=st.sampled_from(sorted(SITES)), changes=st.lists(edits(), min_size=1, max_size=4))
def test_any_edit_of_a_site_is_a_plan_or_a_plan_error_that_names_keys(
    cloud: str, changes: list[tuple[str, str, Any]]
) -> None:
    values = site(cloud)
    for section, key, value in changes:
        entry = entry_of(values, section)
        if entry is not None:
            entry[key] = value
    try:
        assert plan_values(values, base_dir=Path()).infrastructure or values["cloud"] == "existing"
    except PlanError as refusal:
        for problem in refusal.problems:
            assert problem.key.partition(".")[0].partition("[")[0] in StackConfig.model_fields
            assert problem.what
            assert problem.consequence
            assert problem.fix
            str(problem).encode("utf-8")


def known_stray(key: str, content: Any) -> bool:
    """A key of ours that is none: `tritonfleet:foo` is reported as `foo`."""
    return isinstance(content, bytes) or f"tritonfleet:{key}" in str(content)
