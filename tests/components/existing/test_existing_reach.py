"""What must be true of an existing cluster before anything is registered: asked of the file, and of the cluster."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from components.clouds.existing import reach
from components.clouds.existing.reach import problems_of
from planner.cloud_config import ExistingConfig
from tests.cluster.control_plane import ControlPlane, control_plane
from tests.components.existing.api_server import Answers, api_server, kubeconfig
from tests.ports import free_ports


def existing(path: Path | str, **changed: object) -> ExistingConfig:
    values = {"kubeconfig": str(path), "storage_class": "standard", "access_mode": "ReadWriteOnce", **changed}
    return ExistingConfig.model_validate(values)


def found(config: ExistingConfig) -> dict[str, str]:
    """What is wrong by key; every problem has all of its parts."""
    problems = problems_of(config)
    assert all(problem.consequence and problem.fix for problem in problems)
    return {problem.key: f"{problem.what}; {problem.fix}" for problem in problems}


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """A function: what is wrong with a cluster that answers so, `config` changed."""

    def ask(answers: Answers, **config: object) -> dict[str, str]:
        with api_server(answers) as url:
            return found(existing(kubeconfig(tmp_path / "config", url), **config))

    return ask


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "No such file"),
        ("", "is empty"),
        ("  \n", "is empty"),
        ("a: [", "is not YAML"),
        ("\x00", "is not YAML"),
        ("just words", "has no contexts"),
        ("{contexts: 3}", "has no contexts"),
        ("{contexts: [{}]}", "has no contexts"),
        ("{contexts: [{name: kind}]}", "has no current one"),
        ("{contexts: [{name: a}, {name: b}], current-context: a}", "give one of a, b"),
        ("{contexts: [{name: a}], current-context: a}", "cannot be used"),
        ("{contexts: [{name: a, context: {cluster: c, user: u}}], current-context: a}", "cannot be used"),
    ],
)
def test_a_kubeconfig_at_fault_is_refused_without_asking_anybody(tmp_path: Path, text: str | None, what: str) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    key = "existing.context" if what.startswith(("has no current", "give one")) else "existing.kubeconfig"

    problems = found(existing(path))

    assert list(problems) == [key]
    assert what in problems[key]


@pytest.mark.parametrize(
    "part",
    [
        {"clusters": 3},
        {"clusters": [{"name": "test", "cluster": 5}]},
        {"clusters": [{"name": "test", "cluster": {"server": 5}}]},
        {"clusters": [{"name": "test", "cluster": {"server": "https://a", "certificate-authority": "/nowhere"}}]},
        {"contexts": [{"name": "test", "context": 5}]},
        {"users": [{"name": "test", "user": {"auth-provider": {"name": "gcp"}}}]},
        {"users": [{"name": "test", "user": {"auth-provider": {"name": "oidc", "config": {"x": "hidden"}}}}]},
        {"users": [{"name": "test", "user": {"token": "a\nhidden"}}]},
    ],
)
def test_a_kubeconfig_of_an_odd_shape_is_refused_and_its_secrets_are_not_told(
    tmp_path: Path, part: dict[str, object]
) -> None:
    path = kubeconfig(tmp_path / "config", "http://127.0.0.1:1")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | part))

    (said,) = found(existing(path)).values()

    assert "cannot be used" in said or "does not answer" in said
    assert "hidden" not in said


def test_a_folder_and_a_file_of_other_bytes_are_no_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")

    assert "Is a directory" in found(existing(tmp_path))["existing.kubeconfig"]
    assert "is not YAML" in found(existing(tmp_path / "binary"))["existing.kubeconfig"]


def test_home_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with api_server(Answers()) as url:
        kubeconfig(tmp_path / "config", url)

        assert found(existing("~/config")) == {}


def test_a_context_that_is_not_there_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", "http://127.0.0.1:1", contexts=["kind-fleet", "production"])

    assert "did you mean kind-fleet?" in found(existing(path, context="kind-flete"))["existing.context"]


def test_a_cluster_that_has_everything_is_taken_and_left_as_it_is(asked: Callable[..., dict[str, str]]) -> None:
    answers = Answers()

    assert asked(answers) == {}
    # A review is an answer, not an object.
    assert {line for line in answers.asked if not line.startswith("GET ")} == {
        "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    }


def test_everything_that_a_cluster_lacks_is_said_at_once(asked: Callable[..., dict[str, str]]) -> None:
    answers = Answers(version={"major": "1", "minor": "30+"}, classes={"fast": "a", "slow": "b"}, refused=frozenset())

    problems = asked(answers, install_leader_worker_set=False)

    assert sorted(problems) == [
        "existing.context",
        "existing.install_leader_worker_set",
        "existing.storage_class",
    ]
    assert "1.30" in problems["existing.context"]
    assert "fast, slow" in problems["existing.storage_class"]


def test_a_slip_in_the_storage_class_is_told(asked: Callable[..., dict[str, str]]) -> None:
    assert "did you mean standard?" in asked(Answers(), storage_class="standart")["existing.storage_class"]
    assert "it has none" in asked(Answers(classes={}))["existing.storage_class"]


def test_a_class_of_one_node_is_not_for_many(asked: Callable[..., dict[str, str]]) -> None:
    nfs = Answers(classes={"standard": "nfs.csi.k8s.io"})

    assert "rancher.io/local-path" in asked(Answers(), access_mode="ReadWriteMany")["existing.access_mode"]
    assert asked(nfs, access_mode="ReadWriteMany") == {}


def test_a_user_who_may_not_make_what_is_needed_is_told_all_of_it(asked: Callable[..., dict[str, str]]) -> None:
    refused = frozenset({"namespaces", "customresourcedefinitions", "clusterroles"})

    said = asked(Answers(refused=refused))["existing.context"]
    brought = asked(Answers(refused=refused, groups=["apps", reach.LEADER_WORKER_SET]), install_leader_worker_set=False)

    assert "namespaces or customresourcedefinitions or clusterroles" in said
    assert "may not create namespaces;" in brought["existing.context"]


@pytest.mark.parametrize(
    ("status", "what"),
    [(401, "does not know the user"), (403, "the user may not"), (503, "answers with 503"), (302, "answers with 302")],
)
def test_a_cluster_that_does_not_let_us_look_says_why(
    asked: Callable[..., dict[str, str]], status: int, what: str
) -> None:
    answers = Answers(status={"/apis/storage.k8s.io/v1/storageclasses": status})

    assert what in asked(answers)["existing.context"]


def test_something_else_behind_the_address_is_no_cluster(asked: Callable[..., dict[str, str]]) -> None:
    assert "unlike a Kubernetes" in asked(Answers(version={"major": "one"}))["existing.context"]
    assert "answers with 404" in asked(Answers(status={"/version": 404}))["existing.context"]


def test_nobody_at_the_address_is_told(tmp_path: Path) -> None:
    (port,) = free_ports(1)

    said = found(existing(kubeconfig(tmp_path / "config", f"https://127.0.0.1:{port}")))

    assert "does not answer" in said["existing.context"]


def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_SECONDS", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        path = kubeconfig(tmp_path / "config", f"http://127.0.0.1:{mute.getsockname()[1]}")
        begun = time.monotonic()

        assert "does not answer" in found(existing(path))["existing.context"]
    # One try: the client's own default would be four.
    assert time.monotonic() - begun < 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("control-plane")) as running:
        running.apply(
            [
                {
                    "apiVersion": "storage.k8s.io/v1",
                    "kind": "StorageClass",
                    "metadata": {"name": "standard"},
                    "provisioner": "rancher.io/local-path",
                    "volumeBindingMode": "WaitForFirstConsumer",
                }
            ]
        )
        yield running


def test_a_real_cluster_answers_all_questions(cluster: ControlPlane) -> None:
    assert found(existing(cluster.kubeconfig)) == {}
    assert found(existing(cluster.kubeconfig, context="test")) == {}
    assert "give one of standard" in found(existing(cluster.kubeconfig, storage_class="nfs"))["existing.storage_class"]
    assert "ReadWriteMany" in found(existing(cluster.kubeconfig, access_mode="ReadWriteMany"))["existing.access_mode"]
    assert "install_leader" in str(found(existing(cluster.kubeconfig, install_leader_worker_set=False)))


def test_a_real_cluster_refuses_a_token_that_it_does_not_know(cluster: ControlPlane, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(cluster.kubeconfig.read_text().replace(cluster.admin_token, "another"))

    assert "does not know the user" in found(existing(path))["existing.context"]


def test_a_server_whose_certificate_nobody_vouches_for_is_not_believed(cluster: ControlPlane, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(cluster.kubeconfig.read_text().replace(f', "certificate-authority": "{cluster.ca_file}"', ""))

    assert "CERTIFICATE_VERIFY_FAILED" in found(existing(path))["existing.context"]


def test_an_account_without_rights_is_told_of_each(cluster: ControlPlane, tmp_path: Path) -> None:
    cluster.apply(
        [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody", "namespace": "default"}}]
    )
    account = cluster.service_account("default", "nobody", tmp_path / "account")
    path = tmp_path / "config"
    path.write_text(cluster.kubeconfig.read_text().replace(cluster.admin_token, (account / "token").read_text()))

    problems = problems_of(existing(path))

    assert [problem.key for problem in problems] == ["existing.context", "existing.context"]
    assert "does not let us look: the user may not" in problems[0].what
    assert "may not create namespaces or customresourcedefinitions or clusterroles" in problems[1].what
