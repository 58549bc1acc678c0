"""How fast a replica answers: steady state or a whole run of in-flight batching, over the time of one iteration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from planner import roofline
from planner.batching import Run, run_seconds
from planner.config import ModelConfig
from planner.interconnect import Interconnect
from planner.interconnect import interconnect as interconnect
from planner.memory import RankMemory
from planner.model import ModelFacts

HOST_S_PER_SEQUENCE = {"tensorrt": 10e-6, "pytorch": 35e-6}
"""Estimate: what the host does for one sequence between two iterations (scheduling, sampling, bookkeeping), seconds.

With PP 1 it overlaps the GPU's work and counts where it takes longer; with PP it does not, and each stage waits for
it. From published runs: the PyTorch backend needs 25 us on B200 (Qwen3 30B) and 25 to 45 us a stage with PP 2, 4 and
8 of RTX PRO 6000 (Llama 3.3 70B); engines reach steps that leave less than 15 us.
"""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One request, in tokens; `requests`: how many are queued at once in all. None: they never end."""

    prompt_tokens: int
    output_tokens: int
    requests: int | None = None

    @property
    def tokens(self) -> int:
        """What one request's KV cache holds at its end."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """An estimate for ONE replica that decodes `batch` sequences at once, each finished one replaced by the next.

    `output_tokens_per_s` counts answers only, over the whole replica. `time_to_first_token_s` is a 95th percentile of
    the GPUs' part: prompts arrive at random at the rate that keeps `batch` sequences decoding, and wait for the
    iteration that runs and for prompts before them; waiting for one of the `batch` places, tokenising and the network
    are not in it. `inter_token_latency_s` is the mean. `source` says what the figures rest on.
    """

    batch: int
    output_tokens_per_s: float
    time_to_first_token_s: float
    inter_token_latency_s: float
    source: str


class Steps(Protocol):
    """The GPUs' time of an iteration: a roofline's, or of measured kernels."""

    def seconds(self, sequences: float, context: float, prefill: float) -> float:
        """A micro-batch through all PP stages: `sequences` decode one token each at a mean `context`, and `prefill`
        prompt tokens pass too. Stages are counted as if each took as long as the slowest."""
        ...


def throughput(
    model: ModelConfig,
    facts: ModelFacts,
    memory: tuple[RankMemory, ...],
    workload: Workload,
    *,
    interconnect: Interconnect,
    batch: int | None = None,
) -> Throughput:
    """The roofline of a resolved model on a GPU; without a `batch`, that of the largest that fits."""
    steps = roofline.steps(model, facts, memory, workload.prompt_tokens, interconnect)
    return over_steps(steps, model, memory, workload, batch=batch, source=roofline.SOURCE)


def over_steps(
    steps: Steps,
    model: ModelConfig,
    memory: Sequence[RankMemory],
    workload: Workload,
    *,
    batch: int | None,
    source: str,
) -> Throughput:
    """What in-flight batching makes of iterations that take as long as `steps` says."""
    batch = batch or largest_batch(model, memory, workload)
    if workload.requests:
        batch = min(batch, workload.requests)
    stages = model.pipeline_parallel
    # Each stage works on one micro-batch of sequences while the others work on theirs.
    share = batch / stages
    per_sequence = HOST_S_PER_SEQUENCE.get(model.backend, 0.0)

    def iteration(sequences: float, context: float, prefill: float) -> float:
        host = per_sequence * sequences
        gpu = steps.seconds(sequences, context, prefill)
        # A prompt passes whole, or in chunks as large as max_num_tokens allows, with some iterations and not others.
        chunk = min(workload.prompt_tokens, max(model.max_num_tokens - sequences, 1))
        if 0 < prefill < chunk:
            without = steps.seconds(sequences, context, 0)
            gpu = without + prefill / chunk * (steps.seconds(sequences, context, chunk) - without)
        return max(gpu, host) if stages == 1 else gpu + stages * host

    # As many prompts arrive as answers end; where max_num_tokens does not let them, fewer sequences decode.
    prompts_each = workload.prompt_tokens / workload.output_tokens
    decoding = min(share, model.max_num_tokens / (1 + prompts_each))
    arriving = decoding * prompts_each
    context = workload.prompt_tokens + workload.output_tokens / 2
    step, decode = iteration(decoding, context, arriving), iteration(decoding, context, 0)
    alone = max(steps.seconds(decoding, context, workload.prompt_tokens) - steps.seconds(decoding, context, 0), 0.0)
    # What runs has to end first; prompts that came before take an iteration each.
    wait = max(step, _queue_p95((alone + decode) / stages, 1 - decode / step))
    chunks = math.ceil(workload.prompt_tokens / max(model.max_num_tokens - decoding, 1))
    rate = decoding * stages / step
    if workload.requests:
        run = Run(
            requests=workload.requests / stages,
            prompt_tokens=workload.prompt_tokens,
            output_tokens=workload.output_tokens,
            slots=share,
            max_num_tokens=model.max_num_tokens,
            kv_sequences=share,
        )
        rate = workload.requests * workload.output_tokens / run_seconds(run, iteration)
    return Throughput(
        batch=batch,
        output_tokens_per_s=rate,
        time_to_first_token_s=wait + chunks * decode + alone,
        inter_token_latency_s=step,
        source=source,
    )


def largest_batch(model: ModelConfig, memory: Sequence[RankMemory], workload: Workload) -> int:
    """Sequences that the fullest rank's KV cache and max_batch_size allow at once, at least 1.

    guaranteed_no_evict admits a sequence only with all its blocks to the last token; max_utilization admits as many
    as fit halfway. With PP, max_batch_size is that of a micro-batch.
    """
    block = model.build.tokens_per_block
    tokens = workload.tokens
    if model.serving.batch_scheduler_policy == "max_utilization":
        tokens -= workload.output_tokens // 2
    fitting = min(rank.kv_tokens for rank in memory) // (-(-tokens // block) * block)
    return max(1, min(fitting, model.max_batch_size * model.pipeline_parallel))


def _queue_p95(service: float, load: float) -> float:
    """95th percentile of the wait in a queue, in units of `service`, the mean time of a job (M/M/1: prompts arrive at
    random, and their lengths vary as much as their mean does)."""
    if load <= 0.05:
        return 0.0
    return service / (1 - load) * math.log(load / 0.05)
