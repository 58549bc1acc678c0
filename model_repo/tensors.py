"""Names, types and shapes of every tensor, as in TensorRT-LLM 1.2.1 `triton_backend/all_models`.

Shapes leave out the batch dimension. The client's tensors are one fixed set, so that `ensemble` and `tensorrt_llm_bls`
look the same on every backend. `tensorrt_llm` has upstream's whole set on the tensorrt backend; on the cpu backend only
what the client's tensors need, because Triton refuses a tensor that is not declared and would pass on one that the
engine then ignores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

BOOL, INT32, INT64, UINT8, UINT64 = "TYPE_BOOL", "TYPE_INT32", "TYPE_INT64", "TYPE_UINT8", "TYPE_UINT64"
BF16, FP16, FP32, STRING = "TYPE_BF16", "TYPE_FP16", "TYPE_FP32", "TYPE_STRING"
SCALAR = (1,)


@dataclass(frozen=True)
class Tensor:
    """One input or output. `flat`: upstream's scalar, given as [batch, 1] and seen by the model as [batch]."""

    name: str
    dtype: str
    dims: Sequence[int] = SCALAR
    optional: bool = True
    flat: bool = False
    ragged: bool = False


def _flat(dtype: str, *names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, dtype, flat=True) for name in names)


def _ragged(dtype: str, dims: Sequence[int], *names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, dtype, dims, ragged=True) for name in names)


def _outputs(dtype: str, dims: Sequence[int], *names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, dtype, dims, optional=False) for name in names)


# What a client sees: (client tensor, tensor of preprocessing or None, tensor of tensorrt_llm or None).
CLIENT_INPUTS: tuple[tuple[Tensor, str | None, str | None], ...] = (
    (Tensor("text_input", STRING, optional=False), "QUERY", None),
    (Tensor("max_tokens", INT32, optional=False), "REQUEST_OUTPUT_LEN", None),
    (Tensor("bad_words", STRING, (-1,)), "BAD_WORDS_DICT", None),
    (Tensor("stop_words", STRING, (-1,)), "STOP_WORDS_DICT", None),
    (Tensor("exclude_input_in_output", BOOL), None, "exclude_input_in_output"),
    (Tensor("end_id", INT32), "END_ID", None),
    (Tensor("pad_id", INT32), "PAD_ID", None),
    (Tensor("top_k", INT32), None, "runtime_top_k"),
    (Tensor("top_p", FP32), None, "runtime_top_p"),
    (Tensor("temperature", FP32), None, "temperature"),
    (Tensor("length_penalty", FP32), None, "len_penalty"),
    (Tensor("repetition_penalty", FP32), None, "repetition_penalty"),
    (Tensor("min_tokens", INT32), None, "min_tokens"),
    (Tensor("presence_penalty", FP32), None, "presence_penalty"),
    (Tensor("frequency_penalty", FP32), None, "frequency_penalty"),
    (Tensor("seed", UINT64), None, "seed"),
    (Tensor("return_log_probs", BOOL), None, "return_log_probs"),
    (Tensor("return_num_input_tokens", BOOL), None, "return_num_input_tokens"),
    (Tensor("return_num_output_tokens", BOOL), None, "return_num_output_tokens"),
    (Tensor("beam_width", INT32), None, "beam_width"),
    (Tensor("stream", BOOL), None, "streaming"),
)

TEXT_OUTPUT = Tensor("text_output", STRING, (-1,), optional=False)
PASSED_OUTPUTS = (
    *_outputs(FP32, (-1,), "cum_log_probs"),
    *_outputs(FP32, (-1, -1), "output_log_probs"),
    *_outputs(INT32, SCALAR, "num_input_tokens", "num_output_tokens"),
)
CLIENT_OUTPUTS = (TEXT_OUTPUT, *PASSED_OUTPUTS)

PREPROCESSING_INPUTS = tuple(
    Tensor(name, client.dtype, client.dims, client.optional) for client, name, _ in CLIENT_INPUTS if name
)
# (output of preprocessing, its type and shape, the input of tensorrt_llm that takes it)
PREPROCESSED: tuple[tuple[Tensor, str], ...] = (
    (Tensor("INPUT_ID", INT32, (-1,), optional=False), "input_ids"),
    (Tensor("REQUEST_INPUT_LEN", INT32, optional=False), "input_lengths"),
    (Tensor("REQUEST_OUTPUT_LEN", INT32, (-1,), optional=False), "request_output_len"),
    (Tensor("STOP_WORDS_IDS", INT32, (2, -1), optional=False), "stop_words_list"),
    (Tensor("BAD_WORDS_IDS", INT32, (2, -1), optional=False), "bad_words_list"),
    (Tensor("OUT_END_ID", INT32, optional=False), "end_id"),
    (Tensor("OUT_PAD_ID", INT32, optional=False), "pad_id"),
)
POSTPROCESSING_INPUTS = (
    Tensor("TOKENS_BATCH", INT32, (-1, -1), optional=False),
    Tensor("SEQUENCE_LENGTH", INT32, (-1,), optional=False),
)
POSTPROCESSING_OUTPUTS = _outputs(STRING, (-1,), "OUTPUT")

