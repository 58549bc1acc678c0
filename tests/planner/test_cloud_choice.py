"""The choice of a cloud: sections of others, what it cannot do without, and what it does not give."""

from pathlib import Path
from typing import Any

import pytest
from sample_sites import CLOUDS, MODEL, Change, pool, problems, refused, section, top

from planner.clouds import cloud_facts
from planner.clouds.facts import Unsupported
from planner.errors import PlanError
from planner.plan import plan_values

SECTIONS: dict[str, dict[str, Any]] = {
    "aws": {"account": "123456789012"},
    "gcp": {"project": "some-project"},
    "azure": {"subscription": "01234567-89ab-cdef-0123-456789abcdef"},
    "existing": {"storage_class": "fast"},
}
SUBNETS: dict[str, Any] = {"id": "some-network", "private_subnets": {}}
# How a stack file asks for what some cloud does not give.
ASKS: dict[str, Change] = {
    "network.existing": section("network", existing=SUBNETS),
    "network.nat_per_zone": section("network", nat_per_zone=True),
    "images.pull_through": section("images", pull_through=True),
    "storage.nfs_capacity_gib": section("storage", nfs_capacity_gib=2048),
    "pools[].capacity=flex-start": pool(capacity=["flex-start"]),
    "pools[].queued": pool(queued=True),
    "pools[].max_price_usd_h": pool(max_price_usd_h=3.5),
}


def unsupported(cloud: str, *changes: Change) -> dict[str, Unsupported]:
    """What is refused because the cloud does not have it: why, by the key that asks."""
    words = f", and this program does not do that on {cloud_facts(cloud).title}"
    found = [problem for problem in problems(cloud, *changes) if problem.what.endswith(words)]
    return {problem.key: Unsupported(reason=problem.consequence, instead=problem.fix) for problem in found}


def place(key: str) -> str:
    return key.partition("=")[0].replace("[]", "[0]")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_section_of_another_cloud_is_refused(cloud: str) -> None:
    found = refused(cloud, *(section(name, **values) for name, values in SECTIONS.items() if name != cloud))
    assert found.keys() == SECTIONS.keys() - {cloud}
    assert all("no effect" in problem.consequence for problem in found.values())
    own = section(cloud, **SECTIONS[cloud])
    assert problems(cloud, own) == []


def test_sections_of_clouds_are_nothing_to_a_laptop() -> None:
    laptop = {"cloud": "existing", "models": [MODEL | {"backend": "cpu", "source": "hf://a/b"}]}
    for name in ("aws", "gcp", "azure", "allow_replacement", "network"):
        with pytest.raises(PlanError, match=f"(?m)^{name}: is for"):
            plan_values({**laptop, name: SECTIONS.get(name, [])}, base_dir=Path())


@pytest.mark.parametrize("removed", [top(gcp=None), top(gcp={})], ids=["section", "key"])
def test_what_a_cloud_cannot_do_without_is_missed(removed: Change) -> None:
    assert [problem.key for problem in problems("gcp", removed)] == ["gcp.project"]
    assert "project" in refused("gcp", removed)["gcp.project"].fix


def test_every_unsupported_key_can_be_asked_for_here() -> None:
    assert {key for cloud in CLOUDS for key in cloud_facts(cloud).unsupported} == ASKS.keys()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_all_that_a_cloud_does_not_give_is_refused_at_once_with_reason_and_way_out(cloud: str) -> None:
    told = {place(key): why for key, why in cloud_facts(cloud).unsupported.items()}
    assert unsupported(cloud, *(ASKS[key] for key in cloud_facts(cloud).unsupported)) == told
    assert all(why.reason and why.instead for why in told.values())


@pytest.mark.parametrize("key", ASKS)
@pytest.mark.parametrize("cloud", CLOUDS)
def test_only_what_is_asked_for_and_not_given_is_refused(cloud: str, key: str) -> None:
    expected = {place(key)} if key in cloud_facts(cloud).unsupported else set[str]()
    assert unsupported(cloud, ASKS[key]).keys() == expected


@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_is_declined_is_not_asked_for(cloud: str) -> None:
    declined = [
        section("network", nat_per_zone=False, existing=None),
        section("images", pull_through=False),
        section("storage", nfs_capacity_gib=None),
        pool(queued=False, max_price_usd_h=None),
    ]
    assert problems(cloud, *declined) == []


def test_the_pool_that_asks_is_the_one_that_is_named() -> None:
    def second(stack: dict[str, Any]) -> None:
        stack["pools"].append({"name": "other", "instance_types": ["g6.xlarge"], "queued": True})

    assert unsupported("aws", second).keys() == {"pools[1].queued"}
