"""From the values of a stack file to its types: what is sound of them, and everything that is not."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from planner import api_keys
from planner.cloud_choice import EXISTING, misplaced, on_pool
from planner.cloud_config import PoolConfig
from planner.config import NAMESPACE, ModelConfig, SiteConfig, StackConfig
from planner.config_problems import lost_keys, problems_of
from planner.errors import PlanError, Problem, shown
from planner.model_problems import cross_field_problems
from planner.strict import Strict
from planner.untyped import as_list, as_mapping

S = TypeVar("S", bound=Strict)


@dataclass(frozen=True, kw_only=True)
class ParsedStack:
    """What could be read: what is sound, by its place in the file, and all problems.

    What is at fault has its default, in the site and in pools, so that the rest can be judged; `lost` are the keys that
    then mean nothing. `site` is None when not even the cloud could be read, a pool is missing when what it cannot do
    without could not.
    """

    site: SiteConfig | None
    pools: dict[int, PoolConfig]
    models: dict[int, ModelConfig]
    problems: tuple[Problem, ...]
    lost: frozenset[str]

    def judged(self, problems: Sequence[Problem]) -> list[Problem]:
        """Those that are not about a default that stands in for something at fault."""
        return [problem for problem in problems if not _within(problem.key, self.lost)]


def stack_from_mapping(values: Mapping[str, Any]) -> StackConfig:
    """The stack of a `tritonfleet:` configuration, namespace removed. Raises PlanError with every problem in it."""
    parsed = parse_stack(values)
    if parsed.problems or parsed.site is None:
        raise PlanError(parsed.problems)
    site = {name: getattr(parsed.site, name) for name in SiteConfig.model_fields}
    return StackConfig(**site, pools=tuple(parsed.pools.values()), models=tuple(parsed.models.values()))


def parse_stack(values: Mapping[str, Any]) -> ParsedStack:
    """Each section, pool and model checked by itself, so that one's fault hides no other's."""
    values, problems = _without_secrets(values)
    site, found, lost = _parse_site(values)
    problems += found
    pools: dict[int, PoolConfig] = {}
    models: dict[int, ModelConfig] = {}
    for index, entry in enumerate(as_list(values.get("pools"))):
        pool, found, lost_of_pool = _parse_pool(entry, f"pools[{index}]")
        problems += found
        lost |= lost_of_pool
        if pool is not None:
            pools[index] = pool
    for index, entry in enumerate(as_list(values.get("models"))):
        key, chosen = f"models[{index}]", entry
        found_of_pool: list[Problem] = []
        if site is not None and isinstance(entry, dict):
            chosen, found_of_pool = on_pool(as_mapping(entry), site, values, key)
        model, found = _parse_model(chosen, key)
        # The pool decides the GPU: without the one a model lacks the other, and one of the two is said.
        decided = "pool" in as_mapping(entry) or bool(found_of_pool) or (site is not None and site.cloud != EXISTING)
        # What the pool's GPU cannot do is the fault of the choice of pool.
        of_pool = as_mapping(chosen) != as_mapping(entry)
        found = [
            replace(problem, key=f"{key}.pool") if problem.key == f"{key}.gpu" and of_pool else problem
            for problem in found
            if problem.key != f"{key}.gpu" or of_pool or not decided
        ]
        problems += found_of_pool + found
        if model is not None and not found_of_pool:
            models[index] = model
    problems += _colliding_names(models)
    for section, items in (("pools", pools), ("models", models)):
        problems += _duplicate_names(section, items)
        if values.get(section) and not isinstance(values[section], list):
            problems.append(_not_a_list(section, values[section]))
    return ParsedStack(site=site, pools=pools, models=models, problems=tuple(problems), lost=frozenset(lost))


def _without_secrets(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    # The planner needs to know that there are secrets, never what they are: strings when Pulumi has decrypted them, and
    # `secure: …` in the file.
    problems = api_keys.key_problems(values)
    if api_keys.NAME in values:
        values = {**values, api_keys.NAME: True}
    if "hugging_face_token" not in values:
        return dict(values), problems
    token = values["hugging_face_token"]
    present = {**values, "hugging_face_token": True}
    if (isinstance(token, str) and token) or set(as_mapping(token)) == {"secure"}:
        return present, problems
    problem = Problem(
        key="hugging_face_token",
        what="not a secret string",
        consequence="gated weights could not be downloaded",
        fix=f"run `pulumi config set --secret {NAMESPACE}:hugging_face_token` and paste the token",
    )
    return present, [*problems, problem]


def _parse_site(values: dict[str, Any]) -> tuple[SiteConfig | None, list[Problem], set[str]]:
    # Pools and models are judged one by one elsewhere; here only that there are models.
    models = {"models": () if values["models"] else values["models"]} if "models" in values else {}
    try:
        StackConfig.model_validate({**values, "pools": (), **models})
        errors: Sequence[ErrorDetails] = ()
    except ValidationError as error:
        errors = [line for line in error.errors() if not (line["loc"] == ("models",) and values.get("models"))]
    problems, lost = problems_of(errors, StackConfig, prefix=""), set(lost_keys(errors, StackConfig, prefix=""))
    site = _sound(SiteConfig, {name: value for name, value in values.items() if name in SiteConfig.model_fields})
    if site is not None:
        problems += misplaced(site, values)
    return site, problems, lost


def _parse_pool(entry: object, key: str) -> tuple[PoolConfig | None, list[Problem], set[str]]:
    try:
        return PoolConfig.model_validate(entry), [], set()
    except ValidationError as error:
        errors = error.errors()
    lost = set(lost_keys(errors, PoolConfig, prefix=key))
    # Without its own zones a pool would seem to lie in all of the network's, and what uses it would be judged by that.
    pool = None if f"{key}.zones" in lost else _sound(PoolConfig, entry)
    return pool, problems_of(errors, PoolConfig, prefix=key), lost


def _parse_model(entry: object, key: str) -> tuple[ModelConfig | None, list[Problem]]:
    try:
        model = ModelConfig.model_validate(entry)
    except ValidationError as error:
        errors = error.errors()
    else:
        problems = cross_field_problems(model, key)
        return (None if problems else model), problems
    problems = problems_of(errors, ModelConfig, prefix=key)
    # What the sound fields contradict among themselves should not wait for the next run.
    rest = _sound(ModelConfig, {"name": "unnamed", **as_mapping(entry)})
    bad = {f"{key}.{line['loc'][0]}" for line in errors if line["loc"]}
    found = cross_field_problems(rest, key) if rest else []
    return None, problems + [problem for problem in found if not _within(problem.key, bad)]


def _sound(kind: type[S], value: object) -> S | None:
    """What is left of the value without what is at fault in it; None where that is too little."""
    while True:
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            left = value
            for line in error.errors():
                # What is missing takes with it what cannot be without it.
                left = _without(left, line["loc"][:-1] if line["type"] == "missing" else line["loc"])
            if left is _NOTHING or left is value:
                return None
            value = left


_NOTHING = object()


def _without(value: object, loc: Sequence[int | str]) -> object:
    """The value without what stands at `loc`. A list goes as a whole: its items are known by their place."""
    if not loc:
        return _NOTHING
    if isinstance(value, dict):
        fields = as_mapping(value)
        if loc[0] not in fields:
            return fields
        left = _without(fields[loc[0]], loc[1:])
        if left is fields[loc[0]]:
            return fields
        rest = {name: item for name, item in fields.items() if name != loc[0]}
        return rest if left is _NOTHING else {**rest, loc[0]: left}
    place = loc[0]
    if isinstance(value, list) and isinstance(place, int):
        items = as_list(value)
        left = _without(items[place], loc[1:])
        return _NOTHING if left is _NOTHING else [*items[:place], left, *items[place + 1 :]]
    return _NOTHING


def _within(key: str, keys: Set[str]) -> bool:
    return any(key == other or key.startswith((f"{other}.", f"{other}[")) for other in keys)


def _duplicate_names(section: str, items: Mapping[int, PoolConfig | ModelConfig]) -> list[Problem]:
    first: dict[str, int] = {}
    claims = {
        "models": "both would claim one service and one route; requests would reach either model",
        "pools": "both would claim the same node groups and labels; a model could land on either",
    }
    return [
        Problem(
            key=f"{section}[{index}].name",
            what=f"{item.name} is already the name of {section}[{first[item.name]}]",
            consequence=claims[section],
            fix=f"give each of the {section} a name of its own",
        )
        for index, item in items.items()
        if first.setdefault(item.name, index) != index
    ]


def _colliding_names(models: Mapping[int, ModelConfig]) -> list[Problem]:
    # LeaderWorkerSet makes a Service of the set's own name for the pods of its groups.
    sets = {f"{model.name}-group": index for index, model in models.items()}
    return [
        Problem(
            key=f"models[{index}].name",
            what=f"{model.name} is the name of the Service between the pods of models[{sets[model.name]}]",
            consequence="the two Services would take each other's place; requests would reach workers",
            fix="choose a name that is not another model's with -group after it",
        )
        for index, model in models.items()
        if model.name in sets
    ]


def _not_a_list(section: str, raw: object) -> Problem:
    return Problem(
        key=section,
        what=f"{shown(raw)} is not a list",
        consequence="the stack names no model to serve" if section == "models" else "the models have no GPUs to run on",
        fix=f"write each of the {section} as an item: `- name: …`",
    )