ENGINE_INPUTS = (
    Tensor("input_ids", INT32, (-1,), ragged=True),
    Tensor("input_lengths", INT32, optional=False, flat=True),
    Tensor("request_output_len", INT32, optional=False, flat=True),
    *_flat(INT32, "end_id", "pad_id", "beam_width", "runtime_top_k", "min_tokens"),
    *_ragged(INT32, (2, -1), "stop_words_list", "bad_words_list"),
    *_flat(FP32, "temperature", "runtime_top_p", "len_penalty", "repetition_penalty"),
    *_flat(FP32, "presence_penalty", "frequency_penalty"),
    *_flat(UINT64, "seed"),
    *_flat(BOOL, "return_log_probs", "return_num_input_tokens", "return_num_output_tokens"),
    *_flat(BOOL, "exclude_input_in_output", "stop", "streaming"),
)
ENGINE_OUTPUTS = (
    *_outputs(INT32, (-1, -1), "output_ids"),
    *_outputs(INT32, (-1,), "sequence_length"),
    *PASSED_OUTPUTS,
)


def tensorrt_inputs(embedding: str) -> tuple[Tensor, ...]:
    """What the tensorrtllm backend takes besides ENGINE_INPUTS; `embedding` is the engine's own activation type."""
    return (
        *_ragged(embedding, (-1, -1), "encoder_input_features", "prompt_embedding_table"),
        *_flat(INT32, "encoder_output_lengths", "num_return_sequences", "decoder_input_lengths", "prompt_vocab_size"),
        *_flat(INT32, "runtime_top_p_reset_ids"),
        *_ragged(INT32, (-1,), "draft_input_ids", "decoder_input_ids"),
        *_ragged(FP32, (-1, -1), "draft_logits"),
        *_ragged(FP32, (-1,), "embedding_bias"),
        *_flat(FP32, "draft_acceptance_threshold", "runtime_top_p_min", "runtime_top_p_decay"),
        *_flat(FP32, "beam_search_diversity_rate"),
        *_flat(BOOL, "early_stopping", "return_context_logits", "return_generation_logits", "return_perf_metrics"),
        *_ragged(UINT64, (-1,), "prompt_table_extra_ids"),
        *_ragged(BOOL, (-1, -1), "cross_attention_mask"),
        Tensor("mrope_rotary_cos_sin", FP32, (-1,)),
        Tensor("mrope_position_deltas", INT64),
        *_flat(UINT64, "lora_task_id"),
        *_ragged(FP16, (-1, -1), "lora_weights"),
        *_ragged(INT32, (-1, 3), "lora_config"),
        *_ragged(UINT8, (-1,), "context_phase_params"),
        *_ragged(BOOL, SCALAR, "skip_cross_attn_blocks"),
        *_ragged(INT32, (-1,), "retention_token_range_starts", "retention_token_range_ends"),
        *_ragged(INT32, (-1,), "retention_token_range_priorities", "retention_token_range_durations_ms"),
        *_ragged(INT32, SCALAR, "retention_decode_priority", "retention_decode_duration_ms"),
        *_ragged(STRING, SCALAR, "guided_decoding_guide_type", "guided_decoding_guide"),
        *_ragged(INT32, SCALAR, "lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size"),
    )


TENSORRT_OUTPUTS = (
    *_outputs(FP32, (-1, -1), "context_logits"),
    *_outputs(FP32, (-1, -1, -1), "generation_logits"),
    *_outputs(INT32, SCALAR, "batch_index", "sequence_index"),
    *_outputs(UINT8, (-1,), "context_phase_params"),
    *_outputs(INT32, SCALAR, "kv_cache_alloc_new_blocks", "kv_cache_reused_blocks", "kv_cache_alloc_total_blocks"),
    *_outputs(INT64, SCALAR, "arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns"),
    *_outputs(FP32, SCALAR, "acceptance_rate"),
    *_outputs(INT32, SCALAR, "total_accepted_draft_tokens", "total_draft_tokens"),
)

# all_models/llmapi: text in, text out, no batch dimension.
LLM_API_INPUTS = (
    Tensor("text_input", STRING, (-1,), optional=False),
    *(Tensor(name, BOOL) for name in ("streaming", "stop")),
    *(Tensor(f"sampling_param_{name}", INT32) for name in ("best_of", "top_k", "max_tokens")),
    *(Tensor(f"sampling_param_{name}", FP32) for name in ("temperature", "top_p")),
    *(Tensor(f"sampling_param_{name}", FP32) for name in ("frequency_penalty", "presence_penalty")),
    Tensor("sampling_param_stop", STRING, (-1,)),
    Tensor("sampling_param_seed", UINT64),
    *(Tensor(f"sampling_param_{name}", BOOL) for name in ("exclude_input_from_output", "return_perf_metrics")),
    *(Tensor(name, BOOL) for name in ("return_finish_reason", "return_stop_reason", "return_cumulative_logprob")),
)
LLM_API_OUTPUTS = (
    *_outputs(STRING, (-1,), "text_output", "finish_reason", "stop_reason"),
    *_outputs(FP32, (-1,), "cumulative_logprob", "kv_cache_hit_rate"),
    *_outputs(INT32, (-1,), "kv_cache_reused_block", "kv_cache_missed_block"),
    *_outputs(INT32, (-1,), "kv_cache_alloc_new_blocks", "kv_cache_alloc_total_blocks"),
    *_outputs(INT64, SCALAR, "arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns"),
    *_outputs(FP32, SCALAR, "acceptance_rate"),
    *_outputs(INT32, SCALAR, "total_accepted_draft_tokens", "total_draft_tokens"),
)
