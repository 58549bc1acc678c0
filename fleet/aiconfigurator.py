"""Estimates from NVIDIA's measured kernels: the PyPI package aiconfigurator, in an environment of its own."""

import json
import subprocess
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.config import ModelConfig
from planner.interconnect import Interconnect, Links, links
from planner.memory import DTYPE_BYTES, RankMemory, weight_format
from planner.model import ModelFacts
from planner.peaks import peaks
from planner.throughput import Throughput, Workload, over_steps
from runtime.errors import Refusal

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv" / "aiconfigurator"
WORKER = Path(__file__).parent / "aiconfigurator_worker.py"
TIMEOUT_S = 300

SYSTEMS = {
    # Those that it has measured kernels of under TensorRT-LLM.
    "A100-80GB": "a100_sxm",
    "H100-80GB": "h100_sxm",
    "H200-141GB": "h200_sxm",
    "B200-180GB": "b200_sxm",
    "B300-288GB": "b300_sxm",
    "GB200-186GB": "gb200",
    "L40S": "l40s",
    "RTX-PRO-6000-96GB": "rtx_pro_6000_server",
}

FORMATS = {
    # planner's weight format -> its words for linear layers and for experts.
    "none": ("bfloat16", "bfloat16"),
    "fp8": ("fp8", "fp8"),
    "fp8_block": ("fp8_block", "fp8_block"),
    "int4_wo": ("int4_wo", "int4_wo"),
    "int4_awq": ("int4_wo", "int4_wo"),
    "int4_gptq": ("int4_wo", "int4_wo"),
    "nvfp4": ("nvfp4", "nvfp4"),
    "mxfp4": ("bfloat16", "w4a16_mxfp4"),
}
DENSE_ONLY = {"int8_wo": ("int8_wo", "bfloat16"), "int8_sq": ("sq", "bfloat16")}

