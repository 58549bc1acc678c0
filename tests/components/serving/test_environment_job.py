"""The packages of pods without a GPU: installed once, on nodes without GPUs, by a pod that may do nothing else."""

from pathlib import Path

import pytest

from components.serving import config_maps, environment
from planner.versions import PYTHON_IMAGE
from tests.components.serving.stacks import LARGE, MIG, Values, planned, served, variables
from tests.components.serving.test_serving_files import in_container
from tests.components.world import Recorded, Registered


def job(recorded: Recorded) -> Registered:
    return recorded.one("Job", "-environment-")


def pod(recorded: Recorded) -> Values:
    return job(recorded).inputs["spec"]["template"]["spec"]


def test_it_is_installed_in_the_image_that_imports_it() -> None:
    recorded = served()
    (install,) = pod(recorded)["containers"]
    name = environment.environment_name()

    assert install["image"] == PYTHON_IMAGE
    assert install["command"] == [
        *("python3", "-m", "runtime.environment", "--requirements", "/opt/tritonfleet/pods.txt"),
        *("--into", "/shared/environments", "--name", name),
    ]
    assert variables(install)["PYTHONPATH"] == "/opt/tritonfleet", "nothing of what it is to install"
    text = (Path(environment.__file__).parents[2] / "requirements" / "pods.txt").read_text()
    files = in_container(recorded, job(recorded).inputs["spec"]["template"], "install")
    assert files["/opt/tritonfleet/pods.txt"] == text
    assert "/opt/tritonfleet/runtime/environment.py" in files
    claim = {"claimName": "engines-rw", "readOnly": False}
    assert {"name": "shared", "persistentVolumeClaim": claim} in pod(recorded)["volumes"]


def test_other_packages_and_another_python_are_another_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = environment.environment_name()
    monkeypatch.setattr(environment, "PYTHON_IMAGE", PYTHON_IMAGE.replace("3.13.15", "3.14.1"))
    newer = environment.environment_name()
    monkeypatch.setattr(environment, "PYTHON_IMAGE", PYTHON_IMAGE.replace("3.13.15", "3.13.16"))
    assert environment.environment_name() == before, "wheels are built for 3.13"
    other = tmp_path / "pods.txt"
    other.write_text(config_maps.REQUIREMENTS.read_text() + "\n")
    monkeypatch.setattr(environment, "requirements_file", lambda: config_maps.requirements_file(other))
    assert len({before, newer, environment.environment_name()}) == 3


@pytest.mark.parametrize("stack", [LARGE, MIG])
def test_one_installation_serves_every_model_and_takes_no_gpu(stack: str) -> None:
    recorded = served(planned(stack))
    assert not pod(recorded).get("tolerations")
    assert not pod(recorded).get("nodeSelector")
    assert "nvidia.com" not in repr(pod(recorded))
    for group in recorded.of("LeaderWorkerSet"):
        assert job(recorded).urn in group.depends_on


def test_it_has_a_way_out_and_nothing_that_could_be_taken_out() -> None:
    recorded = served()
    policy = recorded.one("NetworkPolicy", "-environment-")
    assert policy.urn in job(recorded).depends_on
    labels = job(recorded).inputs["spec"]["template"]["metadata"]["labels"]
    assert policy.inputs["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert not [volume for volume in pod(recorded)["volumes"] if "secret" in volume]
    (account,) = [a for a in recorded.of("ServiceAccount") if a.inputs["metadata"]["name"] == "environment"]
    assert pod(recorded)["serviceAccountName"] == "environment"
    assert "annotations" not in account.inputs["metadata"]
    assert account.urn in job(recorded).depends_on
