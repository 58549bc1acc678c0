"""The pack as Pulumi's engine talks to it, over the engine's own protocol."""

import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2, struct_pb2
from pulumi.runtime.proto import analyzer_pb2, analyzer_pb2_grpc

from policy.rules import RULES
from policy.settings import Ceilings

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "policy" / "bin" / "python"
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""How the engine writes a string that no preview knows."""


@pytest.fixture(scope="module")
def pack() -> Generator[Any]:
    if not PYTHON.exists():
        pytest.skip("the policy pack's environment is not in .venv/policy: `make policy` makes it")
    process = subprocess.Popen([PYTHON, "-u", ROOT / "policy"], cwd=ROOT / "tests", stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        with grpc.insecure_channel(f"127.0.0.1:{int(process.stdout.readline())}") as channel:
            yield analyzer_pb2_grpc.AnalyzerStub(channel)
    finally:
        process.kill()
        process.wait()


def test_it_tells_the_engine_every_rule_and_what_each_takes(pack: Any) -> None:
    told = {policy.name: policy for policy in pack.GetAnalyzerInfo(empty_pb2.Empty()).policies}
    levels = {name.removesuffix("-stack"): policy.enforcementLevel for name, policy in told.items()}
    mandatory, advisory = analyzer_pb2.EnforcementLevel.MANDATORY, analyzer_pb2.EnforcementLevel.ADVISORY
    assert levels == {rule.name: mandatory if rule.mandatory else advisory for rule in RULES}
    schema = told["cost-ceiling"].configSchema.properties["ceilings"]
    assert schema["items"]["required"] == ["stacks", "usd_per_month"]
    assert schema["default"][0]["usd_per_month"] == Ceilings().ceilings[0].usd_per_month


@pytest.mark.parametrize(("encrypted", "faults"), [(True, 0), (False, 1)])
def test_it_judges_what_is_known_beside_what_is_not(pack: Any, encrypted: bool, faults: int) -> None:
    properties = struct_pb2.Struct()
    properties.update({"kmsKeyId": UNKNOWN, "encrypted": encrypted, "tags": {"a": UNKNOWN}, "list": [UNKNOWN]})
    answer = pack.Analyze(
        analyzer_pb2.AnalyzeRequest(
            type="aws:efs/fileSystem:FileSystem",
            urn="urn:pulumi:dev::tritonfleet::aws:efs/fileSystem:FileSystem::files",
            name="files",
            properties=properties,
        )
    )
    assert [one.policyName for one in answer.diagnostics] == ["no-unencrypted-storage"] * faults
    assert all("files: encrypted is not true" in one.message for one in answer.diagnostics)
