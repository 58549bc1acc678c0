"""What the keys of one model contradict together, each of them sound by itself."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from planner.config_problems import CONSEQUENCE, CONSEQUENCE_OF_OTHERS, Finding
from planner.errors import Problem, did_you_mean, shown
from planner.gpus import OLDEST_SUPPORTED, gpus
from planner.object_sources import STORES, shape_problems

if TYPE_CHECKING:
    from planner.config import ModelConfig

# Lowest compute capability with hardware for the format (NVIDIA: FP8 from Ada, FP4 from Blackwell).
_NEEDS_CAPABILITY = {"fp8": (8, 9), "w4a8_awq": (8, 9), "nvfp4": (10, 0)}

# The PyTorch backend has no kernels for TensorRT's INT8 and plain weight-only formats.
_PYTORCH_WEIGHTS = ("none", "fp8", "int4_awq", "w4a8_awq", "nvfp4")

_SCHEMES = ("hf", "bucket", "pypi", "file")
_MOVING_REVISIONS = ("main", "master", "head", "latest")


def cross_field_problems(model: "ModelConfig", key: str) -> list[Problem]:
    """What fields that are sound one by one contradict together. Needs no facts about the model's weights."""
    found = [*_source(model), *(_cpu(model) if model.backend == "cpu" else _gpu(model))]
    return [Problem(key=f"{key}.{field}", what=what, consequence=cost, fix=fix) for field, what, cost, fix in found]


