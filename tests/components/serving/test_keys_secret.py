"""API keys: one Secret of digests, changed in place; a stack without keys gets one."""

import hashlib
import json
from typing import Any

from tests.components.serving.stacks import LARGE, MIG, Values, planned, served
from tests.components.serving.test_serving_component import changed
from tests.components.world import Recorded, Registered

KEY, OTHER = "sk-" + "a" * 40, "sk-" + "b" * 40


def secret(recorded: Recorded) -> Registered:
    return recorded.one("Secret", "-api-keys-")


def keys(recorded: Recorded) -> list[dict[str, Any]]:
    return json.loads(secret(recorded).inputs["stringData"]["keys.json"])["keys"]


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def limited(values: Values) -> None:
    values["api_keys"] = {"team-a": KEY, "team-b": OTHER}
    values["key_limits"] = {"team-a": {"requests_per_minute": 60}}


def test_the_stacks_keys_are_kept_as_digests_with_their_limits() -> None:
    recorded = served(planned(LARGE, limited), api_keys=json.dumps({"team-b": OTHER, "team-a": KEY}))

    assert keys(recorded) == [
        {"name": "team-a", "sha256": sha256(KEY), "requests_per_minute": 60},
        {"name": "team-b", "sha256": sha256(OTHER)},
    ]
    assert secret(recorded).secrets == {"stringData"}
    assert secret(recorded).inputs["metadata"]["name"] == "api-keys"
    assert not recorded.of("RandomPassword", "api-keys")
    assert "generated" not in recorded.outputs
    assert KEY not in repr([one.inputs for one in recorded])


def test_a_stack_without_keys_gets_one_and_is_told_it() -> None:
    recorded = served(planned(MIG))
    (password,) = recorded.of("RandomPassword", "api-keys")

    assert password.inputs["length"] >= 43
    assert password.provider, "default providers are off"
    assert recorded.outputs["generated"] == {"default": f"sk-{password.name}-result"}
    assert "generated" in recorded.secrets
    assert keys(recorded) == [{"name": "default", "sha256": sha256(f"sk-{password.name}-result")}]


def test_another_key_changes_the_secret_in_place_and_no_pod() -> None:
    plan = planned(LARGE)
    before = served(plan, api_keys=json.dumps({"team-a": KEY}))
    after = served(plan, api_keys=json.dumps({"team-a": OTHER}))

    assert changed(before, after) == {"kubernetes:core/v1:Secret"}
    assert secret(before).urn == secret(after).urn
    assert "immutable" not in secret(after).inputs
    provider = secret(after).provider
    assert provider
    assert after.resources[provider].inputs["enableSecretMutable"] == "true", "or Pulumi would delete it first"


def test_pods_wait_for_the_secret() -> None:
    recorded = served(planned(MIG))
    for group in recorded.of("LeaderWorkerSet"):
        assert secret(recorded).urn in group.depends_on


def test_where_nobody_can_decrypt_there_are_no_keys() -> None:
    """`fleet synth` renders a stack whose keys it cannot read."""
    assert keys(served(planned(LARGE), api_keys="[secret]")) == []
