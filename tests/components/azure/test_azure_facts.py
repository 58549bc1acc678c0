"""What the plan knows of Azure: every size of the catalogue has a quota, and AKS divides GPUs as the plan counts."""

import re

import pytest

from planner.clouds.azure import FACTS
from planner.gpus import gpus
from planner.instances import instances

SLICES = {"MIG1g": 7, "MIG2g": 3, "MIG3g": 2, "MIG4g": 1, "MIG7g": 1}
"""What AKS makes of each GPU (AKS documentation, "Create a multi-instance GPU node pool")."""


def limits(capacity: str, name: str) -> list[str]:
    return [
        quota
        for kind, quotas in FACTS.quotas.items()
        if kind == capacity
        for beginnings, quota in quotas
        if name.startswith(beginnings)
    ]


@pytest.mark.parametrize("name", sorted(instances("azure")))
def test_every_size_counts_to_one_quota_of_its_family_and_on_spot_to_the_regions(name: str) -> None:
    assert len(limits("on-demand", name)) == 1
    assert limits("spot", name) == ["Total Regional Spot vCPUs"]


def test_families_do_not_share_a_quota() -> None:
    """Sizes of one family differ in vCPUs and in letters of what the node has beside GPUs."""
    families = {limits("on-demand", name)[0]: set[str]() for name in instances("azure")}
    for name in instances("azure"):
        families[limits("on-demand", name)[0]].add(re.sub(r"^(Standard_N[CDV])\d+[a-z]*", r"\1", name))

    assert all(len(kinds) == 1 for kinds in families.values())
    assert families["standardNDISRGB200V6NDRFamily"] == {"Standard_ND_NDR_GB200_v6"}


def test_the_plan_counts_the_slices_that_aks_makes() -> None:
    named = {gpu: FACTS.mig.profiles(gpus()[gpu]) for gpu in sorted({size.gpu for size in instances("azure").values()})}
    divided = {gpu: profiles for gpu, profiles in named.items() if profiles}

    assert set(divided) == {"A100-40GB", "A100-80GB", "H100-80GB", "H100-94GB", "H200-141GB"}
    for gpu, profiles in divided.items():
        assert sorted(profiles.values()) == sorted(SLICES)
        for profile, name in profiles.items():
            assert gpus()[gpu].mig_slices[profile] == SLICES[name]
            assert profile.startswith(f"{name.removeprefix('MIG')}.")
            assert "+" not in profile
