"""One config.pbtxt message per Triton model; messages, not templates, so that no placeholder can be left in one."""

from collections.abc import Iterable
from typing import Any

from tritonclient.grpc import model_config_pb2

from model_repo import tensors
from model_repo.tensors import Tensor
from planner.plan import ModelPlan

# protobuf makes its classes at import, where no type checker sees them.
pb: Any = model_config_pb2
Message = Any

CANCELLATION_CHECK_PERIOD_MS = 100
MAX_BLS_INSTANCES = 64
"""Each is a process with the tokenizer in it: tens of MB for a vocabulary of 50,000, over 100 MB for 128,000."""


def preprocessing(model: ModelPlan, engine_dir: str) -> Message:
    """Text to token ids."""
    config = _python("preprocessing", model, tensors.PREPROCESSING_INPUTS, (out for out, _ in tensors.PREPROCESSED))
    _queue(config, model)
    _parameters(
        config,
        tokenizer_dir=f"{engine_dir}/tokenizer",
        gpt_model_path=engine_dir,
        add_special_tokens=True,
        max_seq_len=model.config.max_seq_len,
    )
    return config


def postprocessing(model: ModelPlan, engine_dir: str) -> Message:
    """Token ids to text. One instance: with two, the ensemble sends streamed tokens out of order."""
    config = _python("postprocessing", model, tensors.POSTPROCESSING_INPUTS, tensors.POSTPROCESSING_OUTPUTS)
    config.dynamic_batching.SetInParent()
    _parameters(config, tokenizer_dir=f"{engine_dir}/tokenizer", gpt_model_path=engine_dir, skip_special_tokens=True)
    return config


def tensorrt_llm(model: ModelPlan, engine_dir: str) -> Message:
    """The engine: token ids to token ids; on the pytorch backend the image's LLM API model, text to text."""
    if model.config.backend == "pytorch":
        return _llm_api(model)
    return _cpu_engine(model, engine_dir) if model.config.backend == "cpu" else _tensorrt_engine(model, engine_dir)


def tensorrt_llm_bls(model: ModelPlan, engine_dir: str) -> Message:
    """Text to text, streamed without split characters. As many requests at once as instances; the others wait here."""
    config = _python(
        "tensorrt_llm_bls", model, (client for client, _, _ in tensors.CLIENT_INPUTS), tensors.CLIENT_OUTPUTS
    )
    config.model_transaction_policy.decoupled = True
    config.instance_group[0].count = min(model.config.max_batch_size, MAX_BLS_INSTANCES)
    # One request to an instance: it would serve a batch one after the other.
    config.max_batch_size = 1
    config.dynamic_batching.default_queue_policy.max_queue_size = model.config.serving.max_queue_size
    _parameters(
        config,
        tensorrt_llm_model_name="tensorrt_llm",
        tensorrt_llm_backend=model.config.backend,
        tokenizer_dir=f"{engine_dir}/tokenizer",
        gpt_model_path=engine_dir,
    )
    return config


def ensemble(model: ModelPlan) -> Message:
    """The client's tensors over preprocessing, tensorrt_llm and postprocessing; on pytorch over tensorrt_llm_bls."""
    steps_on_bls = model.config.backend == "pytorch"
    batch = 1 if steps_on_bls else model.config.max_batch_size
    config = pb.ModelConfig(name="ensemble", platform="ensemble", max_batch_size=batch)
    clients = [client for client, _, _ in tensors.CLIENT_INPUTS]
    _declare(config, clients, tensors.CLIENT_OUTPUTS)
    if steps_on_bls:
        _step(config, "tensorrt_llm_bls", _same(clients), _same(tensors.CLIENT_OUTPUTS))
        return config
    preprocessed = {output.name: f"_{output.name}" for output, _ in tensors.PREPROCESSED}
    to_engine = {name: client.name for client, _, name in tensors.CLIENT_INPUTS if name}
    to_engine |= {name: preprocessed[output.name] for output, name in tensors.PREPROCESSED}
    tokens = {"output_ids": "_TOKENS_BATCH", "sequence_length": "_SEQUENCE_LENGTH"}
    to_text = {"TOKENS_BATCH": "_TOKENS_BATCH", "SEQUENCE_LENGTH": "_SEQUENCE_LENGTH"}
    to_preprocessing = {name: client.name for client, name, _ in tensors.CLIENT_INPUTS if name}
    _step(config, "preprocessing", to_preprocessing, preprocessed)
    _step(config, "tensorrt_llm", to_engine, tokens | _same(tensors.PASSED_OUTPUTS))
    _step(config, "postprocessing", to_text, {"OUTPUT": tensors.TEXT_OUTPUT.name})
    return config