ARCHITECTURES = {
    # The families whose layers it knows, by the architecture that it knows them by.
    "llama": "LlamaForCausalLM",
    "mistral": "LlamaForCausalLM",
    "phi3": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """What planner.throughput.throughput takes: a resolved model on a GPU, and what is asked of it."""

    model: ModelConfig
    facts: ModelFacts
    memory: tuple[RankMemory, ...]
    workload: Workload
    interconnect: Interconnect
    batch: int | None = None


def installed() -> Path | None:
    """Its interpreter, where `make aiconfigurator` made one."""
    python = ENVIRONMENT / "bin" / "python"
    return python if python.is_file() else None


def estimate(requests: Sequence[Question]) -> list[Throughput | None]:
    """One estimate for each question, None where it has no data. Raises Refusal where it is absent or fails."""
    asked: dict[str, dict[str, Any]] = {}
    keys: list[str | None] = []
    for question in requests:
        wanted = _question(question)
        key = json.dumps(wanted, sort_keys=True) if wanted else None
        keys.append(key)
        if key and wanted:
            prompts = asked.setdefault(key, {**wanted, "prompts": []})["prompts"]
            if question.workload.prompt_tokens not in prompts:
                prompts.append(question.workload.prompt_tokens)
    answers, version = _ask(list(asked.values())) if asked else ([], "")
    answer_of = dict(zip(asked, answers, strict=True))
    return [
        _throughput(question, answer_of[key], version) if key else None
        for question, key in zip(requests, keys, strict=True)
    ]


def _ask(questions: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    python = installed()
    if python is None:
        raise Refusal(
            "aiconfigurator is not installed",
            "there are no estimates from measured kernels",
            "run `make aiconfigurator`, or use the roofline",
        )
    said = ""
    try:
        done = subprocess.run(
            [str(python), "-I", str(WORKER)],
            input=json.dumps(questions),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        said = done.stderr.strip().rpartition("\n")[2][:300]
        found = json.loads(done.stdout)
        return found["answers"], found["version"]
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        raise Refusal(
            f"aiconfigurator gave no answer ({said or type(error).__name__})",
            "there are no estimates from measured kernels",
            "run `make aiconfigurator` again, or use the roofline",
        ) from None


def _question(question: Question) -> dict[str, Any] | None:
    """What the worker needs to know, but for the prompts; None for what it cannot know."""
    model, facts = question.model, question.facts
    weights, _ = weight_format(model, facts)
    formats = FORMATS.get(weights) or (None if facts.moe else DENSE_ONLY.get(weights))
    system = SYSTEMS.get(model.gpu or "")
    architecture = ARCHITECTURES.get(facts.family.name)
    shared = facts.moe is not None and facts.moe.shared_size > 0 and facts.mla is None
    if model.mig_profile or not (formats and system and architecture) or shared:
        return None
    return {
        "config": _hugging_face(facts, architecture),
        "system": system,
        "tensor_parallel": model.tensor_parallel,
        "pipeline_parallel": model.pipeline_parallel,
        "linear": formats[0],
        "experts": formats[1],
        "kv_cache": "bfloat16" if model.quantization.kv_cache == "none" else model.quantization.kv_cache,
    }


def _hugging_face(facts: ModelFacts, architecture: str) -> dict[str, Any]:
    """A config.json with what the worker reads of one."""
    config: dict[str, Any] = {
        "architectures": [architecture],
        "num_hidden_layers": facts.num_layers,
        "hidden_size": facts.hidden_size,
        "num_attention_heads": facts.num_heads,
        "num_key_value_heads": facts.num_kv_heads,
        "head_dim": facts.head_size,
        "intermediate_size": facts.intermediate_size,
        "vocab_size": facts.vocab_size,
        "max_position_embeddings": facts.max_position_embeddings,
    }
    if facts.moe:
        config |= {
            "num_experts": facts.moe.experts,
            "num_local_experts": facts.moe.experts,
            "n_routed_experts": facts.moe.experts,
            "num_experts_per_tok": facts.moe.experts_per_token,
            "moe_intermediate_size": facts.moe.expert_size,
            "n_shared_experts": facts.moe.shared_size // facts.moe.expert_size,
            "first_k_dense_replace": len(facts.moe.dense_layers),
        }
    if facts.mla:
        config |= {
            "q_lora_rank": facts.mla.q_lora_rank,
            "kv_lora_rank": facts.mla.kv_lora_rank,
            "qk_nope_head_dim": facts.mla.qk_nope_head_dim,
            "qk_rope_head_dim": facts.mla.qk_rope_head_dim,
            "v_head_dim": facts.mla.v_head_dim,
        }
    return config


def _throughput(question: Question, answer: dict[str, Any], version: str) -> Throughput | None:
    if "error" in answer:
        return None
    model, facts = question.model, question.facts
    found = links(model, peaks()[model.gpu or ""], question.interconnect)
    steps = MeasuredSteps(
        answer=answer,
        prompt_tokens=question.workload.prompt_tokens,
        stages=model.pipeline_parallel,
        layers=facts.num_layers,
        hidden_bytes=facts.hidden_size * DTYPE_BYTES[model.dtype],
        links=found,
    )
    measured = "kernels" if found.over_nvlink or model.tensor_parallel == 1 else "kernels, all-reduce by bandwidth"
    source = f"aiconfigurator {version} ({measured} of TensorRT-LLM {answer['database']})"
    return over_steps(steps, model, question.memory, question.workload, batch=question.batch, source=source)


@dataclass(frozen=True, kw_only=True)
class MeasuredSteps:
    """planner.throughput.Steps of the worker's tables.

    Messages between ranks are the tables' where NVLink joins them; else they go by planner.interconnect, since the
    all-reduce of the tables was measured on one host (L40S: 3 GB/s, where published runs show 18).
    """

    answer: dict[str, Any]
    prompt_tokens: int
    stages: int
    layers: int
    hidden_bytes: int
    links: Links

    def seconds(self, sequences: float, context: float, prefill: float) -> float:
        found, tokens = self.answer, sequences + prefill
        prompts = prefill / self.prompt_tokens
        work = _between(found["tokens"], found["linear"], tokens)
        by_context = [_between(found["contexts"], row, context) for row in found["attention"]]
        work += _between(found["sequences"], by_context, sequences) if sequences else 0.0
        work += prompts * found["prompts"][str(self.prompt_tokens)]
        # The stage with a layer more than others is the slowest, and the LM head is the last one's alone.
        work *= -(-self.layers // self.stages) * self.stages / self.layers
        work += self.stages * _between(found["sequences"], found["head"], sequences + prompts)
        size = tokens * self.hidden_bytes
        if self.links.over_nvlink:
            messages = _between(found["tokens"], found["messages"], tokens) / 1e3
        else:
            messages = 2 * self.layers * self.links.all_reduce_s(size)
        hops = self.stages if self.stages > 1 else 0
        messages += hops * size / self.links.tensor_parallel / self.links.stage_bytes_per_s
        return work / 1e3 + messages


def _between(points: Sequence[float], values: Sequence[float], at: float) -> float:
    """Linear between the points and beyond the last; the first value below the first."""
    if at <= points[0]:
        return values[0]
    right = min(bisect_left(points, at), len(points) - 1)
    left = right - 1
    return values[left] + (values[right] - values[left]) * (at - points[left]) / (points[right] - points[left])
