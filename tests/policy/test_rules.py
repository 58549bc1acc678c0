"""Each rule of the policy pack on what the real program registers: examples keep it, a planted breach breaks it."""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fleet.judgement import as_rules_see
from fleet.policy import CONFIG, read_config
from fleet.synthesis import record_program
from planner.errors import PlanError
from planner.stack_file import read_stack_file
from policy.data import HOLDS_DATA
from policy.encryption import NEEDED
from policy.pods import containers
from policy.rules import RULES, judge
from policy.settings import NoSettings
from policy.stack import UNKNOWN, Resource, at, items

ROOT = Path(__file__).parents[2]
STACKS = sorted(path.name.split(".")[1] for path in (ROOT / "stacks").glob("Pulumi.*.yaml"))
DIGEST = f"sha256:{'0123456789abcdef' * 4}"

Values = dict[str, Any]
Edit = Callable[[Values], object]


@cache
def registered(stack: str) -> tuple[Resource, ...]:
    return resources(stack, lambda _: None)


def resources(example: str, edit: Edit, *, named: str | None = None) -> tuple[Resource, ...]:
    """What an example stack registers once edited, and under another name."""
    values = copy.deepcopy(dict(read_stack_file(ROOT / "stacks" / f"Pulumi.{example}.yaml")))
    edit(values)
    return tuple(as_rules_see(record_program(values, stack=named or example).resources))


def broken(stack: tuple[Resource, ...], config: Values | None = None) -> set[str]:
    """The mandatory rules that a stack breaks."""
    return {breach.rule for breach in judge(stack, config) if breach.mandatory}


@pytest.mark.parametrize("stack", STACKS)
def test_an_example_stack_keeps_every_rule(stack: str) -> None:
    breaches = [*judge(registered(stack)), *judge(registered(stack), read_config(CONFIG))]
    # Google publishes no price for flex-start, and none at all for A3 Ultra.
    assert {breach.rule for breach in breaches} <= ({"price-known"} if stack.startswith("gcp") else set())


