"""`fleet diff` and the real engine, asked about the same edits: both say the same of every resource."""

import json
import re
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fleet.diff.compare import Action, Resource, ResourceChange, compare
from fleet.diff.revisions import rendered
from tests.components.existing.api_server import Answers, api_server, kubeconfig
from tests.engine.conftest import Project, SimulatedClouds, make_project, skip_without_cli, with_program

OPERATIONS: Mapping[str, Action] = {
    "create": "added",
    "update": "changed",
    "replace": "replaced",
    "create-replacement": "replaced",
    "delete-replaced": "replaced",
    "delete": "deleted",
}
EKS, CLUSTER = "eks:index:Cluster", "$aws:eks/cluster:Cluster"

# Without `keep_data` nothing is protected: what is, the engine refuses, and says little of the rest.
STACK = """\
config:
  tritonfleet:cloud: aws
  tritonfleet:region: us-east-1
  tritonfleet:network: {cidr: 10.40.0.0/16, zones: [use1-az4, use1-az6]}
  tritonfleet:cluster: {api_cidrs: [198.51.100.0/24]}
  tritonfleet:pools:
    - {name: h100, instance_types: [p5.48xlarge], zones: [use1-az6], max_nodes: 3}
    - {name: mig, instance_types: [p5.4xlarge], mig_profile: 2g.20gb, max_nodes: 2}
  tritonfleet:storage:
    {shared: lustre, zone: use1-az6, lustre_capacity_gib: 9600, lustre_throughput_mb_s_per_tib: 1000, keep_data: false}
  tritonfleet:models:
    - {name: llama-405b, source: "hf://meta-llama/Llama-3.1-405B-Instruct", backend: tensorrt, pool: h100,
       revision: be673f326cab4cd22ccfef76109faf68e41aa5f1, tensor_parallel: 8, pipeline_parallel: 2, max_batch_size: 64,
       max_seq_len: 16384, max_num_tokens: 8192}
    - {name: llama-8b, source: "hf://meta-llama/Llama-3.1-8B-Instruct", backend: tensorrt, pool: mig,
       revision: 0e9e39f249a16976918f6564b8830bc894c89659, max_batch_size: 16, max_seq_len: 4096, max_num_tokens: 2048}
    - {name: qwen3-8b, source: "hf://Qwen/Qwen3-8B", backend: tensorrt, pool: mig,
       revision: b968826d9c46dd6066d109eabc6255188de91218, max_batch_size: 16, max_seq_len: 4096, max_num_tokens: 2048}
"""

Values = dict[str, Any]


class Deployed:
    """A stack that is up, and what `fleet diff` says of it as it is."""

    def __init__(self, project: Project, stack: str) -> None:
        self.project, self.stack = project, stack
        self.up()

    def up(self) -> None:
        self.project.pulumi("up", "--yes", "--skip-preview")
        self.before = self._rendered()

    def changes(self) -> tuple[ResourceChange, ...]:
        return compare(self.before, self._rendered())

    def diff(self) -> dict[str, Action]:
        """What `fleet diff` finds, by URN."""
        return {change.urn: change.action for change in self.changes()}

    def engine(self) -> dict[str, Action]:
        """What the engine plans, by URN."""
        text = self.project.pulumi("preview", "--json")
        found: dict[str, Action] = {}
        for step in json.loads(text[text.index("{") :])["steps"]:
            urn, action = step["urn"], OPERATIONS.get(step["op"])
            if action is None or "pulumi:pulumi:Stack" in urn:
                continue
            if (urn := _shown_as(urn)) is None:
                continue
            found[urn] = action
        return found

    def values(self, edit: Callable[[Values], object]) -> None:
        self.project.edit(self.stack, edit)

    def source(self, file: str, old: str, new: str) -> None:
        path = self.project.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def _rendered(self) -> tuple[Resource, ...]:
        made = rendered(self.project.folder, [self.stack])[self.stack]
        assert not made.problems
        return made.resources


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Deployed:
    skip_without_cli()
    project = _project(tmp_path_factory.mktemp("aws"), request)
    (project.folder / "stacks" / "Pulumi.edited.yaml").write_text(STACK)
    project.pulumi("stack", "init", "edited")
    rotate(project, "a")
    return Deployed(project, "edited")


