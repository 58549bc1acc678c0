"""Every rule by name, and a stack judged by all of them. Pure: no Pulumi, no clock, no network."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError

from planner.errors import PlanError, Problem, did_you_mean, shown
from planner.strict import Strict
from policy import capacity, data, encryption, endpoints, images
from policy.settings import Ceilings, Data, Images, NoSettings, Production
from policy.stack import Resource, Stack

OfResource = Callable[[Resource, Any], Iterable[Problem]]
OfStack = Callable[[Stack, Any], Iterable[tuple[Resource | None, Problem]]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`of_resource` is asked before a resource is made, `of_stack` once all are known; `settings` is what both take.

    A rule that is not `mandatory` warns.
    """

    name: str
    description: str
    settings: type[Strict] = NoSettings
    of_resource: OfResource | None = None
    of_stack: OfStack | None = None
    mandatory: bool = True


RULES = (
    Rule(
        name="no-public-endpoint",
        description="No endpoint or store is open to everyone without asking who they are.",
        of_resource=endpoints.public,
        of_stack=endpoints.without_block,
    ),
    Rule(
        name="no-unencrypted-storage",
        description="What stores data encrypts it.",
        of_resource=encryption.unencrypted,
        of_stack=encryption.without_default,
    ),
    Rule(
        name="images-by-digest",
        description="Images in production are named by digest.",
        settings=Images,
        of_resource=images.by_tag,
    ),
    Rule(
        name="spot-with-fallback",
        description="Pools in production have more than spot capacity.",
        settings=Production,
        of_stack=capacity.spot_alone,
    ),
    Rule(
        name="cost-ceiling",
        description="No stack may come to cost more than its ceiling.",
        settings=Ceilings,
        of_stack=capacity.above_ceiling,
    ),
    Rule(
        name="price-known",
        description="The cost ceiling counts every node group.",
        of_stack=capacity.unpriced,
        mandatory=False,
    ),
    Rule(
        name="protected-data",
        description="What holds data is protected.",
        settings=Data,
        of_resource=data.unprotected,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Breach:
    """A rule that a stack breaks; `urn` is the resource's, None where it is the whole stack."""

    rule: str
    mandatory: bool
    urn: str | None
    problem: Problem


def judge(stack: Stack, config: Mapping[str, Any] | None = None) -> list[Breach]:
    """Every breach of every rule. `config` is a policy pack's configuration, by rule; what it leaves out is default.

    Raises PlanError with all that is wrong in the configuration itself.
    """
    enforced = enforcement(config or {})
    return [breach for rule in RULES if rule.name in enforced for breach in _judged(rule, stack, enforced[rule.name])]


@dataclass(frozen=True, kw_only=True)
class Enforced:
    """How a rule is applied."""

    settings: Any
    mandatory: bool


def enforcement(config: Mapping[str, Any]) -> dict[str, Enforced]:
    """By rule, without those that are disabled. Raises PlanError with all that is wrong."""
    known = {"all", *(rule.name for rule in RULES)}
    problems = [
        _problem(name, "no rule has this name", did_you_mean(name, known, f"give one of {', '.join(sorted(known))}"))
        for name in config
        if name not in known
    ]
    enforced: dict[str, Enforced] = {}
    for rule in RULES:
        given = config.get(rule.name, {})
        settings = dict(cast(dict[str, Any], given)) if isinstance(given, dict) else {"enforcementLevel": given}
        level = settings.pop("enforcementLevel", None) or config.get("all") or _default(rule)
        if level not in LEVELS:
            problems.append(_problem(rule.name, f"{shown(level)} is no level", f"give one of {', '.join(LEVELS)}"))
        try:
            found = settings_of(rule, settings)
        except ValidationError as error:
            for fault in error.errors():
                key = ".".join(map(str, (rule.name, *fault["loc"])))
                problems.append(_problem(key, fault["msg"], "docs/policy.md lists what each rule takes"))
        else:
            if level != "disabled":
                enforced[rule.name] = Enforced(settings=found, mandatory=level != "advisory")
    if problems:
        raise PlanError(problems)
    return enforced


def settings_of(rule: Rule, given: Mapping[str, Any]) -> Any:
    """A rule's settings. Raises pydantic's ValidationError where they are not what the rule takes."""
    # As JSON: lists are tuples in these classes.
    return rule.settings.model_validate_json(json.dumps(dict(given)))


LEVELS = ("mandatory", "advisory", "disabled")


def _default(rule: Rule) -> str:
    return "mandatory" if rule.mandatory else "advisory"


def _problem(key: str, what: str, fix: str) -> Problem:
    return Problem(key=key, what=what, consequence="nobody would know which rules hold; nothing was judged", fix=fix)


def _judged(rule: Rule, stack: Stack, enforced: Enforced) -> Iterator[Breach]:
    def breach(urn: str | None, problem: Problem) -> Breach:
        return Breach(rule=rule.name, mandatory=enforced.mandatory, urn=urn, problem=problem)

    if rule.of_resource:
        for resource in stack:
            for problem in rule.of_resource(resource, enforced.settings):
                yield breach(resource.urn, problem)
    if rule.of_stack:
        for found, problem in rule.of_stack(stack, enforced.settings):
            yield breach(found.urn if found else None, problem)
