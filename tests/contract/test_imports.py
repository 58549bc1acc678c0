"""A stack pays for its own cloud's SDK alone."""

import json
import subprocess
import sys

import pytest

from tests.contract.programs import STACKS, cloud_of, values_of

SDKS = {
    "aws": {"pulumi_aws", "pulumi_eks"},
    "gcp": {"pulumi_gcp"},
    "azure": {"pulumi_azure_native"},
    "existing": set[str](),
}
STACK_FILES = sorted(path.name.split(".")[1] for path in STACKS.glob("Pulumi.*-*.yaml"))
SCRIPT = """
import json, sys
from fleet.synthesis import synthesize
assert synthesize(json.load(sys.stdin), stack="stack").files
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("case", [*STACK_FILES, "existing"])
def test_a_stack_imports_its_own_clouds_sdk_alone(case: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=STACKS.parent,
        input=json.dumps(values_of(case)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    loaded = {name for name in json.loads(done.stdout) if name.startswith("pulumi_")}

    assert loaded & set[str]().union(*SDKS.values()) == SDKS[cloud_of(case)]
    assert "pulumi_kubernetes" in loaded, "the list holds what was imported"