@pytest.fixture(scope="module")
def kind(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Generator[Deployed]:
    """The `local` stack on a cluster that is there, which is an API server that knows nothing."""
    skip_without_cli()
    folder = tmp_path_factory.mktemp("kind")
    with api_server(Answers(classes={"standard": "rancher.io/local-path", "fast": "example.com/fast"})) as url:
        (folder / ".kube").mkdir()
        kubeconfig(folder / ".kube" / "config", url, contexts=["kind-tritonfleet"])
        project = _project(folder, request)
        project.pulumi("stack", "init", "local")
        project.edit("local", lambda values: values.update({"tritonfleet:allow_replacement": ["storage"]}))
        yield Deployed(project, "local")


@pytest.fixture(scope="module", params=["azure-small-mig", "gcp-small-mig"])
def elsewhere(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Deployed:
    """A stack of another cloud, unprotected."""
    skip_without_cli()
    project, stack = _project(tmp_path_factory.mktemp("elsewhere"), request), str(request.param)
    project.pulumi("stack", "init", stack)
    project.edit(stack, lambda values: values.setdefault("tritonfleet:storage", {}).update(keep_data=False))
    return Deployed(project, stack)


def _project(folder: Path, request: pytest.FixtureRequest) -> Project:
    clouds: SimulatedClouds = request.getfixturevalue("clouds")
    return with_program(make_project(folder, clouds))


@pytest.fixture
def unedited(aws: Deployed) -> Generator[None]:
    """Whatever a test edits is as before when it ends."""
    folder = aws.project.folder
    files = [file for part in ("stacks", "planner", "components") for file in (folder / part).rglob("*.[py]*")]
    texts = {file: file.read_text() for file in files if file.suffix in (".py", ".yaml")}
    yield
    for file, text in texts.items():
        if file.read_text() != text:
            file.write_text(text)


def rotate(project: Project, letter: str) -> None:
    project.pulumi("config", "set", "--secret", "--path", "tritonfleet:api_keys.team-a", "sk-" + letter * 40)


def spot_to_on_demand(stack: Deployed) -> None:
    stack.values(lambda values: values["tritonfleet:pools"][0].update(capacity=["on-demand"]))


def capacity_of_the_same_group(stack: Deployed) -> None:
    """Not a stack's edit: the node group keeps its name."""
    stack.source("components/clouds/aws/pools.py", "capacity_type=capacity_type", 'capacity_type="ON_DEMAND"')


def image_tag(stack: Deployed) -> None:
    stack.values(lambda values: values.update({"tritonfleet:images": {"triton": "registry.example.com/triton:2"}}))


def tensorrt_llm(stack: Deployed) -> None:
    stack.source("planner/versions.py", 'TENSORRT_LLM: Final = "1.2.1"', 'TENSORRT_LLM: Final = "1.3.0"')


def subnet_cidr(stack: Deployed) -> None:
    stack.values(lambda values: values["tritonfleet:network"].update(cidr="10.44.0.0/16"))


def smaller_volume(stack: Deployed) -> None:
    stack.values(lambda values: values["tritonfleet:storage"].update(lustre_capacity_gib=7200))


def larger_volume(stack: Deployed) -> None:
    stack.values(lambda values: values["tritonfleet:storage"].update(lustre_capacity_gib=12000))


def pool_renamed(stack: Deployed) -> None:
    def rename(values: Values) -> None:
        values["tritonfleet:pools"][0]["name"] = values["tritonfleet:models"][0]["pool"] = "hopper"

    stack.values(rename)


def model_removed(stack: Deployed) -> None:
    stack.values(lambda values: values["tritonfleet:models"].pop())


def key_rotated(stack: Deployed) -> None:
    rotate(stack.project, "b")


def replicas(stack: Deployed) -> None:
    stack.values(lambda values: values["tritonfleet:models"][1].update(serving={"replicas": 2}))


def quantisation(stack: Deployed) -> None:
    stack.values(lambda values: values["tritonfleet:models"][0].update(quantization={"weights": "fp8"}))


def mig_profile(stack: Deployed) -> None:
    stack.values(lambda values: values["tritonfleet:pools"][1].update(mig_profile="3g.40gb"))


def region(stack: Deployed) -> None:
    def move(values: Values) -> None:
        values["tritonfleet:region"] = "us-east-2"
        values["tritonfleet:network"]["zones"] = ["use2-az1", "use2-az2", "use2-az3"]
        values["tritonfleet:storage"]["zone"] = values["tritonfleet:pools"][0]["zones"][0] = "use2-az3"

    stack.values(move)


def spot_alone(stack: Deployed) -> None:
    """What a policy forbids in production: no capacity but spot."""
    stack.values(lambda values: values["tritonfleet:pools"][0].update(capacity=["spot"]))


def data_guarded(stack: Deployed) -> None:
    stack.values(lambda values: values["tritonfleet:storage"].update(keep_data=True))


def label(stack: Deployed) -> None:
    stack.source("components/labels.py", '"tritonfleet", ', '"tritonfleet", "example.com/team": "a", ')


def nothing(stack: Deployed) -> None:
    stack.source("components/labels.py", "What every", "What each")


EDITS: Mapping[Callable[[Deployed], None], Mapping[str, set[Action]]] = {
    spot_to_on_demand: {"aws:eks/nodeGroup:NodeGroup": {"deleted"}},
    capacity_of_the_same_group: {"aws:eks/nodeGroup:NodeGroup": {"replaced"}},
    image_tag: {"kubernetes:leaderworkerset.x-k8s.io/v1:LeaderWorkerSet": {"changed"}},
    tensorrt_llm: {"kubernetes:batch/v1:Job": {"added", "deleted"}},
    subnet_cidr: {"aws:ec2/vpc:Vpc": {"replaced"}, "aws:ec2/subnet:Subnet": {"replaced"}},
    smaller_volume: {"aws:fsx/lustreFileSystem:LustreFileSystem": {"replaced"}},
    larger_volume: {"aws:fsx/lustreFileSystem:LustreFileSystem": {"changed"}},
    pool_renamed: {"aws:eks/nodeGroup:NodeGroup": {"added", "deleted"}},
    model_removed: {"kubernetes:leaderworkerset.x-k8s.io/v1:LeaderWorkerSet": {"deleted"}},
    key_rotated: {"kubernetes:core/v1:Secret": {"changed"}},
    replicas: {"kubernetes:leaderworkerset.x-k8s.io/v1:LeaderWorkerSet": {"changed"}},
    quantisation: {"kubernetes:batch/v1:Job": {"added", "deleted"}},
    mig_profile: {"aws:eks/nodeGroup:NodeGroup": {"changed"}},
    spot_alone: {"aws:eks/nodeGroup:NodeGroup": {"deleted"}},
    data_guarded: {"aws:s3/bucket:Bucket": {"changed"}},  # whether it is emptied before it is deleted
    label: {"kubernetes:core/v1:Service": {"changed"}},
    nothing: {},
}
"""What is edited, and of some types all that becomes of their resources."""


@pytest.mark.usefixtures("unedited")
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_is_judged_as_the_engine_does(aws: Deployed, edit: Callable[[Deployed], None]) -> None:
    edit(aws)
    found = aws.diff()
    assert found == aws.engine()
    for type_, actions in EDITS[edit].items():
        assert {action for urn, action in found.items() if _type(urn) == type_} == actions
    assert bool(found) == bool(EDITS[edit])


@pytest.mark.usefixtures("unedited")
def test_what_the_plan_forbids_is_the_engines_error_too(aws: Deployed) -> None:
    aws.values(lambda values: values["tritonfleet:cluster"].update(api_cidrs=["0.0.0.0/0"]))
    (problem,) = rendered(aws.project.folder, [aws.stack])[aws.stack].problems
    said = aws.project.pulumi("preview", fails=True)
    assert all(part in said for part in (problem.key, problem.what, problem.consequence, problem.fix))


@pytest.mark.usefixtures("unedited")
def test_the_engine_refuses_what_is_called_protected(aws: Deployed) -> None:
    file = aws.project.folder / "stacks" / f"Pulumi.{aws.stack}.yaml"
    text = file.read_text()
    data_guarded(aws)
    aws.up()
    try:
        region(aws)
        protected = {change.urn for change in aws.changes() if change.action == "replaced" and change.protected}
        said = aws.project.pulumi("preview", fails=True)
    finally:
        aws.project.pulumi("state", "unprotect", "--all", "--yes")
        file.write_text(text)
        aws.up()
    refused = {_shown_as(urn) for urn in re.findall(r'unable to replace resource "([^"]+)"\n', said)}
    assert refused
    assert refused <= protected


@pytest.mark.usefixtures("unedited")
def test_another_region_is_judged_as_the_engine_does(aws: Deployed) -> None:
    """A preview has no cluster to ask, and takes all that is in it for updated; the update asks."""
    region(aws)
    found, planned = aws.diff(), aws.engine()
    assert {action for urn, action in found.items() if _type(urn) in ("aws:s3/bucket:Bucket", EKS)} == {"replaced"}
    assert _outside(found) == _outside(planned)
    inside = {*found, *planned} - {*_outside(found)}
    assert {(found.get(urn, "same"), planned[urn]) for urn in inside} >= {("same", "changed"), ("replaced", "changed")}
    aws.project.events()
    aws.up()
    events = [(operation, urn) for operation, urn in aws.project.events() if urn in inside]
    assert {urn for _, urn in events} <= found.keys()
    replaced = {urn for urn in inside if found.get(urn) == "replaced"}
    assert replaced == {urn for operation, urn in events if operation == "create" and found[urn] != "added"}


def other_slices(stack: Deployed) -> None:
    of = {"azure-small-mig": "3g.47gb", "gcp-small-mig": "3g.40gb"}
    stack.values(lambda values: values["tritonfleet:pools"][0].update(mig_profile=of[stack.stack]))


def less_capacity(stack: Deployed) -> None:
    stack.values(lambda values: values["tritonfleet:pools"][0].update(capacity=["spot"], max_nodes=1))


def test_other_clouds_are_judged_as_the_engine_does(elsewhere: Deployed) -> None:
    file = elsewhere.project.folder / "stacks" / f"Pulumi.{elsewhere.stack}.yaml"
    text = file.read_text()
    pools = ("azure-native:containerservice:AgentPool", "gcp:container/nodePool:NodePool")
    expected: Mapping[Callable[[Deployed], None], set[Action]] = {
        other_slices: {"replaced"},
        less_capacity: {"changed", "deleted"},
        # A node pool of GKE is known by the name of its cluster, one of AKS by what the cluster answers.
        subnet_cidr: {"replaced"} if elsewhere.stack.startswith("azure") else set(),
    }
    for edit, actions in expected.items():
        edit(elsewhere)
        found, planned = elsewhere.diff(), elsewhere.engine()
        if edit is subnet_cidr:
            # Another cluster, which a preview cannot ask about what is in it.
            assert _outside(found) == _outside(planned), edit.__name__
        else:
            assert found == planned, edit.__name__
        assert {action for urn, action in found.items() if _type(urn) in pools} == actions, edit.__name__
        file.write_text(text)


def test_a_storage_class_is_judged_as_the_engine_does(kind: Deployed) -> None:
    kind.values(lambda values: values["tritonfleet:existing"].update(storage_class="fast"))
    found = kind.diff()
    assert found == kind.engine()
    assert {_type(urn): action for urn, action in found.items()}[
        "kubernetes:core/v1:PersistentVolumeClaim"
    ] == "replaced"


def _outside(actions: Mapping[str, Action]) -> dict[str, Action]:
    """Of what is in no cluster, nor the way into one."""
    inside = ("kubernetes:", "pulumi:providers:kubernetes")
    return {urn: action for urn, action in actions.items() if not _type(urn).startswith(inside)}


def _shown_as(urn: str) -> str | None:
    """The URN by which `fleet diff` knows it: of pulumi-eks' component it shows what becomes of the cluster in it."""
    types = urn.split("::")[2]
    if f"{EKS}$" not in types:
        return urn
    above = types.removesuffix(CLUSTER)
    return f"{'::'.join(urn.split('::')[:2])}::{above}::aws-cluster-eks" if above.endswith(EKS) else None


def _type(urn: str) -> str:
    return urn.split("::")[2].rpartition("$")[2]
