"""The stack's values as Pulumi's command line hands them over: texts, with JSON in them, secrets decrypted."""

from pathlib import Path

import pytest

from planner.errors import PlanError
from planner.parsing import parse_stack
from planner.pulumi_config import SECRET, config_of, values_of
from planner.stack_file import read_stack_file

STACKS = sorted((Path(__file__).parents[2] / "stacks").glob("Pulumi.*.yaml"))


@pytest.mark.parametrize("path", STACKS, ids=lambda path: path.stem)
def test_texts_hold_what_the_stack_file_holds(path: Path) -> None:
    values = read_stack_file(path)
    config, secret_keys = config_of(values)
    assert all(isinstance(text, str) for text in config.values())
    back = values_of(config)
    assert {key: back[key] for key in values if f"tritonfleet:{key}" not in secret_keys} == {
        key: value for key, value in values.items() if f"tritonfleet:{key}" not in secret_keys
    }


def test_only_our_namespace_is_read_and_unknown_keys_stay_to_be_refused() -> None:
    values = values_of({"aws:region": "us-east-1", "tritonfleet:cloud": "existing", "tritonfleet:modles": "[]"})
    assert values == {"cloud": "existing", "modles": []}
    problems = parse_stack(values).problems
    assert any(problem.key == "modles" and "models" in problem.fix for problem in problems)


def test_what_begins_like_json_and_is_not_is_refused_key_by_key() -> None:
    config = {"tritonfleet:models": "[{'name': 1}]", "tritonfleet:network": '{"cidr": ', "tritonfleet:cloud": "aws"}
    with pytest.raises(PlanError) as raised:
        values_of(config)
    assert [problem.key for problem in raised.value.problems] == ["models", "network"]
    assert "pulumi config set tritonfleet:models" in raised.value.problems[0].fix
    with pytest.raises(PlanError, match="not valid JSON"):
        values_of({"tritonfleet:models": "[" * 100_000})


def test_encrypted_values_are_secret_and_masked() -> None:
    config, secret_keys = config_of({"hugging_face_token": {"secure": "v1:abc"}, "cloud": "aws"})
    assert config == {"tritonfleet:hugging_face_token": SECRET, "tritonfleet:cloud": "aws"}
    assert secret_keys == {"tritonfleet:hugging_face_token"}
    assert values_of(config)["hugging_face_token"] == SECRET
