"""Predicted against published saturated throughput: the roofline's errors and, where it is installed, aiconfigurator's.

python -m tests.benchmarks.estimates [--json] [--roofline] [--rows FILE.csv] [--worst N]
"""

import argparse
import csv
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fleet import aiconfigurator
from planner.config import ModelConfig
from planner.gpus import gpus
from planner.memory import MIB, rank_memory
from planner.model import ModelFacts, Moe, facts_from_hf
from planner.tensors import parameters
from planner.throughput import Interconnect, Throughput, Workload, throughput

ROWS = Path(__file__).parent / "data" / "published_trtllm.csv"
KNOWN = Path(__file__).parents[2] / "planner" / "known_models"

MODELS = {
    "Llama-3.1-8B": "llama-3.1-8b",
    "Llama-3.1-70B": "llama-3.1-70b",
    "Llama-3.1-405B": "llama-3.1-405b",
    "Mixtral-8x7B": "mixtral-8x7b",
    "Qwen3-30B-A3B": "qwen3-30b-a3b",
    "Qwen3-235B-A22B": "qwen3-235b-a22b",
}

SCOUT = ModelFacts(
    # Llama 4 is no family of the planner; by its dimensions it is a mixture of experts with a shared one.
    architecture="MixtralForCausalLM",
    num_layers=48,
    hidden_size=5120,
    num_heads=40,
    num_kv_heads=8,
    head_size=128,
    intermediate_size=8192,
    vocab_size=202048,
    max_position_embeddings=10_485_760,
    tied_embeddings=False,
    norm_epsilon=1e-5,
    rotary_base=500_000.0,
    rope_scaling=None,
    attention_bias=False,
    mlp_bias=False,
    moe=Moe(
        experts=16,
        experts_per_token=1,
        expert_size=8192,
        shared_size=8192,
        selection_bias=False,
        dense_layers=frozenset(),
    ),
    mla=None,
    checkpoint_quantization=None,
)

GPUS = {
    # As printed -> the catalogue's name, and whether NVLink joins them.
    "a100_sxm": ("A100-80GB", True),
    "a100_pcie": ("A100-80GB", False),
    "h100_sxm": ("H100-80GB", True),
    "h200_sxm": ("H200-141GB", True),
    "gh200_96gb": ("GH200-96GB", True),
    "gh200_480gb": ("GH200-96GB", True),
    "b200": ("B200-180GB", True),
    "gb200": ("GB200-186GB", True),
    "l40s": ("L40S", False),
    "rtx6000pro": ("RTX-PRO-6000-96GB", False),
}

REQUESTS = {
    # (prompt, output) -> requests queued at once, as the pages' tables of their runs say.
    (128, 128): 30_000,
    (128, 2048): 3000,
    (128, 4096): 1500,
    (500, 2000): 3000,
    (1000, 1000): 3000,
    (1000, 2000): 1500,
    (2048, 128): 3000,
    (2048, 2048): 1500,
    (5000, 500): 1500,
    (20_000, 2000): 1000,
}
OTHER_REQUESTS = 1500


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published figure, output tokens/s over all GPUs."""

    set: str
    model: str
    gpu: str
    weights: str
    tensor_parallel: int
    pipeline_parallel: int
    prompt_tokens: int
    output_tokens: int
    version: str
    tokens_per_s: float

    @property
    def attention_data_parallel(self) -> bool:
        """Mixtures of experts of 1.0 and later on several GPUs: each rank has its own sequences, and some experts.

        The planner deploys tensor parallel, and predicts that of as many GPUs.
        """
        gpus_used = self.tensor_parallel * self.pipeline_parallel
        return gpus_used > 1 and self.version[0] != "0" and facts(self.model).moe is not None

    @property
    def tight(self) -> bool:
        """Whether the weights take more than 80 % of a GPU."""
        width = {"fp8": 1.0, "nvfp4": 0.5}.get(self.weights, 2.0)
        each = parameters(facts(self.model)) * width / self.tensor_parallel / self.pipeline_parallel
        return each > 0.8 * gpus()[GPUS[self.gpu][0]].memory_mib * MIB

    @property
    def all_reduce_over_pcie(self) -> bool:
        return self.tensor_parallel > 1 and not self.interconnect.nvlink

    @property
    def calibrated(self) -> bool:
        """Whether a constant was set by this row: PCIE_EFFICIENCY, or HOST_S_PER_SEQUENCE."""
        links = self.model == "Llama-3.1-70B" and self.gpu in ("l40s", "a100_pcie") and self.tensor_parallel > 1
        stages = self.model == "Llama-3.1-70B" and self.pipeline_parallel > 1
        return links or stages or (self.model, self.gpu) == ("Qwen3-30B-A3B", "b200")

    @property
    def config(self) -> ModelConfig:
        """The model as the pages' commands run it: trtllm-bench with 95 % of the free memory for the KV cache."""
        eight = self.weights in ("fp8", "nvfp4")
        slots, tokens = tuned(self)
        return ModelConfig.model_validate(
            {
                "name": "published",
                "source": f"hf://published/{self.model}",
                "backend": "tensorrt" if self.version < "0.19" and self.version.startswith("0.") else "pytorch",
                "gpu": GPUS[self.gpu][0],
                "tensor_parallel": self.tensor_parallel,
                "pipeline_parallel": self.pipeline_parallel,
                "quantization": {
                    "weights": self.weights if eight else "none",
                    # trtllm-bench makes FP8 engines with FP8 KV cache, and NVIDIA's FP8 and FP4 checkpoints ask for it.
                    "kv_cache": "fp8" if eight else "none",
                },
                "max_batch_size": slots,
                "max_num_tokens": tokens,
                "max_seq_len": self.prompt_tokens + self.output_tokens,
                "serving": {"kv_cache_free_gpu_mem_fraction": 0.95},
            }
        )

    @property
    def workload(self) -> Workload:
        requests = REQUESTS.get((self.prompt_tokens, self.output_tokens), OTHER_REQUESTS)
        return Workload(prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens, requests=requests)

    @property
    def interconnect(self) -> Interconnect:
        return Interconnect(nvlink=GPUS[self.gpu][1])


