"""Runs inside .venv/aiconfigurator: times of iterations from NVIDIA's measured kernels. JSON on stdin, JSON on stdout.

In: a list of {"config": a Hugging Face config.json, "system", "tensor_parallel", "pipeline_parallel", "linear",
"experts", "kv_cache": aiconfigurator's words, "prompts": [tokens]}. Out: {"version", "answers": [...]}, each answer
either {"error": text} or times in milliseconds of the whole model on one rank.
"""

# pyright: basic, reportMissingImports=false
import json
import logging
import os
import sys
import tempfile
import warnings
from functools import cache
from importlib.metadata import version
from pathlib import Path

import yaml

TOKENS = (1, 4, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384, 32768)
SEQUENCES = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
CONTEXTS = (16, 256, 1024, 4096, 16384, 65536)
PROMPT_TOKENS = 8192
"""Prompts are timed several at once, as batching runs them, up to about so many tokens."""


def main() -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # The package prints; only the answer may reach stdout.
    answer_file = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # It reads its lists of files as YAML; in C that takes a sixth of the time.
    yaml.SafeLoader = yaml.CSafeLoader
    questions = json.load(sys.stdin)
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        for question in questions:
            try:
                answers.append(_times(question, Path(folder)))
            except Exception as error:
                # It raises its own and others' errors where it has no data; the caller falls back either way.
                answers.append({"error": f"{type(error).__name__}: {error}"[:300]})
    json.dump({"version": version("aiconfigurator"), "answers": answers}, answer_file)
    answer_file.close()


def _times(question: dict, folder: Path) -> dict:
    from aiconfigurator_core.sdk import common, config
    from aiconfigurator_core.sdk.backends.factory import get_backend
    from aiconfigurator_core.sdk.models import get_model
    from aiconfigurator_core.sdk.step_estimate import MixedStepInput

    database_version, database = _database(question["system"])
    backend = get_backend("trtllm")
    # A local folder, so that it never asks the Hub.
    text = json.dumps(question["config"], sort_keys=True)
    path = folder / f"{abs(hash(text)):x}"
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(text, encoding="utf-8")

    def model(attention: str):
        settings = config.ModelConfig(
            tp_size=question["tensor_parallel"],
            pp_size=question["pipeline_parallel"],
            gemm_quant_mode=common.GEMMQuantMode[question["linear"]],
            moe_quant_mode=common.MoEQuantMode[question["experts"]],
            kvcache_quant_mode=common.KVCacheQuantMode[question["kv_cache"]],
            fmha_quant_mode=common.FMHAQuantMode[attention],
            moe_tp_size=question["tensor_parallel"],
            moe_ep_size=1,
        )
        return get_model(str(path), settings, "trtllm")

    def prefill(built, prompt: int, count: int) -> dict[str, float]:
        runtime = config.RuntimeConfig(isl=prompt, osl=2, batch_size=count)
        step = MixedStepInput(context_tokens=prompt * count, num_decode_requests=0)
        return backend.run_mixed(built, database, runtime, step).per_op_latency_ms

    def decode(built, sequences: int, context: int) -> dict[str, float]:
        runtime = config.RuntimeConfig(isl=context, osl=2, batch_size=sequences)
        return backend._get_genonly_step_latency(built, database, runtime, sequences, context, 2)[2]

    built = model(question["kv_cache"])
    if question["kv_cache"] == "fp8":
        try:
            prefill(built, 128, 1)
        except Exception:
            # Not every GPU's data has FP8 attention over prompts.
            built = model("bfloat16")

    steps = [prefill(built, tokens, 1) for tokens in TOKENS]
    decodes = [[decode(built, sequences, context) for context in CONTEXTS] for sequences in SEQUENCES]
    prompts = {}
    for prompt in question["prompts"]:
        count = max(1, PROMPT_TOKENS // prompt)
        prompts[prompt] = _sum(prefill(built, prompt, count), _attention) / count
    return {
        "database": database_version,
        "tokens": TOKENS,
        "linear": [_sum(step, _linear) for step in steps],
        "messages": [_sum(step, _message) for step in steps],
        "sequences": SEQUENCES,
        "head": [_sum(row[0], _head) for row in decodes],
        "contexts": CONTEXTS,
        "attention": [[_sum(step, _attention) for step in row] for row in decodes],
        "prompts": prompts,
    }


@cache
def _database(system: str):
    """The newest measurements of a system; only finding them reads files for as long as a whole answer takes."""
    from aiconfigurator_core.sdk.perf_database import get_database_view, get_latest_database_version

    newest = get_latest_database_version(system=system, backend="trtllm")
    return newest, get_database_view(system, "trtllm", newest, database_mode="SILICON")


def _sum(operations: dict[str, float], wanted) -> float:
    return sum(time for name, time in operations.items() if wanted(name))


def _attention(name: str) -> bool:
    return "attention" in name and "norm" not in name


def _message(name: str) -> bool:
    return "_ar_" in name or name.endswith(("_ar", "_dispatch"))


def _hop(name: str) -> bool:
    # Between PP stages; not of a measurement, and the caller's to compute.
    return name.endswith("_p2p")


def _head(name: str) -> bool:
    return "logits" in name


def _linear(name: str) -> bool:
    return not (_attention(name) or _message(name) or _hop(name) or _head(name))


if __name__ == "__main__":
    main()