def _source(model: "ModelConfig") -> Iterator[Finding]:
    yield from shape_problems(model)
    scheme, separator, rest = model.source.partition("://")
    if not separator:
        return
    if scheme not in (*_SCHEMES, *STORES):
        shapes = ", ".join(["hf://ORG/NAME", *(store.shape for store in STORES.values())])
        known = f"use {shapes}, bucket://PREFIX, pypi://DIST/FILE, or a path"
        fix = did_you_mean(scheme, (*_SCHEMES, *STORES), known)
        yield "source", f"unknown scheme {shown(scheme)}", CONSEQUENCE["source"], fix
        return
    if scheme == "file":
        if not rest.startswith("/"):
            yield (
                "source",
                "file:// needs an absolute path",
                CONSEQUENCE["source"],
                "write file:///abs/path, or a relative path alone",
            )
        return
    owner, slash, name = rest.partition("/")
    if scheme == "bucket":
        if not re.fullmatch(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*/?", rest) or ".." in rest.split("/"):
            yield (
                "source",
                f"{shown(model.source)} is not bucket://PREFIX",
                CONSEQUENCE["source"],
                "write bucket://PREFIX",
            )
    elif (scheme not in STORES and not (owner and slash and name)) or (scheme == "hf" and "/" in name):
        shape = "hf://ORG/NAME" if scheme == "hf" else "pypi://DIST/FILE"
        yield "source", f"{shown(model.source)} is not {shape}", CONSEQUENCE["source"], f"write {shape}"
    if model.revision is None:
        revisions = {"hf": "a commit hash", "pypi": "the version of the distribution"}
        revisions |= dict.fromkeys(STORES, "sha256: and the sha256 of SHA256SUMS, etags:…, or a name of yours for it")
        what = revisions.get(scheme, "a name for this version of the weights, changed whenever they change")
        yield "revision", "is missing", CONSEQUENCE["revision"], f"give {what}"
    elif model.revision.lower() in _MOVING_REVISIONS:
        fix = "give the commit hash that it points to today"
        if scheme not in ("hf", "pypi"):
            fix = "give a name that only these weights have" + (", or sha256:… or etags:…" if scheme in STORES else "")
        yield "revision", f"{model.revision} moves", CONSEQUENCE["revision"], fix


def _cpu(model: "ModelConfig") -> Iterator[Finding]:
    given = model.model_fields_set
    for field in ("gpu", "gpus_per_node", "mig_profile", "build", "max_num_tokens"):
        if field in given and getattr(model, field) is not None:
            cost = "it would have no effect: the CPU backend uses no GPU and no trtllm-build"
            yield field, "is for GPU backends", cost, "remove it, or choose backend: tensorrt"
    if model.dtype != "float32":
        yield "dtype", f"the CPU engine computes in float32, not {model.dtype}", CONSEQUENCE_OF_OTHERS, "remove dtype"
    for field in ("weights", "kv_cache"):
        if getattr(model.quantization, field) != "none":
            fix = "remove it, or choose a GPU backend"
            yield f"quantization.{field}", "the CPU engine keeps float32", "memory would not shrink as planned", fix
    if "kv_cache_free_gpu_mem_fraction" in model.serving.model_fields_set:
        fix = "give serving.kv_cache_tokens"
        yield "serving.kv_cache_free_gpu_mem_fraction", "is for GPU backends", "it would have no effect", fix
    tokens = model.serving.kv_cache_tokens
    if tokens is not None and "max_seq_len" in given and tokens < model.max_seq_len:
        cost = f"a request of max_seq_len {model.max_seq_len} tokens would never fit the KV cache"
        yield (
            "serving.kv_cache_tokens",
            f"{tokens} tokens",
            cost,
            f"give at least {model.max_seq_len}, or lower max_seq_len",
        )


def _gpu(model: "ModelConfig") -> Iterator[Finding]:
    if model.serving.kv_cache_tokens is not None:
        fix = "give serving.kv_cache_free_gpu_mem_fraction"
        yield "serving.kv_cache_tokens", "is for backend: cpu", "it would have no effect", fix
    if model.dtype == "float32":
        cost = "twice the memory and no tensor cores"
        yield "dtype", "float32 is for backend: cpu", cost, "choose bfloat16 or float16"
    if model.backend == "pytorch":
        yield from _pytorch(model)
    elif not model.build.use_paged_context_fmha and (
        model.serving.enable_chunked_context or model.serving.enable_kv_cache_reuse
    ):
        what = "chunked context and KV cache reuse need it"
        fix = "leave it on, or turn serving.enable_chunked_context and serving.enable_kv_cache_reuse off"
        yield "build.use_paged_context_fmha", what, "the engine would refuse to load with them", fix
    if model.gpu is None:
        known = ", ".join(name for name, gpu in gpus().items() if gpu.capability >= OLDEST_SUPPORTED)
        yield "gpu", "is missing", CONSEQUENCE["gpu"], f"give one of {known}"
        return
    gpu = gpus().get(model.gpu)
    if gpu is None:
        begun = [name for name in gpus() if name.lower().startswith(f"{model.gpu.lower()}-")]
        listed = f"give one of {', '.join(begun or gpus())}"
        fix = listed if begun else did_you_mean(model.gpu, gpus(), listed)
        yield "gpu", f"{shown(model.gpu)} is not a known GPU", CONSEQUENCE["gpu"], fix
        return
    if gpu.capability < OLDEST_SUPPORTED:
        cost = "TensorRT-LLM is neither built nor tested for it; the engine would not load"
        yield (
            "gpu",
            f"{gpu.name} has compute capability {gpu.compute_capability}, below 8.0",
            cost,
            "choose an Ampere GPU or newer",
        )
    for field in ("weights", "kv_cache"):
        fmt = getattr(model.quantization, field)
        needed = _NEEDS_CAPABILITY.get(fmt, (0, 0))
        if gpu.capability < needed:
            cost = (
                f"{gpu.name} (compute capability {gpu.compute_capability}) has no hardware for it; the build would fail"
            )
            fix = f"choose a GPU of compute capability {needed[0]}.{needed[1]} or above, or another format"
            yield f"quantization.{field}", f"{fmt} needs compute capability {needed[0]}.{needed[1]}", cost, fix
    if model.mig_profile is not None:
        yield from _mig(gpu.name, gpu.mig_gib, model.mig_profile)


def _pytorch(model: "ModelConfig") -> Iterator[Finding]:
    if "build" in model.model_fields_set:
        cost = "it would have no effect: the PyTorch backend has no trtllm-build step"
        yield "build", "is for backend: tensorrt", cost, "remove it"
    if model.quantization.weights not in _PYTORCH_WEIGHTS:
        cost = "the PyTorch backend has no kernels for it; the model would not load"
        fix = f"choose one of {', '.join(_PYTORCH_WEIGHTS)}, or backend: tensorrt"
        yield "quantization.weights", f"{model.quantization.weights} is for backend: tensorrt", cost, fix
    if model.quantization.kv_cache == "int8":
        cost = "the PyTorch backend has no kernels for it; the model would not load"
        yield "quantization.kv_cache", "int8 is for backend: tensorrt", cost, "choose fp8 or none"


def _mig(gpu: str, profiles: Mapping[str, float | None], profile: str) -> Iterator[Finding]:
    if not profiles:
        yield (
            "mig_profile",
            f"{gpu} has no known MIG profile",
            "the GPU cannot be divided as asked",
            "remove mig_profile",
        )
    elif profile not in profiles:
        fix = did_you_mean(profile, profiles, f"give one of {', '.join(profiles)}")
        yield "mig_profile", f"{shown(profile)} is not a profile of {gpu}", "the GPU cannot be divided as asked", fix
    elif profiles[profile] is None:
        known = [name for name, gib in profiles.items() if gib is not None]
        cost = "whether the model fits cannot be said before it is deployed"
        yield (
            "mig_profile",
            f"the usable memory of {gpu} {profile} is not known",
            cost,
            f"give one of {', '.join(known)}",
        )
