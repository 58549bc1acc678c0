"""Run under mpirun by the parity tests: decodes token sequences greedily, all in one batch, on an engine's ranks.

usage: mpirun -n WORLD python cpu_world.py JOB.json, where JOB = {"engine", "prompts", "steps", "forced", "out"}.
`out` becomes an .npz: tokens int32 [prompt, step]; gap float32 [prompt, step], the distance of the two best logits;
logits float32 [kept prompt, step, vocab] of the first `keep` prompts. With `forced` tokens [prompt, step] those are
fed back instead of the ones just chosen, so that the logits of two shardings can be compared step by step.
"""

import json
import sys
from pathlib import Path

import numpy as np
from llama import Segment, ShardedLlama, Step
from mpi4py import MPI


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
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
    for step in range(steps):
        for slot, logits in enumerate(model.run(Step(opened, [], segments))):
            second, best = np.partition(logits, -2)[-2:]
            tokens[slot, step], gap[slot, step] = np.argmax(logits), best - second
            if slot < keep:
                kept[slot, step] = logits
        fed = np.array(forced, np.int32) if forced else tokens
        opened = []
        segments = [
            Segment(slot, fed[slot, step : step + 1], len(prompt) + step, True) for slot, prompt in enumerate(prompts)
        ]
    model.stop()
    np.savez(job["out"], tokens=tokens, gap=gap, logits=kept)


main()
