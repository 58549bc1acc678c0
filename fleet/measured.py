"""Estimates from measured kernels for the choices that the roofline puts first: one question to aiconfigurator."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from fleet import aiconfigurator
from fleet.aiconfigurator import Question
from planner.candidate import Candidate
from planner.limits import meets
from planner.model import ModelFacts
from planner.search import Measured, PointKey, Result, links_of, point_key, workload
from planner.target import Target
from planner.throughput import Throughput, largest_batch, throughput

ROUNDS = (6, 2)
"""Shapes that are asked about at first, and again for those that took the place of what was slower than its roofline.

Each takes 0.4 s, and 1 s more for each GPU type, on each of two processes that begin with 1 s.
"""

STEP, BATCHES = 0.8, 16
"""Batches that are asked about, each so much of the one before it, and how many."""


def keys_of(result: Result) -> dict[PointKey, Candidate]:
    """The best choice of everything that an estimate depends on, in the order they are ranked."""
    found: dict[PointKey, Candidate] = {}
    for each in result.ranked:
        found.setdefault(point_key(each.shape, links_of(each.shape, each.offer.instance)), each)
    return found


def measure(result: Result, facts: ModelFacts, known: Measured | None, shapes: int) -> Measured:
    """What is known and the estimates of so many shapes that come first and are not.

    Raises Refusal where aiconfigurator fails.
    """
    before = dict(known.points) if known else dict[PointKey, tuple[Throughput, ...]]()
    fresh = [(key, each) for key, each in keys_of(result).items() if key not in before]
    if not before:
        fresh = _unlike(fresh)
    fresh = fresh[:shapes]
    # The data of a GPU type is read once by each process.
    order = sorted(fresh, key=lambda pair: str(pair[1].shape.model.gpu))
    halves = [half for half in (order[: len(order) // 2], order[len(order) // 2 :]) if half]
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(_estimates, half, facts, result.target) for half in halves]
    points = {key: found for part in asked for key, found in part.result().items()}
    ratios: dict[str, list[float]] = {}
    for key, each in fresh:
        ratios.setdefault(each.shape.model.gpu or "", []).extend(_ratios(each, facts, result.target, points[key]))
    # The first measurements of a GPU say it: later ones are of what looked best after them.
    scale = {gpu: median(found) for gpu, found in ratios.items() if found} | dict(known.scale if known else {})
    return Measured(points={**before, **points}, scale=scale)


def _unlike(keys: list[tuple[PointKey, Candidate]]) -> list[tuple[PointKey, Candidate]]:
    """The best of each GPU and TP first: what the roofline errs by is much the same within them."""
    seen: Counter[tuple[str | None, int]] = Counter()
    places: list[int] = []
    for _, each in keys:
        kind = (each.shape.model.gpu, each.shape.model.tensor_parallel)
        places.append(seen[kind])
        seen[kind] += 1
    return [pair for _, pair in sorted(zip(places, keys, strict=True), key=lambda pair: pair[0])]


def _ratios(each: Candidate, facts: ModelFacts, target: Target, measured: tuple[Throughput, ...]) -> list[float]:
    """Measured throughput over the roofline's, at the batch that the latency allows."""
    point = next((point for point in measured if meets(point, target)), None)
    if point is None:
        return []
    links = links_of(each.shape, each.offer.instance)
    load, shape = workload(target), each.shape
    roofline = throughput(shape.model, facts, shape.memory, load, interconnect=links, batch=point.batch)
    return [point.output_tokens_per_s / roofline.output_tokens_per_s]


def _estimates(
    chosen: list[tuple[PointKey, Candidate]], facts: ModelFacts, target: Target
) -> dict[PointKey, tuple[Throughput, ...]]:
    load = workload(target)
    questions: list[Question] = []
    of: list[PointKey] = []
    for key, each in chosen:
        largest = largest_batch(each.shape.model, each.shape.memory, load)
        for batch in dict.fromkeys(max(1, round(largest * STEP**power)) for power in range(BATCHES)):
            of.append(key)
            questions.append(
                Question(
                    model=each.shape.model,
                    facts=facts,
                    memory=each.shape.memory,
                    workload=load,
                    interconnect=links_of(each.shape, each.offer.instance),
                    batch=batch,
                )
            )
    found = dict.fromkeys((key for key, _ in chosen), tuple[Throughput, ...]())
    for key, answer in zip(of, aiconfigurator.estimate(questions), strict=True):
        if answer:
            found[key] = (*found[key], answer)
    return found
