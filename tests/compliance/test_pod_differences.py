"""The pods of the three clouds' 405B stacks differ in a few fields, each with a reason, and a page says which."""

import os
import re
from pathlib import Path

from tests.compliance.pod_differences import differences, page

PAGE = Path(__file__).parents[2] / "docs" / "clouds-405b-pods.md"

CONTAINER = r"spec\.containers\[triton\]\."
MAY_DIFFER = {
    "pool and its taints": r"spec\.(nodeSelector|tolerations)\b.*",
    "size of the nodes": CONTAINER + r"resources\.(limits|requests)\.(cpu|memory)",
    "network between the nodes": (
        CONTAINER
        + r"(resources\.(limits|requests)\.(hugepages-2Mi|rdma/ib|vpc\.amazonaws\.com/efa)|env\[(FI|NCCL|OMPI)_\w+\])"
        r"|metadata\.annotations\.networking\.gke\.io/.*"
    ),
    "notice of spot nodes": (
        r"spec\.terminationGracePeriodSeconds|"
        + CONTAINER
        + r"(command\[--drain-seconds\]|lifecycle\.preStop\.sleep\.seconds)"
    ),
    "rate of the shared storage": CONTAINER + r"(startup|liveness)Probe\.failureThreshold",
    "engine of the GPU": (
        CONTAINER + r"command\[--engine\]|spec\.initContainers\[frontend\]\.command\[--tokenizer\]"
        r"|spec\.volumes\[models\]\.configMap\.name"
    ),
}
"""Why a field may differ -> which fields do."""


def test_pods_differ_in_what_clouds_differ_in() -> None:
    fields = {path.removeprefix("leader: ").removeprefix("worker: ") for path in differences()}
    unexplained = [path for path in fields if not any(re.fullmatch(one, path) for one in MAY_DIFFER.values())]
    assert unexplained == []
    unneeded = [why for why, one in MAY_DIFFER.items() if not any(re.fullmatch(one, path) for path in fields)]
    assert unneeded == []


def test_the_page_is_current() -> None:
    text = page(differences())
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text, "write it anew: UPDATE_GOLDEN=1"
