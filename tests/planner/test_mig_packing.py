"""Slices on GPUs: placements that NVIDIA allows, few GPUs, and models of one pool divided alike."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_models import case

from planner.gpus import gpus
from planner.mig_packing import pack, packed
from planner.search import search
from planner.target import target_of

DIVIDED = sorted(name for name, gpu in gpus().items() if gpu.mig_slices)


@pytest.mark.parametrize("gpu", DIVIDED)
def test_one_gpu_holds_as_many_of_a_profile_as_the_catalogue_says(gpu: str) -> None:
    for profile, most in gpus()[gpu].mig_slices.items():
        if "+" not in profile:
            assert len(pack([profile] * most, gpus()[gpu])) == 1
            assert len(pack([profile] * (most + 1), gpus()[gpu])) == 2


@pytest.mark.parametrize(
    ("profiles", "needed"),
    [
        # What NVIDIA's user guide pictures of an H100 80GB, and one slice too many for each.
        (["4g.40gb", "3g.40gb"], 1),
        (["4g.40gb", "2g.20gb", "1g.10gb"], 1),
        (["4g.40gb", "1g.10gb", "1g.10gb", "1g.10gb"], 1),
        (["3g.40gb", "3g.40gb"], 1),
        (["3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"], 1),
        (["2g.20gb", "2g.20gb", "2g.20gb", "1g.10gb"], 1),
        (["7g.80gb"], 1),
        (["4g.40gb", "4g.40gb"], 2),
        (["3g.40gb", "3g.40gb", "1g.10gb"], 2),
        (["7g.80gb", "1g.10gb"], 2),
        (["4g.40gb", "3g.40gb", "1g.10gb"], 2),
    ],
)
def test_mixed_slices_of_an_h100(profiles: list[str], needed: int) -> None:
    assert len(pack(profiles, gpus()["H100-80GB"])) == needed


@settings(max_examples=200, deadline=None)
@given(data=st.data(), name=st.sampled_from(DIVIDED))
def test_no_two_slices_overlap_and_few_gpus_do(data: st.DataObject, name: str) -> None:
    gpu = gpus()[name]
    able = sorted(profile for profile in gpu.mig_slices if "+" not in profile)
    profiles = data.draw(st.lists(st.sampled_from(able), min_size=1, max_size=20))
    found = pack(profiles, gpu)
    assert sorted(slot.profile for slots in found for slot in slots) == sorted(profiles)
    whole = max(int(profile.partition("g")[0]) for profile in able)
    for slots in found:
        eighths = [place for slot in slots for place in range(slot.start, slot.start + slot.width)]
        assert len(eighths) == len(set(eighths))
        assert max(eighths) < 1 << (whole - 1).bit_length()
        assert sum(int(slot.profile.partition("g")[0]) for slot in slots) <= whole
    slices = sum(int(profile.partition("g")[0]) for profile in profiles)
    assert math.ceil(slices / whole) <= len(found) <= len(profiles)


def test_a_profile_of_another_gpu_is_an_error() -> None:
    with pytest.raises(ValueError, match="H100-80GB has no profile"):
        pack(["2g.24gb"], gpus()["H100-80GB"])


def test_models_share_gpus_divided_alike() -> None:
    words = {"gpu": "H100-80GB", "cloud": "aws", "tokens_per_second": "300"}
    options = {
        name: search(*case(name), target_of(words)).ranked for name in ("llama-3.1-8b", "qwen3-8b", "qwen2.5-7b")
    }
    found = packed(options, fill=False)
    best = found[0]
    assert [each.usd_per_month for each in found] == sorted(each.usd_per_month for each in found)
    assert best.gpus == 1
    assert best.choices.keys() == options.keys()
    for name, choice in best.choices.items():
        assert choice.replicas * choice.estimate.output_tokens_per_s >= 300
        assert choice in options[name]
    # 8 B parameters and 70 B: no slice holds the latter.
    assert (
        packed({**options, "llama-3.1-70b": search(*case("llama-3.1-70b"), target_of(words)).ranked}, fill=False) == []
    )