def planted(stack: str, type_: str, path: str, value: Any) -> tuple[tuple[Resource, ...], Resource]:
    """The stack with one property changed in one resource of a type, and that resource."""
    found = next(one for one in registered(stack) if one.type == type_ and (path == "" or _has(one.inputs, path)))
    inputs = copy.deepcopy(dict(found.inputs))
    *above, last = path.split("/")
    place: Any = inputs
    for key in above:
        place = place[int(key) if isinstance(place, list) else key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    changed = replace(found, inputs=inputs)
    return tuple(changed if one is found else one for one in registered(stack)), changed


def _has(inputs: Any, path: str) -> bool:
    above = path.rpartition("/")[0]
    return not above or at(inputs, above.split("/")[0]) is not None


WORLD = "0.0.0.0/0"
PUBLIC = [
    ("aws-small-mig", "kubernetes:core/v1:Service", "spec/type", "LoadBalancer"),
    ("gcp-small-mig", "kubernetes:core/v1:Service", "spec/type", "NodePort"),
    ("local", "kubernetes:core/v1:Service", "spec/externalIPs", ["203.0.113.5"]),
    (
        "local",
        "kubernetes:networking.k8s.io/v1:NetworkPolicy",
        "spec/ingress",
        [{"from": [{"ipBlock": {"cidr": WORLD}}]}],
    ),
    ("aws-small-mig", "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule", "cidrIpv4", WORLD),
    ("aws-small-mig", "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule", "cidrIpv6", "::/0"),
    ("aws-small-mig", "aws:ec2/securityGroup:SecurityGroup", "ingress", [{"cidrBlocks": [WORLD]}]),
    ("aws-small-mig", "eks:index:Cluster", "publicAccessCidrs", [WORLD]),
    ("aws-small-mig", "eks:index:Cluster", "publicAccessCidrs", None),
    ("aws-small-mig", "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock", "restrictPublicBuckets", False),
    ("gcp-llama-405b", "gcp:compute/firewall:Firewall", "sourceRanges", [WORLD]),
    ("gcp-llama-405b", "gcp:compute/firewall:Firewall", "sourceRanges", None),
    ("gcp-small-mig", "gcp:container/cluster:Cluster", "masterAuthorizedNetworksConfig", None),
    ("gcp-small-mig", "gcp:container/cluster:Cluster", "anonymousAuthenticationConfig", None),
    ("gcp-small-mig", "gcp:projects/iAMMember:IAMMember", "member", "allUsers"),
    ("gcp-small-mig", "gcp:storage/bucket:Bucket", "publicAccessPrevention", "inherited"),
    ("azure-small-mig", "azure-native:containerservice:ManagedCluster", "apiServerAccessProfile", None),
    ("azure-small-mig", "azure-native:network:NetworkSecurityGroup", "securityRules/0/sourceAddressPrefix", "Internet"),
    ("azure-small-mig", "azure-native:storage:BlobContainer", "publicAccess", "Blob"),
    ("azure-small-mig", "azure-native:storage:StorageAccount", "allowBlobPublicAccess", True),
]

UNENCRYPTED = [
    ("aws-small-mig", "aws:cloudwatch/logGroup:LogGroup", "kmsKeyId", None),
    ("aws-small-mig", "aws:ec2/launchTemplate:LaunchTemplate", "blockDeviceMappings/0/ebs/encrypted", "false"),
    ("aws-small-mig", "aws:ec2/launchTemplate:LaunchTemplate", "blockDeviceMappings", None),
    ("aws-small-mig", "aws:efs/fileSystem:FileSystem", "encrypted", False),
    ("aws-small-mig", "aws:efs/fileSystem:FileSystem", "kmsKeyId", None),
    ("aws-small-mig", "aws:eks/nodeGroup:NodeGroup", "launchTemplate", None),
    ("aws-llama-405b", "aws:fsx/lustreFileSystem:LustreFileSystem", "kmsKeyId", None),
    (
        "aws-small-mig",
        "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration",
        "rules/0/applyServerSideEncryptionByDefault/sseAlgorithm",
        "AES256",
    ),
    ("aws-small-mig", "eks:index:Cluster", "encryptionConfigKeyArn", None),
    ("gcp-small-mig", "gcp:container/cluster:Cluster", "databaseEncryption/state", "DECRYPTED"),
    ("gcp-small-mig", "gcp:container/nodePool:NodePool", "nodeConfig/bootDiskKmsKey", None),
    ("gcp-small-mig", "gcp:filestore/instance:Instance", "kmsKeyName", None),
    ("gcp-llama-405b", "gcp:lustre/instance:Instance", "kmsKey", None),
    ("gcp-small-mig", "gcp:storage/bucket:Bucket", "encryption", None),
    ("azure-small-mig", "azure-native:containerservice:AgentPool", "enableEncryptionAtHost", None),
    ("azure-small-mig", "azure-native:containerservice:ManagedCluster", "diskEncryptionSetID", None),
    (
        "azure-small-mig",
        "azure-native:containerservice:ManagedCluster",
        "agentPoolProfiles/0/enableEncryptionAtHost",
        False,
    ),
    ("azure-small-mig", "azure-native:storage:StorageAccount", "encryption/keySource", "Microsoft.Storage"),
    ("azure-small-mig", "azure-native:storage:StorageAccount", "enableHttpsTrafficOnly", False),
    ("azure-llama-405b", "azure-native:storagecache:AmlFilesystem", "encryptionSettings", None),
]


@pytest.mark.parametrize(
    ("rule", "stack", "type_", "path", "value"),
    [("no-public-endpoint", *plant) for plant in PUBLIC]
    + [("no-unencrypted-storage", *plant) for plant in UNENCRYPTED],
)
def test_a_planted_property_breaks_its_rule_alone(rule: str, stack: str, type_: str, path: str, value: Any) -> None:
    changed, resource = planted(stack, type_, path, value)
    (breach, *more) = [one for one in judge(changed) if one.mandatory]
    assert (breach.rule, breach.urn) == (rule, resource.urn)
    assert {(one.rule, one.urn) for one in more} <= {(rule, resource.urn)}


def test_every_type_that_needs_encryption_has_its_planted_breach() -> None:
    # The EKS component's own child exists under the engine alone.
    assert {type_ for _, type_, _, _ in UNENCRYPTED} == set(NEEDED) - {"aws:eks/cluster:Cluster"}


@pytest.mark.parametrize(
    ("rule", "type_"),
    [
        ("no-public-endpoint", "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock"),
        (
            "no-unencrypted-storage",
            "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration",
        ),
    ],
)
def test_a_bucket_whose_guard_is_gone_breaks_the_rule(rule: str, type_: str) -> None:
    assert broken(tuple(one for one in registered("aws-dev") if one.type != type_)) == {rule}


def test_a_frontend_without_keys_breaks_the_rule() -> None:
    stack = copy.deepcopy(registered("aws-dev"))
    (frontend,) = [
        container for one in stack for container in containers(one) if "--api-keys" in items(container, "command")
    ]
    frontend["command"].remove("--api-keys")
    assert broken(stack) == {"no-public-endpoint"}


EKS = "aws:eks/cluster:Cluster"
"""What the EKS component makes inside its provider, where the engine alone sees it."""
KEY = {"encryptionConfig": {"provider": {"keyArn": UNKNOWN}}}
INGRESS = "kubernetes:networking.k8s.io/v1:Ingress"


@pytest.mark.parametrize(
    ("type_", "inputs", "rules"),
    [
        (
            EKS,
            KEY | {"vpcConfig": {"endpointPublicAccess": True, "publicAccessCidrs": ["198.51.100.0/24"]}},
            set[str](),
        ),
        (EKS, KEY | {"vpcConfig": {"endpointPublicAccess": False}}, set[str]()),
        (EKS, KEY | {"vpcConfig": {}}, {"no-public-endpoint"}),
        (EKS, {"vpcConfig": {"endpointPublicAccess": False}}, {"no-unencrypted-storage"}),
        (INGRESS, {"spec": {"defaultBackend": {"service": {"port": {"number": 9000}}}}}, set[str]()),
        (INGRESS, {"spec": {"defaultBackend": {"service": {"port": {"number": 8000}}}}}, {"no-public-endpoint"}),
        (
            INGRESS,
            {"spec": {"rules": [{"http": {"paths": [{"backend": {"service": {"port": {"name": "grpc"}}}}]}}]}},
            {"no-public-endpoint"},
        ),
    ],
)
def test_what_no_example_registers_here(type_: str, inputs: Values, rules: set[str]) -> None:
    assert broken((Resource(urn="urn:pulumi:any::a::b::c", type=type_, inputs=inputs, protect=True),)) == rules


@pytest.mark.parametrize(
    "changes",
    [
        {"ports": [{"name": "openai", "port": 443, "targetPort": "openai"}]},
        {"annotations": {"service.beta.kubernetes.io/aws-load-balancer-scheme": "internal"}},
    ],
)
def test_what_asks_for_keys_or_is_internal_may_be_balanced(changes: Values) -> None:
    (service,) = [one for one in registered("aws-dev") if one.type == "kubernetes:core/v1:Service"]
    spec = {**service.inputs["spec"], "type": "LoadBalancer"}
    spec |= {key: value for key, value in changes.items() if key == "ports"}
    metadata = {**service.inputs["metadata"], "annotations": changes.get("annotations", {})}
    assert broken((replace(service, inputs={**service.inputs, "spec": spec, "metadata": metadata}),)) == set()


def by_digest(values: Values) -> None:
    images = {"triton": f"nvcr.io/nvidia/tritonserver@{DIGEST}", "python_digest": DIGEST}
    values["images"] = {**values.get("images", {}), **images}


@pytest.mark.parametrize("example", ["aws-small-mig", "gcp-small-mig", "gcp-llama-405b", "azure-llama-405b"])
def test_production_runs_by_digest_alone(example: str) -> None:
    assert broken(resources(example, lambda _: None, named="prod")) == {"images-by-digest"}
    assert broken(resources(example, by_digest, named="prod")) == set()


@pytest.mark.parametrize("digest", ["triton", "python_digest"])
def test_one_tag_is_enough_to_break_the_rule(digest: str) -> None:
    def edit(values: Values) -> None:
        by_digest(values)
        del values["images"][digest]

    assert broken(resources("aws-small-mig", edit, named="eu-prod-1")) == {"images-by-digest"}


def test_an_image_that_is_not_known_yet_is_judged_when_it_is() -> None:
    def pod(image: object) -> Resource:
        inputs = {"spec": {"template": {"spec": {"containers": [{"name": "one", "image": image}]}}}}
        return Resource(
            urn="urn:pulumi:prod::a::b::c", type="kubernetes:apps/v1:Deployment", inputs=inputs, protect=False
        )

    assert broken((pod(UNKNOWN),)) == set()
    assert broken((pod("registry.example/one:1"),)) == {"images-by-digest"}


@pytest.mark.parametrize("example", ["aws-llama-70b", "gcp-small-mig", "azure-small-mig"])
def test_spot_alone_is_not_for_production(example: str) -> None:
    def spot(values: Values) -> None:
        by_digest(values)
        values["pools"][0]["capacity"] = ["spot"]

    assert broken(resources(example, spot, named="prod")) == {"spot-with-fallback"}
    assert broken(resources(example, spot, named="staging")) == set()
    assert broken(resources(example, spot, named="live"), {"spot-with-fallback": {"production": ["live"]}}) == {
        "spot-with-fallback"
    }


# Of two instance types the dearer, and on-demand rather than spot.
@pytest.mark.parametrize(
    ("example", "usd_h"), [("aws-small-mig", 6.88), ("aws-llama-70b", 15.06559), ("azure-small-mig", 6.98)]
)
def test_the_ceiling_is_held_at_the_largest_and_dearest(example: str, usd_h: float) -> None:
    largest = resources(example, lambda values: values["pools"][0].update(max_nodes=10))
    cost = usd_h * 10 * 730

    def ceiling(usd: float) -> Values:
        return {
            "cost-ceiling": {
                "ceilings": [{"stacks": "other", "usd_per_month": 0}, {"stacks": "*", "usd_per_month": usd}]
            }
        }

    assert broken(largest, ceiling(cost - 1)) == {"cost-ceiling"}
    assert broken(largest, ceiling(cost + 1)) == set()
    assert broken(registered(example), ceiling(cost - 1)) == set()


def test_reserved_capacity_costs_what_was_agreed() -> None:
    def reserve(values: Values) -> None:
        values["pools"][0] |= {"capacity": ["reserved"], "reservation": "cr-0123456789abcdef0", "zones": ["use1-az6"]}

    nothing = {"cost-ceiling": {"ceilings": [{"stacks": "*", "usd_per_month": 0}]}}
    assert judge(resources("aws-llama-405b", reserve), nothing) == []


def test_without_any_configuration_there_is_a_ceiling() -> None:
    assert broken(resources("aws-llama-405b", lambda values: values["pools"][0].update(max_nodes=7))) == {
        "cost-ceiling"
    }


@pytest.mark.parametrize("example", [stack for stack in STACKS if stack != "aws-dev"])
def test_data_that_may_be_lost_breaks_the_rule(example: str) -> None:
    unprotected = tuple(replace(one, protect=False) for one in registered(example))
    assert broken(unprotected) == {"protected-data"}
    found = {one.urn for one in judge(unprotected) if one.rule == "protected-data"}
    assert found == {one.urn for one in registered(example) if one.protect and one.type in HOLDS_DATA}


def test_a_stack_says_whose_data_may_go_by_its_name_and_none_in_production() -> None:
    def lose(values: Values) -> None:
        by_digest(values)
        values["storage"] = {**values.get("storage", {}), "keep_data": False}

    assert broken(resources("aws-small-mig", lose)) == {"protected-data"}
    assert broken(resources("aws-small-mig", lose, named="aws-dev")) == set()
    assert broken(resources("aws-small-mig", lose, named="prod-test")) == {"protected-data"}


def test_every_type_that_holds_data_is_in_some_example() -> None:
    assert {one.type for stack in STACKS for one in registered(stack) if one.protect} >= HOLDS_DATA


def test_unknown_is_no_breach_where_something_will_be_there() -> None:
    stack, _ = planted("aws-dev", "aws:efs/fileSystem:FileSystem", "kmsKeyId", UNKNOWN)
    assert broken(stack) == set()


@pytest.mark.parametrize(
    ("config", "key", "words"),
    [
        ({"cost-cieling": {}}, "cost-cieling", "did you mean cost-ceiling"),
        ({"cost-ceiling": {"ceilings": [{"stacks": "*"}]}}, "cost-ceiling.ceilings.0.usd_per_month", "required"),
        ({"cost-ceiling": {"ceilings": [{"stacks": "*", "usd_per_month": -1}]}}, "usd_per_month", "greater"),
        ({"images-by-digest": {"production": "prod"}}, "images-by-digest.production", "array"),
        ({"no-public-endpoint": {"production": []}}, "no-public-endpoint.production", "not permitted"),
        ({"protected-data": "mandatry"}, "protected-data", "no level"),
    ],
)
def test_a_wrong_configuration_judges_nothing(config: Values, key: str, words: str) -> None:
    with pytest.raises(PlanError) as refused:
        judge(registered("aws-dev"), config)
    (problem,) = refused.value.problems
    assert key in problem.key
    assert words in str(problem)


@pytest.mark.parametrize(
    ("config", "mandatory"),
    [
        ({"protected-data": "disabled"}, None),
        ({"all": "disabled"}, None),
        ({"all": "disabled", "protected-data": {"enforcementLevel": "advisory"}}, False),
        ({"protected-data": "mandatory"}, True),
    ],
)
def test_levels_are_those_of_pulumi(config: Values, mandatory: bool | None) -> None:
    unprotected = tuple(replace(one, protect=False) for one in registered("local"))
    levels = {breach.mandatory for breach in judge(unprotected, config)}
    assert levels == (set() if mandatory is None else {mandatory})


def test_the_document_has_every_rule_and_every_default() -> None:
    text = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE) == [rule.name for rule in RULES]
    (documented,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    defaults = {rule.name: rule.settings().model_dump(mode="json") for rule in RULES if rule.settings is not NoSettings}
    assert json.loads(documented) == defaults
