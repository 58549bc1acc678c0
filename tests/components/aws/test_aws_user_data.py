"""What nodes do before their kubelet starts. UPDATE_GOLDEN=1 writes the golden documents anew."""

import email
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.clouds.aws.user_data import user_data
from planner.fleet import NodeGroupPlan, PoolPlan, StoragePlan
from tests.components.aws.stacks import EXAMPLES, built, script, site

GOLDEN = Path(__file__).parents[2] / "golden" / "user_data"


def nodes(stack: str) -> Iterator[tuple[PoolPlan, NodeGroupPlan, StoragePlan]]:
    plan = site(stack)
    for pool in plan.pools:
        for group in pool.node_groups:
            yield pool, group, plan.storage


def parts(document: str) -> dict[str, str]:
    """Parts of a MIME document by content type, as cloud-init and nodeadm take it apart."""
    message = email.message_from_string(document)
    assert message.is_multipart()
    found: list[Message] = [part for part in message.walk() if not part.is_multipart()]
    return {part.get_content_type(): str(part.get_payload()) for part in found}


def config(document: str) -> Any:
    return yaml.safe_load(parts(document)["application/node.eks.aws"])


def shell(document: str) -> str:
    return parts(document)["text/x-shellscript"]


def first(stack: str, **storage: object) -> str:
    pool, group, planned = next(nodes(stack))
    text = user_data(pool, group, replace(planned, **storage))  # pyright: ignore[reportArgumentType]
    assert text is not None
    return text


@pytest.mark.parametrize("stack", EXAMPLES)
def test_golden(stack: str) -> None:
    text = "\n".join(f"# {group.name}\n{user_data(pool, group, storage)}" for pool, group, storage in nodes(stack))
    golden = GOLDEN / f"{stack}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)

    assert text == golden.read_text()


@pytest.mark.parametrize("stack", EXAMPLES)
def test_launch_templates_carry_it(stack: str) -> None:
    recorded = built(stack)

    for pool, group, storage in nodes(stack):
        assert script(recorded.one("LaunchTemplate", f"fleet-{group.name}")) == user_data(pool, group, storage)


def test_local_disks_become_one_array_under_the_kubelet_and_containerd() -> None:
    document = config(first("aws-dev"))

    assert (document["apiVersion"], document["kind"]) == ("node.eks.aws/v1alpha1", "NodeConfig")
    assert document["spec"] == {"instance": {"localStorage": {"strategy": "RAID0"}}}


def test_local_disks_stay_unused_where_the_stack_or_the_type_has_none() -> None:
    pool, group, storage = next(nodes("aws-dev"))

    assert user_data(pool, group, replace(storage, node_cache=False)) is None
    assert user_data(replace(pool, local_nvme_gb=0), group, storage) is None


def test_rdma_nodes_set_huge_pages_aside_and_let_pods_pin_memory() -> None:
    steps = shell(first("aws-llama-405b"))

    assert "vm.nr_hugepages = 5128\n" in steps
    assert "sysctl --load=/etc/sysctl.d/90-tritonfleet.conf" in steps
    assert "[Service]\nLimitMEMLOCK=infinity\n" in steps
    assert "containerd.service.d" in steps
    assert "systemctl daemon-reload" in steps
    assert "nr_hugepages" not in first("aws-small-mig")
    assert "MEMLOCK" not in first("aws-small-mig")


def test_start_up_taints_are_registered_by_the_kubelet_beside_the_groups_own() -> None:
    pool, group, storage = next(nodes("aws-small-mig"))
    document = user_data(pool, group, storage)
    assert document is not None
    steps = shell(document)
    lines = steps.partition("cat > /etc/eks/nodeadm.d/90-startup-taints.yaml <<'END'\n")[2].partition("\nEND")[0]
    (flag,) = yaml.safe_load(lines)["spec"]["kubelet"]["flags"]

    name, _, value = flag.partition("=")
    assert name == "--register-with-taints"
    assert value.split(",") == [
        f"{taint.key}={taint.value}:{taint.effect}" for taint in (*group.taints, *group.startup_taints)
    ]
    # EKS would put back what stands on the node group.
    on_group = built("aws-small-mig").one("NodeGroup", "mig-spot").inputs["taints"]
    assert not {taint["key"] for taint in on_group} & {taint.key for taint in group.startup_taints}
    assert "register-with-taints" not in first("aws-llama-405b")


def test_nodes_get_the_client_of_the_file_system_that_they_mount() -> None:
    assert "dnf install -y lustre-client" in shell(first("aws-dev", kind="lustre"))
    assert "lustre-client" not in first("aws-dev")


def test_system_nodes_get_it_too_for_the_job_that_downloads_weights() -> None:
    template = built("aws-llama-405b").one("LaunchTemplate", "system")
    assert "dnf install -y lustre-client" in parts(script(template))["text/x-shellscript"]
    assert "userData" not in built("aws-llama-70b").one("LaunchTemplate", "system").inputs


@pytest.mark.parametrize("stack", EXAMPLES)
def test_scripts_are_sound_shell(stack: str) -> None:
    for pool, group, storage in nodes(stack):
        found = parts(user_data(pool, group, storage) or "").get("text/x-shellscript")
        if found is not None:
            assert found.startswith("#!/bin/bash\nset -euo pipefail\n")
            subprocess.run(["bash", "-n"], input=found, text=True, check=True)


def test_the_script_writes_the_files_it_says(tmp_path: Path) -> None:
    """Run for real, with every path moved below a folder and the commands that change a system left out."""
    pool, group, storage = next(nodes("aws-llama-405b"))
    taints = next(nodes("aws-small-mig"))[1].startup_taints
    steps = shell(user_data(pool, replace(group, startup_taints=taints), storage) or "")
    stubs = "".join(f"{command}() {{ :; }}\n" for command in ("sysctl", "systemctl", "dnf", "sleep"))
    subprocess.run(["bash"], input=stubs + steps.replace("/etc/", f"{tmp_path}/etc/"), text=True, check=True)

    assert (tmp_path / "etc/sysctl.d/90-tritonfleet.conf").read_text() == "vm.nr_hugepages = 5128\n"
    limit = tmp_path / "etc/systemd/system/containerd.service.d/90-memlock.conf"
    assert limit.read_text() == "[Service]\nLimitMEMLOCK=infinity\n"
    drop_in = yaml.safe_load((tmp_path / "etc/eks/nodeadm.d/90-startup-taints.yaml").read_text())
    assert drop_in["kind"] == "NodeConfig"
