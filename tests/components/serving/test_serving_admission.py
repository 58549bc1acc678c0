"""Serving pods before a real API server: admitted under `restricted`, and kept to their own group by it."""

from collections.abc import Generator

import pytest

from components.serving.labels import GROUP_INDEX_LABEL, SET_LABEL, set_name
from tests.cluster.control_plane import ControlPlane, control_plane
from tests.components.serving.stacks import (
    EXAMPLES,
    LARGE,
    Values,
    every_template,
    fetch_of,
    objects,
    planned,
    served,
    templates,
    with_source,
)

NAMESPACE = "tritonfleet"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ControlPlane]:
    """A real API server with the serving namespace; skips where its binaries are not installed."""
    with control_plane(tmp_path_factory.mktemp("serving")) as running:
        enforced = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
        running.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": enforced}}])
        yield running


def pod(template: Values, **labels: str) -> Values:
    metadata = {"name": "pod", "namespace": NAMESPACE, "labels": {**template["metadata"]["labels"], **labels}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def accounts(recorded_templates: list[Values]) -> list[Values]:
    names = {template["spec"]["serviceAccountName"] for template in recorded_templates}
    metadata = [{"name": name, "namespace": NAMESPACE} for name in sorted(names)]
    return [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": one} for one in metadata]


@pytest.mark.parametrize("stack", EXAMPLES)
def test_all_objects_and_pods_are_admitted_without_a_warning(cluster: ControlPlane, stack: str) -> None:
    recorded = served(planned(stack))
    # The control plane of tests has no LeaderWorkerSet; its pods are what is judged.
    known = [one.inputs for one in objects(recorded) if one.inputs["kind"] != "LeaderWorkerSet"]
    assert cluster.refusal(known) == ""
    cluster.apply(accounts(every_template(recorded)))
    for template in every_template(recorded):
        assert cluster.refusal([pod(template)]) == ""


def test_a_pod_that_reads_a_bucket_as_somebody_is_admitted_like_the_others(cluster: ControlPlane) -> None:
    recorded = served(with_source(planned(LARGE), "s3://elsewhere/llama"))
    known = [one.inputs for one in objects(recorded) if one.inputs["kind"] != "LeaderWorkerSet"]
    assert cluster.refusal(known) == ""
    template = fetch_of(recorded).inputs["spec"]["template"]
    cluster.apply(accounts([template]))
    assert cluster.refusal([pod(template)]) == ""


def test_a_pod_that_could_gain_rights_would_be_refused(cluster: ControlPlane) -> None:
    (leader, _) = templates(served(planned(LARGE)), "llama-405b").values()
    cluster.apply(accounts([leader]))
    leader["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True

    assert "violates PodSecurity" in cluster.refusal([pod(leader)])


def test_the_group_that_admission_names_is_the_one_that_a_pod_stays_with(cluster: ControlPlane) -> None:
    """LeaderWorkerSet's webhook gives a leader its group's index while the pod is admitted; a policy does so here."""
    cluster.apply(policy({GROUP_INDEX_LABEL: "3"}))
    leader = templates(served(planned(LARGE)), "llama-405b")["leader"]
    cluster.apply(accounts([leader]))
    labels: Values = {}
    for _ in range(100):  # a policy takes effect some time after it was accepted
        cluster.apply([pod(leader, **{SET_LABEL: set_name("llama-405b")})])
        made = cluster.get("pod", "pod", "--namespace", NAMESPACE)
        labels = made["metadata"]["labels"]
        if GROUP_INDEX_LABEL in labels:
            break
        cluster.kubectl("delete", "pod", "pod", "--namespace", NAMESPACE, "--now")
    else:
        pytest.fail("the policy never took effect")

    assert labels[GROUP_INDEX_LABEL] == "3"
    for term in made["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]:
        assert term["labelSelector"] == {
            "matchLabels": {SET_LABEL: "llama-405b-group"},
            "matchExpressions": [{"key": GROUP_INDEX_LABEL, "operator": "In", "values": ["3"]}],
        }


def policy(labels: dict[str, str]) -> list[Values]:
    """What adds labels to every pod that is created."""
    texts = ", ".join(f'"{key}": "{value}"' for key, value in labels.items())
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    expression = f"Object{{metadata: Object.metadata{{labels: {{{texts}}}}}}}"
    mutation = {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}
    spec = {
        "matchConstraints": {"resourceRules": [rule]},
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [mutation],
    }
    common = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "labels"}}
    binding = {"policyName": "labels"}
    return [
        {**common, "kind": "MutatingAdmissionPolicy", "spec": spec},
        {**common, "kind": "MutatingAdmissionPolicyBinding", "spec": binding},
    ]