def _same(those: Iterable[Tensor]) -> dict[str, str]:
    return {tensor.name: tensor.name for tensor in those}


def _cpu_engine(model: ModelPlan, engine_dir: str) -> Message:
    config = _python("tensorrt_llm", model, tensors.ENGINE_INPUTS, tensors.ENGINE_OUTPUTS)
    config.model_transaction_policy.decoupled = True
    _queue(config, model)
    serving = model.config.serving
    _parameters(
        config,
        gpt_model_type="inflight_fused_batching",
        gpt_model_path=engine_dir,
        tokenizer_dir=f"{engine_dir}/tokenizer",
        batch_scheduler_policy=serving.batch_scheduler_policy,
        exclude_input_in_output=True,
        max_batch_size=model.config.max_batch_size,
        max_queue_size=serving.max_queue_size,
        max_seq_len=model.config.max_seq_len,
        cpu_kv_cache_tokens=serving.kv_cache_tokens,
    )
    return config


def _tensorrt_engine(model: ModelPlan, engine_dir: str) -> Message:
    embedding = tensors.BF16 if model.config.dtype == "bfloat16" else tensors.FP16
    inputs = (*tensors.ENGINE_INPUTS, *tensors.tensorrt_inputs(embedding))
    config = _python("tensorrt_llm", model, inputs, (*tensors.ENGINE_OUTPUTS, *tensors.TENSORRT_OUTPUTS))
    config.backend = "tensorrtllm"
    config.model_transaction_policy.decoupled = True
    _queue(config, model)
    serving = model.config.serving
    _parameters(
        config,
        gpt_model_type="inflight_fused_batching",
        gpt_model_path=engine_dir,
        tokenizer_dir=f"{engine_dir}/tokenizer",
        max_beam_width=model.config.build.max_beam_width,
        batch_scheduler_policy=serving.batch_scheduler_policy,
        kv_cache_free_gpu_mem_fraction=serving.kv_cache_free_gpu_mem_fraction,
        enable_kv_cache_reuse=serving.enable_kv_cache_reuse,
        enable_chunked_context=serving.enable_chunked_context,
        exclude_input_in_output=True,
        cancellation_check_period_ms=CANCELLATION_CHECK_PERIOD_MS,
        executor_worker_path="/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
        FORCE_CPU_ONLY_INPUT_TENSORS="no",
    )
    return config


def _llm_api(model: ModelPlan) -> Message:
    config = _python("tensorrt_llm", model, tensors.LLM_API_INPUTS, tensors.LLM_API_OUTPUTS)
    config.max_batch_size = 0
    config.model_transaction_policy.decoupled = True
    return config


def _python(name: str, model: ModelPlan, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> Message:
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=model.config.max_batch_size)
    _declare(config, inputs, outputs)
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    return config


def _declare(config: Message, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> None:
    for tensor in inputs:
        declared = config.input.add(
            name=tensor.name,
            data_type=tensor.dtype,
            dims=tensor.dims,
            optional=tensor.optional,
            allow_ragged_batch=tensor.ragged,
        )
        if tensor.flat:
            declared.reshape.SetInParent()
    for tensor in outputs:
        config.output.add(name=tensor.name, data_type=tensor.dtype, dims=tensor.dims)


def _queue(config: Message, model: ModelPlan) -> None:
    serving = model.config.serving
    config.dynamic_batching.preferred_batch_size.append(model.config.max_batch_size)
    config.dynamic_batching.max_queue_delay_microseconds = serving.max_queue_delay_microseconds
    config.dynamic_batching.default_queue_policy.max_queue_size = serving.max_queue_size


def _parameters(config: Message, **values: object) -> None:
    for name, value in values.items():
        config.parameters[name].string_value = str(value).lower() if isinstance(value, bool) else str(value)


def _step(config: Message, model: str, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    """`inputs` and `outputs`: the model's tensor name to the ensemble's."""
    step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
    for mapping, names in ((step.input_map, inputs), (step.output_map, outputs)):
        for name, ensemble_name in names.items():
            mapping[name] = ensemble_name