def tuned(row: Row) -> tuple[int, int]:
    """max_batch_size and max_num_tokens that trtllm-bench sets for a data set: tensorrt_llm/bench/build/tuning.py.

    The sequences that fit beside the weights, at most 4096 over all stages, rounded up; and that many tokens an
    iteration as keep prompts arriving at the rate at which answers end.
    """
    model = facts(row.model)
    width = {"fp8": 1.0, "nvfp4": 0.5}.get(row.weights, 2.0)
    memory = gpus()[GPUS[row.gpu][0]].memory_mib * MIB * row.tensor_parallel * row.pipeline_parallel
    kv_width = 1 if row.weights in ("fp8", "nvfp4") else 2
    per_token = 2 * model.num_layers * max(row.tensor_parallel, model.num_kv_heads) * model.head_size * kv_width
    room = max(0.0, 0.95 * (memory - parameters(model) * width)) / per_token
    sequences = min(room / (row.prompt_tokens + row.output_tokens), 4096) / row.pipeline_parallel
    tokens = min(sequences * (1 + row.prompt_tokens / row.output_tokens), 32_768)
    slot_step = 32 if sequences < 256 else 128 if sequences < 1024 else 256
    token_step = 256 if tokens < 4096 else 512 if tokens < 8192 else 1024
    slots = max(64, slot_step * math.ceil(sequences / slot_step))
    return slots, max(2048, token_step * math.ceil(tokens / token_step))


@cache
def facts(model: str) -> ModelFacts:
    if model == "Llama-4-Scout":
        return SCOUT
    path = KNOWN / f"{MODELS[model]}.json"
    return facts_from_hf(json.loads(path.read_text(encoding="utf-8")), path.name)


def read_rows(path: Path = ROWS) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return [_row(values) for values in csv.DictReader(file)]


def _row(values: dict[str, str]) -> Row:
    return Row(
        set=values["set"],
        model=values["model"],
        gpu=values["gpu"],
        weights=values["weights"],
        tensor_parallel=int(values["tensor_parallel"].removeprefix("DEP")),
        pipeline_parallel=int(values["pipeline_parallel"]),
        prompt_tokens=int(values["prompt_tokens"]),
        output_tokens=int(values["output_tokens"]),
        version=values["version"],
        tokens_per_s=float(values["tokens_per_s"]),
    )


def rooflines(rows: Sequence[Row]) -> list[Throughput]:
    """The roofline of each row."""
    return [
        throughput(
            row.config,
            facts(row.model),
            rank_memory(row.config, facts(row.model)),
            row.workload,
            interconnect=row.interconnect,
        )
        for row in rows
    ]


