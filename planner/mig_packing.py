"""Several small models on the MIG slices of as few GPUs as hold them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

from planner.candidate import Candidate
from planner.gpus import Gpu, gpus
from planner.offers import Offer
from planner.pricing import HOURS_PER_MONTH

_MOST_ASSIGNMENTS = 20_000


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A slice on a GPU: `start` and `width` in eighths of its memory (A30: quarters), as NVIDIA numbers placements."""

    profile: str
    start: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Models by name with what each runs on. A pool divides all its GPUs alike, so `nodes` are counted by profile.

    `mixed_gpus` is how many GPUs would do if each were divided as it comes.
    """

    offer: Offer
    choices: dict[str, Candidate]
    replicas: dict[str, int]
    nodes: dict[str, int]
    mixed_gpus: int

    @property
    def gpus(self) -> int:
        return sum(self.nodes.values()) * self.offer.instance.gpu_count

    @property
    def usd_per_month(self) -> float:
        """GPU nodes alone."""
        return sum(self.nodes.values()) * self.offer.usd_h * HOURS_PER_MONTH


def pack(profiles: Sequence[str], gpu: Gpu) -> list[tuple[Slot, ...]]:
    """Slices of these profiles on GPUs, the largest first, each on the first GPU that has a place: few, if not fewest.

    A profile may start where a multiple of its width is, as often as the catalogue says, and its compute slices are
    the number before its `g`, seven of a GPU in all (A30: four). NVIDIA's placements are those (MIG user guide).
    """
    found: list[tuple[Slot, ...]] = []
    for profile in sorted(profiles, key=lambda each: (-_width(each, gpu), -_compute(each), each)):
        for index, slots in enumerate(found):
            slot = _place(profile, slots, gpu)
            if slot:
                found[index] = (*slots, slot)
                break
        else:
            slot = _place(profile, (), gpu)
            if slot is None:
                raise ValueError(f"{gpu.name} has no profile {profile}")
            found.append((slot,))
    return found


def packed(options: Mapping[str, Sequence[Candidate]], *, fill: bool) -> list[Packed]:
    """Every instance type and capacity that has slices for all models, by cost; `options` are each model's choices.

    With `fill` no rate was asked for, and each model gets one replica.
    """
    by_offer: dict[Offer, dict[str, dict[str, Candidate]]] = {}
    for name, candidates in options.items():
        for each in candidates:
            profile = each.shape.model.mig_profile
            if profile:
                mine = by_offer.setdefault(each.offer, {}).setdefault(name, {})
                known = mine.get(profile)
                if known is None or each.estimate.output_tokens_per_s > known.estimate.output_tokens_per_s:
                    mine[profile] = each
    found = [
        min(_assignments(offer, choices, fill), key=lambda each: (each.usd_per_month, _slowest(each)))
        for offer, choices in by_offer.items()
        if choices.keys() == options.keys()
    ]
    return sorted(found, key=lambda each: (each.usd_per_month, _slowest(each), each.offer.instance.name))


def _assignments(offer: Offer, choices: Mapping[str, Mapping[str, Candidate]], fill: bool) -> Iterator[Packed]:
    """A profile for each model in every way; where those are too many, the first of them."""
    gpu = gpus()[offer.instance.gpu]
    ways = product(*(each.values() for each in choices.values()))
    for chosen in islice(ways, _MOST_ASSIGNMENTS):
        slices: dict[str, int] = {}
        replicas = {name: 1 if fill else each.replicas for name, each in zip(choices, chosen, strict=True)}
        for name, each in zip(choices, chosen, strict=True):
            profile = each.shape.model.mig_profile or ""
            slices[profile] = slices.get(profile, 0) + replicas[name]
        nodes = {name: -(-count // (gpu.mig_slices[name] * offer.instance.gpu_count)) for name, count in slices.items()}
        yield Packed(
            offer=offer,
            choices=dict(zip(choices, chosen, strict=True)),
            replicas=replicas,
            nodes=nodes,
            mixed_gpus=len(pack([name for name, count in slices.items() for _ in range(count)], gpu)),
        )


def _slowest(each: Packed) -> float:
    return max(choice.estimate.inter_token_latency_s for choice in each.choices.values())


def _place(profile: str, taken: Sequence[Slot], gpu: Gpu) -> Slot | None:
    if sum(_compute(slot.profile) for slot in taken) + _compute(profile) > max(map(_compute, gpu.mig_slices)):
        return None
    width, count = _width(profile, gpu), gpu.mig_slices.get(profile, 0)
    if sum(slot.profile == profile for slot in taken) >= count:
        return None
    # From the end: the front is where the widest profiles must be.
    for start in range((count - 1) * width, -1, -width):
        if all(start + width <= slot.start or slot.start + slot.width <= start for slot in taken):
            return Slot(profile=profile, start=start, width=width)
    return None


def _compute(profile: str) -> int:
    return int(profile.partition("g")[0])


def _width(profile: str, gpu: Gpu) -> int:
    """Memory slices: what of eight (A30: four) a profile's most instances leave to each, to a power of two."""
    count = gpu.mig_slices.get(profile.partition("+")[0]) or 1
    whole = max(map(_compute, gpu.mig_slices))
    eighths = 1 << (whole - 1).bit_length()
    if count == 1:
        return eighths if _compute(profile) == whole else eighths // 2
    return 1 << ((eighths // count).bit_length() - 1)
