"""The rules as a pack for Pulumi's engine: `pulumi preview --policy-pack policy`. It alone imports pulumi-policy."""

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from pulumi_policy import (
    EnforcementLevel,
    Policy,
    PolicyConfigSchema,
    PolicyPack,
    PolicyResource,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)
from pulumi_policy.proxy import UnknownValueError

# Pulumi runs this folder, which is a package only beside the planner.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from policy.rules import RULES, Rule, settings_of
from policy.stack import UNKNOWN, Resource


def main() -> None:
    PolicyPack(name="tritonfleet", policies=[policy for rule in RULES for policy in _policies(rule)])


def _policies(rule: Rule) -> list[Policy]:
    """One policy for each way in which the rule looks: at a resource before it is made, and at all of them."""
    level = EnforcementLevel.MANDATORY if rule.mandatory else EnforcementLevel.ADVISORY
    shared: dict[str, Any] = {"description": rule.description, "enforcement_level": level}
    if properties := _properties(rule):
        shared["config_schema"] = PolicyConfigSchema(properties=properties)
    policies: list[Policy] = []
    if rule.of_resource:
        policies.append(ResourceValidationPolicy(name=rule.name, validate=partial(_of_resource, rule), **shared))
    if rule.of_stack:
        name = f"{rule.name}-stack" if policies else rule.name
        policies.append(StackValidationPolicy(name=name, validate=partial(_of_stack, rule), **shared))
    return policies


def _of_resource(rule: Rule, args: ResourceValidationArgs, report: ReportViolation) -> None:
    assert rule.of_resource
    resource = Resource(
        urn=args.urn, type=args.resource_type, inputs=_plain(args.props), protect=bool(args.opts.protect)
    )
    for problem in rule.of_resource(resource, settings_of(rule, args.get_config())):
        report(str(problem), None)


def _of_stack(rule: Rule, args: StackValidationArgs, report: ReportViolation) -> None:
    assert rule.of_stack
    stack = [_resource(resource) for resource in args.resources]
    for resource, problem in rule.of_stack(stack, settings_of(rule, args.get_config())):
        report(str(problem), resource.urn if resource else None)


def _resource(resource: PolicyResource) -> Resource:
    return Resource(
        urn=resource.urn,
        type=resource.resource_type,
        inputs=_plain(resource.props),
        protect=bool(resource.opts.protect),
        dependencies=frozenset(dependency.urn for dependency in resource.dependencies),
    )


def _plain(value: Any) -> Any:
    """The SDK's proxies raise where a value is not known yet, and so hide what else is."""
    if isinstance(value, Mapping):
        return {key: _item(value, key) for key in cast(Mapping[str, Any], value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_item(value, index) for index in range(len(cast(Sequence[Any], value)))]
    return value


def _item(of: Any, key: Any) -> Any:
    try:
        return _plain(of[key])
    except UnknownValueError:
        return UNKNOWN


def _properties(rule: Rule) -> dict[str, dict[str, Any]]:
    """JSON Schema of the rule's settings, which the engine checks and takes defaults from."""
    schema = rule.settings.model_json_schema()
    definitions: dict[str, Any] = schema.get("$defs", {})
    text = json.dumps(schema.get("properties", {}))
    # The engine reads each property for itself, and would find no definition beside it.
    for name, definition in definitions.items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(definition))
    return json.loads(text)


main()