def measured(rows: Sequence[Row]) -> list[Throughput | None]:
    """aiconfigurator's of each row, None where it has no data. Raises Refusal where it is not installed."""
    return aiconfigurator.estimate(
        [
            aiconfigurator.Question(
                model=row.config,
                facts=facts(row.model),
                memory=rank_memory(row.config, facts(row.model)),
                workload=row.workload,
                interconnect=row.interconnect,
            )
            for row in rows
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Predicted over published less 1, in per cent, of `count` rows; `spread` is half of what the middle 80 % span."""

    count: int
    median_absolute: float
    bias: float
    spread: float
    lowest: float
    highest: float


def errors(values: Sequence[float]) -> Errors:
    ordered = sorted(values)
    tenth = len(ordered) // 10
    return Errors(
        count=len(ordered),
        median_absolute=statistics.median(map(abs, ordered)),
        bias=statistics.median(ordered),
        spread=(ordered[-1 - tenth] - ordered[tenth]) / 2,
        lowest=ordered[0],
        highest=ordered[-1],
    )


def error(row: Row, found: Throughput) -> float:
    return 100 * (found.output_tokens_per_s / row.tokens_per_s - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--roofline", action="store_true", help="the roofline alone")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--worst", type=int, default=0, help="also the rows with the largest errors")
    args = parser.parse_args()
    rows = read_rows(args.rows)
    roofline = rooflines(rows)
    kinds: dict[str, list[Throughput]] = {"roofline": roofline}
    if aiconfigurator.installed() and not args.roofline:
        both = zip(measured(rows), roofline, strict=True)
        kinds = {"aiconfigurator, else roofline": [first or second for first, second in both], **kinds}
    tables = {name: table(rows, found) for name, found in kinds.items()}
    if args.json:
        print(json.dumps(tables, indent=1))
        return
    for name, groups in tables.items():
        print(
            f"\n{name}\n\n| | rows | median error | bias | spread | lowest | highest |\n|---|--:|--:|--:|--:|--:|--:|"
        )
        for group, e in groups.items():
            print(
                f"| {group} | {e['count']} | {e['median_absolute']:.1f} % | {e['bias']:+.1f} % | {e['spread']:.1f} "
                f"| {e['lowest']:+.0f} % | {e['highest']:+.0f} % |"
            )
        worst = sorted(zip(rows, kinds[name], strict=True), key=lambda pair: -abs(error(*pair)))[: args.worst]
        for row, found in worst:
            print(f"{error(row, found):+.0f} % {found.batch} sequences {row}")


def table(rows: Sequence[Row], found: Sequence[Throughput]) -> dict[str, dict[str, Any]]:
    """`Errors` of groups of rows by the groups' names."""
    names = list(dict.fromkeys(row.model for row in rows))
    groups: list[tuple[str, Callable[[Row], bool]]] = [
        ("main: all", _in_main()),
        ("main: no constant was set by", _in_main(calibrated=False)),
        ("main: tensor parallel, as planned", _in_main(attention_data_parallel=False)),
        ("main: attention data parallel", _in_main(attention_data_parallel=True)),
        ("main: weights fill over 80 % of a GPU", _in_main(tight=True)),
        ("main: all-reduce over PCIe", _in_main(all_reduce_over_pcie=True)),
        *((f"main: {gpu}", _in_main(gpu=gpu)) for gpu in GPUS),
        *((f"main: {name}", _in_main(model=name)) for name in names),
        ("further: all", _with(set="further")),
        *(
            (f"further: {name}, PP {pp}", _with(set="further", model=name, pipeline_parallel=pp))
            for name in names
            for pp in (1, 2, 4, 8)
        ),
    ]
    found_errors: dict[str, dict[str, Any]] = {}
    for name, belongs in groups:
        values = [error(row, one) for row, one in zip(rows, found, strict=True) if belongs(row)]
        if values:
            found_errors[name] = vars(errors(values))
    values = [error(row, one) for row, one in zip(rows, found, strict=True) if "roofline" not in one.source]
    if values:
        found_errors["measured kernels: all"] = vars(errors(values))
    return found_errors


def _in_main(**wanted: object) -> Callable[[Row], bool]:
    return _with(set="main", **wanted)


def _with(**wanted: object) -> Callable[[Row], bool]:
    return lambda row: all(getattr(row, name) == value for name, value in wanted.items())


if __name__ == "__main__":
    main()
