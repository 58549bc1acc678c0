"""Greedy decoding of several prompts in one batch on an engine's ranks under mpirun, without Triton.

`decode` starts the world and returns what it measured; run as a program, this file is one of its ranks.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).parents[1]
MODEL_CODE = ROOT / "model_repo" / "tensorrt_llm" / "1"


@dataclass(frozen=True)
class Decoded:
    """Of each prompt and step: the token chosen, and the distance of its logit from the second best.

    tokens int32 [prompt, step]; gap float32 [prompt, step]; logits float32 [kept prompt, step, vocab]; seconds of all
    steps after the first, which holds the prompts.
    """

    tokens: npt.NDArray[np.int32]
    gap: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    seconds: float


def decode(
    engine: Path, prompts: list[list[int]], steps: int, *, keep: int = 0, forced: list[list[int]] | None = None
) -> Decoded:
    """Decode `steps` tokens of each prompt. `forced` tokens [prompt, step] are fed back instead of the chosen ones,
    so that the logits of two shardings can be compared step by step; logits are kept of the first `keep` prompts."""
    from runtime.rank import blas_environment, cpu_flags

    mapping = json.loads((engine / "config.json").read_text())["pretrained_config"]["mapping"]
    world, tp = mapping["world_size"], mapping["tp_size"]
    with tempfile.TemporaryDirectory() as scratch:
        job, out = Path(scratch) / "job.json", Path(scratch) / "out.npz"
        fields = {"engine": str(engine), "prompts": prompts, "steps": steps, "keep": keep, "forced": forced}
        job.write_text(json.dumps({**fields, "out": str(out)}))
        environment = {
            **os.environ,
            "PYTHONPATH": str(MODEL_CODE),
            **blas_environment(len(os.sched_getaffinity(0)), tp, cpu_flags()),
            "OMPI_MCA_mpi_yield_when_idle": "1",
        }
        mpirun = str(Path(sys.executable).parent / "mpirun")
        command = [mpirun, *(["--allow-run-as-root"] if os.geteuid() == 0 else []), "--oversubscribe"]
        command += ["--bind-to", "none", "-n", str(world), sys.executable, __file__, str(job)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        with np.load(out) as result:
            return Decoded(result["tokens"], result["gap"], result["logits"], float(result["seconds"]))


def run_rank(job: dict[str, Any]) -> None:
    from llama import Segment, ShardedLlama, Step
    from mpi4py import MPI

    model = ShardedLlama(Path(job["engine"]), MPI.COMM_WORLD)
    if model.comm.rank:
        model.follow()
        return
    prompts = [np.array(prompt, np.int32) for prompt in job["prompts"]]
    steps, keep, forced = job["steps"], job["keep"], job["forced"]
    tokens = np.zeros((len(prompts), steps), np.int32)
    gap = np.zeros((len(prompts), steps), np.float32)
    kept = np.zeros((keep, steps, model.vocab_size), np.float32)
    opened = [(slot, len(prompt) + steps) for slot, prompt in enumerate(prompts)]
    segments = [Segment(slot, prompt, 0, True) for slot, prompt in enumerate(prompts)]
    started = 0.0
    for step in range(steps):
        for slot, logits in enumerate(model.run(Step(opened, [], segments))):
            second, best = np.partition(logits, -2)[-2:]
            tokens[slot, step], gap[slot, step] = np.argmax(logits), best - second
            if slot < keep:
                kept[slot, step] = logits
        started = started or time.perf_counter()
        fed = np.array(forced, np.int32) if forced else tokens
        opened = []
        segments = [
            Segment(slot, fed[slot, step : step + 1], len(prompt) + step, True) for slot, prompt in enumerate(prompts)
        ]
    seconds = time.perf_counter() - started
    model.stop()
    np.savez(job["out"], tokens=tokens, gap=gap, logits=kept, seconds=seconds)


if __name__ == "__main__":
    run_rank(json.loads(Path(sys.argv[1]).read_text()))
