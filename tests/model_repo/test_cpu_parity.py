"""The sharded forward pass gives the same answers however it is sharded, and those of another implementation.

Run with -s to see the measured logit differences.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.cpu_world import Decoded, decode

# Measured: logits, which reach about 30, differ by up to 5.6e-5 between two shardings and by up to 1.7e-4 from mlx-lm.
# A greedy choice may flip only where the two best logits are closer than this.
LOGIT_DIFFERENCE = 1e-3
STEPS, KEEP = 64, 4
SHARDINGS = [(3, 1), (1, 2), (1, 3), (3, 2)]
QUESTIONS = [
    "What is Kubernetes, in two sentences?",
    "Write a haiku about the sea.",
    "Name three primary colours.",
    "Explain why the sky is blue.",
    "What is 17 plus 25?",
    "Give me a recipe for pancakes.",
    "Translate 'good morning' into French.",
    "Who wrote Romeo and Juliet?",
    "List the planets of the solar system.",
    "What does a compiler do?",
    "Describe a cat to someone who has never seen one.",
    "Why do leaves fall in autumn?",
    "How does a bicycle stay upright?",
    "What is the capital of Japan?",
    "Write a short poem about winter.",
    "What is a prime number?",
    "Tell me a story that begins with 'Once upon a time'.",
    "How do I boil an egg?",
    "Summarise the water cycle.",
    "What is machine learning?",
]


def prompts(engine: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(engine / "tokenizer" / "tokenizer.json"))
    texts = [f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS]
    return [tokenizer.encode(text).ids for text in texts]


@pytest.fixture(scope="module")
def unsharded(cpu_engine_dir: Callable[[int, int], Path]) -> Decoded:
    engine = cpu_engine_dir(1, 1)
    return decode(engine, prompts(engine), STEPS, keep=KEEP)


@pytest.mark.parametrize(("tp", "pp"), SHARDINGS)
def test_greedy_tokens_do_not_depend_on_the_sharding(
    tp: int, pp: int, unsharded: Decoded, cpu_engine_dir: Callable[[int, int], Path]
) -> None:
    engine = cpu_engine_dir(tp, pp)
    sharded = decode(engine, prompts(engine), STEPS)

    assert len(unsharded.tokens) == len(QUESTIONS)
    flips: list[float] = []
    for want, got, gap in zip(unsharded.tokens, sharded.tokens, unsharded.gap, strict=True):
        if (differ := np.flatnonzero(want != got)).size:
            flips.append(float(gap[differ[0]]))
    print(f"\nTP{tp} x PP{pp}: {len(QUESTIONS) - len(flips)} of {len(QUESTIONS)} x {STEPS} tokens identical; {flips=}")
    assert all(gap < LOGIT_DIFFERENCE for gap in flips)


def test_logits_of_the_shardings_differ_only_by_rounding(
    unsharded: Decoded, cpu_engine_dir: Callable[[int, int], Path]
) -> None:
    engine = cpu_engine_dir(3, 2)
    sharded = decode(engine, prompts(engine), 16, keep=KEEP, forced=unsharded.tokens.tolist())

    difference = float(np.abs(sharded.logits - unsharded.logits[:, : sharded.logits.shape[1]]).max())
    print(f"\nlargest logit difference of TP3 x PP2 from one rank: {difference:.2e}")
    assert difference < LOGIT_DIFFERENCE


def test_agrees_with_an_independent_implementation(
    unsharded: Decoded, cpu_engine_dir: Callable[[int, int], Path], smollm2_gguf: Path
) -> None:
    """mlx-lm's Llama on the same weights, dequantised by the gguf package, rotary pairs left as GGUF stores them."""
    if importlib.util.find_spec("mlx_lm") is None:
        pytest.skip("mlx-lm is not installed (requirements/test.txt), so there is nothing to compare with")
    import mlx.core as mx

    reference, asked = _mlx_model(smollm2_gguf), prompts(cpu_engine_dir(1, 1))
    largest = 0.0
    for index, (prompt, tokens) in enumerate(zip(asked, unsharded.tokens.tolist(), strict=True)):
        steps = STEPS if index < KEEP else 8
        fed = mx.array([prompt + tokens[: steps - 1]])
        logits = np.array(reference(fed)[0, len(prompt) - 1 :])
        if index < KEEP:
            largest = max(largest, float(np.abs(logits - unsharded.logits[index]).max()))
        chosen, close = logits.argmax(axis=-1), unsharded.gap[index, :steps] < LOGIT_DIFFERENCE
        assert ((chosen == tokens[:steps]) | close).all(), QUESTIONS[index]
    print(f"\nlargest logit difference from mlx-lm over {KEEP} x {STEPS} tokens: {largest:.2e}")
    assert largest < LOGIT_DIFFERENCE


def _mlx_model(path: Path) -> Any:
    import gguf
    import mlx.core as mx
    from gguf.quants import dequantize  # pyright: ignore[reportUnknownVariableType] - untyped arrays
    from mlx_lm.models.llama import Model, ModelArgs

    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=576,
            num_hidden_layers=30,
            intermediate_size=1536,
            num_attention_heads=9,
            num_key_value_heads=3,
            rms_norm_eps=1e-5,
            vocab_size=49152,
            rope_theta=100000.0,
            rope_traditional=True,
            tie_word_embeddings=True,
            max_position_embeddings=8192,
        )
    )
    names = {
        "token_embd": "embed_tokens",
        "output_norm": "norm",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    weights: list[tuple[str, Any]] = []
    for tensor in gguf.GGUFReader(path).tensors:
        *layer, part, _ = tensor.name.split(".")
        prefix = f"layers.{layer[1]}." if layer else ""
        values = mx.array(dequantize(tensor.data, tensor.tensor_type))
        weights.append((f"model.{prefix}{names[part]}.weight", values))
    model.load_weights(weights, strict=True)
    return model
