"""API keys in a stack file and in Pulumi's configuration: known to be there, checked, and never shown."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.api_keys import read_keys
from planner.errors import PlanError
from planner.plan import FleetPlan, plan_file, plan_values
from planner.pulumi_config import SECRET, config_of, values_of
from planner.stack_file import read_stack_file

STACKS = Path(__file__).parents[2] / "stacks"
KEY = "sk-" + "k" * 40


def plan(**values: Any) -> FleetPlan:
    return plan_values({**read_stack_file(STACKS / "Pulumi.aws-dev.yaml"), **values}, base_dir=STACKS)


def refused(**values: Any) -> str:
    with pytest.raises(PlanError) as refusal:
        plan(**values)
    return str(refusal.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"team-a": KEY},
        {"team-a": {"secure": "v1:abc"}, "b": {"secure": "v1:def"}},
        {"secure": "v1:abc"},
        SECRET,
    ],
    ids=["decrypted", "in the file", "in the file as a whole", "synthesised"],
)
def test_keys_are_known_to_be_there_and_never_kept(keys: Any) -> None:
    found = plan(api_keys=keys)
    assert found.infrastructure
    assert KEY not in repr(found)
    assert "abc" not in repr(found)


def test_limits_are_of_keys_by_name() -> None:
    found = plan(api_keys={"team-a": KEY}, key_limits={"team-a": {"tokens_per_minute": 1000}})
    assert found.infrastructure
    assert found.infrastructure.key_limits["team-a"].tokens_per_minute == 1000
    assert plan(key_limits={"default": {"requests_per_minute": 60}}).infrastructure, "the key that is made"
    assert plan(api_keys={"secure": "v1:abc"}, key_limits={"any": {"requests_per_minute": 60}}).infrastructure

    assert "did you mean team-a" in refused(api_keys={"team-a": KEY}, key_limits={"team-b": {}})
    assert "key_limits.a" in refused(key_limits={"a": {}})
    assert "requests_per_minute" in refused(key_limits={"default": {"requests_per_minute": 0}})


@pytest.mark.parametrize(
    "keys", [{}, [], "text", 3, None, {"a": "short"}, {"a": 7}, {"A b": KEY}, {"a": KEY, "b": KEY}]
)
def test_what_could_let_nobody_in_or_anybody_is_refused_without_showing_it(keys: Any) -> None:
    said = refused(api_keys=keys)
    assert "api_keys" in said
    assert KEY not in said
    assert "short" not in said.replace("shorter", "")


def test_keys_in_plain_text_are_refused_where_they_would_be_committed(tmp_path: Path) -> None:
    text = (STACKS / "Pulumi.aws-dev.yaml").read_text()
    file = tmp_path / "Pulumi.plain.yaml"
    for plain in (f"{{team-a: {KEY}}}", KEY):
        file.write_text(f"{text}  tritonfleet:api_keys: {plain}\n")
        with pytest.raises(PlanError, match="plain text") as refusal:
            plan_file(file)
        assert KEY not in str(refusal.value)
    for encrypted in ("{team-a: {secure: 'v1:abc'}}", "{secure: 'v1:abc'}"):
        file.write_text(f"{text}  tritonfleet:api_keys: {encrypted}\n")
        assert plan_file(file).models


@pytest.mark.parametrize("keys", [{"team-a": {"secure": "v1:abc"}}, {"secure": "v1:abc"}], ids=str)
def test_what_cannot_be_decrypted_goes_through_pulumis_configuration(keys: Any) -> None:
    config, secret = config_of({"api_keys": keys, "cloud": "aws"})

    assert secret == {"tritonfleet:api_keys"}
    assert "abc" not in repr(config)
    text = config["tritonfleet:api_keys"]
    values = values_of(config)
    assert plan(api_keys=values["api_keys"]).infrastructure
    assert set(read_keys(text)) == ({"team-a"} if "team-a" in keys else set())


def test_what_pulumi_has_decrypted_is_read() -> None:
    assert read_keys(json.dumps({"team-a": KEY})) == {"team-a": KEY}


def test_a_laptops_stack_has_no_keys() -> None:
    values = {k: v for k, v in read_stack_file(STACKS / "Pulumi.local.yaml").items() if k not in ("existing", "images")}
    with pytest.raises(PlanError, match="api_keys"):
        plan_values({**values, "api_keys": {"a": KEY}}, base_dir=STACKS)
