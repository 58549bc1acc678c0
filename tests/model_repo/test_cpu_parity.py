"""The sharded forward pass gives the same answers however it is sharded, and those of another implementation.

Run with -s to see the measured logit differences.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

# The largest difference of a logit between two shardings was 2.3e-4 when measured (logits reach about 30); a greedy
# choice may flip only where the two best logits are closer than this.
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


@dataclass(frozen=True)
class Decoded:
    prompts: list[list[int]]
    tokens: "np.ndarray[Any, np.dtype[np.int32]]"
    gap: "np.ndarray[Any, np.dtype[np.float32]]"
    logits: "np.ndarray[Any, np.dtype[np.float32]]"


def decode(engine: Path, world: int, scratch: Path, forced: Any = None) -> Decoded:
    tokenizer = Tokenizer.from_file(str(engine / "tokenizer" / "tokenizer.json"))
    texts = [f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS]
    prompts = [tokenizer.encode(text).ids for text in texts]
    job, out = scratch / "job.json", scratch / "out.npz"
    steps = 16 if forced is not None else STEPS
    job.write_text(
        json.dumps(
            {
                "engine": str(engine),
                "prompts": prompts,
                "steps": steps,
                "keep": KEEP,
                "forced": forced,
                "out": str(out),
            }
        )
    )
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": str(root / "model_repo" / "tensorrt_llm" / "1"),
        "OPENBLAS_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // world)),
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    mpirun = [str(Path(sys.executable).parent / "mpirun"), "--allow-run-as-root", "--oversubscribe", "-n", str(world)]
    command = [*mpirun, sys.executable, str(root / "tests" / "cpu_world.py"), str(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = np.load(out)
    return Decoded(prompts, result["tokens"], result["gap"], result["logits"])


@pytest.fixture(scope="module")
def unsharded(cpu_engine_dir: Callable[[int, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Decoded:
    return decode(cpu_engine_dir(1, 1), 1, tmp_path_factory.mktemp("tp1"))


@pytest.mark.parametrize(("tp", "pp"), SHARDINGS)
def test_greedy_tokens_do_not_depend_on_the_sharding(
    tp: int, pp: int, unsharded: Decoded, cpu_engine_dir: Callable[[int, int], Path], tmp_path: Path
) -> None:
    sharded = decode(cpu_engine_dir(tp, pp), tp * pp, tmp_path)

    assert len(unsharded.tokens) == len(QUESTIONS)
    flips: list[float] = []
    for want, got, gap in zip(unsharded.tokens, sharded.tokens, unsharded.gap, strict=True):
        if (differ := np.flatnonzero(want != got)).size:
            flips.append(float(gap[differ[0]]))
    print(f"\nTP{tp} x PP{pp}: {len(QUESTIONS) - len(flips)} of {len(QUESTIONS)} x {STEPS} tokens identical; {flips=}")
    assert all(gap < LOGIT_DIFFERENCE for gap in flips)


def test_logits_of_the_shardings_differ_only_by_rounding(
    unsharded: Decoded, cpu_engine_dir: Callable[[int, int], Path], tmp_path: Path
) -> None:
    sharded = decode(cpu_engine_dir(3, 2), 6, tmp_path, forced=unsharded.tokens.tolist())

    difference = float(np.abs(sharded.logits - unsharded.logits[:, : sharded.logits.shape[1]]).max())
    print(f"\nlargest logit difference of TP3 x PP2 from one rank: {difference:.2e}")
    assert difference < LOGIT_DIFFERENCE


def test_agrees_with_an_independent_implementation(unsharded: Decoded, smollm2_gguf: Path) -> None:
    """mlx-lm's Llama on the same weights, dequantised by the gguf package, rotary pairs left as GGUF stores them."""
    if importlib.util.find_spec("mlx_lm") is None:
        pytest.skip("mlx-lm is not installed (requirements/test.txt), so there is nothing to compare with")
    import mlx.core as mx

    reference = _mlx_model(smollm2_gguf)
    largest = 0.0
    for index, (prompt, tokens) in enumerate(zip(unsharded.prompts, unsharded.tokens.tolist(), strict=True)):
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
