"""What Pulumi's engine would do to get from one recorded stack to another: update, replace, create, delete."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from fleet.diff.rules import Rule, Steps, below, rule_of, steps_of

Action = Literal["added", "changed", "replaced", "deleted"]
UNKNOWN = "$unknown"
SECRET = "$secret"
MASK = "[secret]"
LATER = "known after apply"

MOVING = {"aws:ec2/launchTemplate:LaunchTemplate": "version"}
"""Types of which every update gives an output a new value, and the last step of the properties that take it."""


@dataclass(frozen=True, kw_only=True)
class FieldChange:
    """One property: `before` and `after` as JSON, masked where secret, None where there was none.

    `replaces`: its provider makes the resource anew for it. `refused`: the cloud would not change it.
    """

    path: str
    before: Any
    after: Any
    replaces: bool = False
    refused: bool = False


@dataclass(frozen=True, kw_only=True)
class ResourceChange:
    """What becomes of one resource. `urn` is the new one, of a deleted resource the old one.

    `inputs` are the new ones, or those of what is deleted. Pulumi refuses to replace or delete what is `protected` (in
    both revisions, as the engine has it); it forgets what is `retained`, which goes on existing. `deleted_first`: there
    is neither old nor new for a while.
    """

    action: Action
    urn: str
    type: str
    name: str
    fields: tuple[FieldChange, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    protected: bool = False
    retained: bool = False
    deleted_first: bool = False
    known_rule: bool = True


Resource = Mapping[str, Any]
"""One resource as render.py writes it: the fields of the recorder's `Registered`, with `inputs` as JSON.

`deployed` are the inputs with stand-ins for what only the cloud decides; None, or not there, where there are none.
"""

_Leaf = tuple[str, Steps, Any, Any, bool]


def compare(before: Iterable[Resource], after: Iterable[Resource]) -> tuple[ResourceChange, ...]:
    """Every resource that is added, changed, replaced or deleted, by URN; components too, which Pulumi counts too."""
    olds = {old["urn"]: old for old in before}
    news = {new["urn"]: new for new in after}
    was = _renamed(olds, news)
    moved: dict[str, Action] = {urn: "added" for urn in news if urn not in was}
    found: dict[str, tuple[FieldChange, ...]] = {}
    # What is replaced gets an id that nobody knows yet, which may replace what refers to it, and so on.
    while True:
        found = {urn: tuple(_changes(olds[old], news[urn], news, was, moved, olds)) for urn, old in was.items()}
        now: dict[str, Action] = {urn: "added" for urn in moved if urn not in was}
        for urn, changes in found.items():
            if changes:
                now[urn] = "replaced" if any(change.replaces for change in changes) else "changed"
        if now == moved:
            break
        moved = now
    result = [
        _result(action, olds[was[urn]] if urn in was else news[urn], news[urn], found.get(urn, ()))
        for urn, action in moved.items()
    ]
    kept = set(was.values())
    result += [_result("deleted", old, old, ()) for urn, old in olds.items() if urn not in kept]
    return tuple(sorted(result, key=lambda change: change.urn))


def unguarded(before: Iterable[Resource], after: Iterable[Resource]) -> tuple[str, ...]:
    """URNs of what Pulumi would have refused to delete, or kept in the cloud, and now would not."""
    guards = {old["urn"]: (old["protect"], old["retain_on_delete"]) for old in before}
    lost: list[str] = []
    for new in after:
        protect, retain = guards.get(new["urn"], (False, False))
        if (protect and not new["protect"]) or (retain and not new["retain_on_delete"]):
            lost.append(new["urn"])
    return tuple(lost)


def shown(value: Any) -> Any:
    """The value without anything secret or unknown, as JSON."""
    if isinstance(value, dict):
        fields = cast(dict[str, Any], value)
        if SECRET in fields:
            return MASK
        return LATER if UNKNOWN in fields else {key: shown(item) for key, item in fields.items()}
    return [shown(item) for item in cast(list[Any], value)] if isinstance(value, list) else value


def _result(action: Action, old: Resource, resource: Resource, fields: tuple[FieldChange, ...]) -> ResourceChange:
    gone = action in ("replaced", "deleted")
    named = resource["type"].startswith("kubernetes:") and not any(
        change.replaces and change.path in ("metadata.name", "metadata.namespace") for change in fields
    )
    return ResourceChange(
        action=action,
        urn=resource["urn"],
        type=resource["type"],
        name=resource["name"],
        fields=fields,
        inputs=shown(resource["inputs"]),
        protected=gone and old["protect"] and resource["protect"],
        retained=gone and old["retain_on_delete"] and resource["retain_on_delete"],
        # Two Kubernetes objects cannot bear one name at a time, and every one of ours is named.
        deleted_first=action == "replaced" and (resource["delete_before_replace"] or named),
        known_rule=not resource["custom"] or rule_of(resource["type"]) is not None,
    )


def _renamed(olds: Mapping[str, Resource], news: Mapping[str, Resource]) -> dict[str, str]:
    """New URN -> old one, of every resource that was there before, maybe under one of its aliases."""
    was: dict[str, str] = {}
    for urn in sorted(news, key=lambda urn: urn.split("::")[2].count("$")):
        new = news[urn]
        parent: str = new["parent"]
        parents = list(dict.fromkeys((parent, was.get(parent, parent))))
        names = [urn, *(alias for above in parents for alias in _aliases(new, above))]
        names += [_urn(new["type"], new["name"], urn, above) for above in parents]
        old = next((name for name in names if name in olds), None)
        if old is not None:
            was[urn] = old
    return was


def _aliases(new: Resource, parent: str) -> Iterator[str]:
    for alias in new["aliases"]:
        type_, _, name = alias.rpartition("::")
        yield alias if alias.startswith("urn:") else _urn(type_ or new["type"], name or new["name"], new["urn"], parent)


def _urn(type_: str, name: str, like: str, parent: str) -> str:
    stack, project = like.split("::")[:2]
    above = parent.split("::")[2] if parent else "pulumi:pulumi:Stack"
    below_stack = "" if above == "pulumi:pulumi:Stack" else f"{above}$"
    return f"{stack}::{project}::{below_stack}{type_}::{name}"


def _changes(
    old: Resource,
    new: Resource,
    news: Mapping[str, Resource],
    was: Mapping[str, str],
    moved: Mapping[str, Action],
    olds: Mapping[str, Resource],
) -> Iterator[FieldChange]:
    provider = new["provider"] or ""
    rule = _with_options(rule_of(new["type"]) or Rule(), new, news.get(provider))
    ignored = [steps_of(path) for path in new["ignore_changes"]]
    forced = [steps_of(path) for path in new["replace_on_changes"]]
    reworded = _reworded(old.get("deployed"), new.get("deployed"))
    for path, steps, before, after, unknown in _leaves(old["inputs"], new["inputs"]):
        if below(steps, ignored):
            continue
        differs = any(one == path or one.startswith((f"{path}.", f"{path}[")) for one in reworded)
        if unknown and not differs and not _may_differ(steps, old, new, was, moved):
            continue
        secret = new["type"] == "kubernetes:core/v1:Secret" and steps[0] in ("data", "stringData")
        yield FieldChange(
            path=path,
            before=MASK if secret and before is not None else shown(before),
            after=MASK if secret and after is not None else LATER if unknown else shown(after),
            replaces=below(steps, forced) or any(one.fires(steps, before, after) for one in rule.replaced_by),
            refused=not below(steps, forced) and any(one.fires(steps, before, after) for one in rule.refused),
        )
    if rule.with_region:
        aws = new["providers"].get("aws", provider)
        regions = [
            side.get(urn, {}).get("inputs", {}).get("region") for side, urn in ((olds, was.get(aws, aws)), (news, aws))
        ]
        if regions[0] != regions[1]:
            yield FieldChange(path="region", before=regions[0], after=regions[1], replaces=True)
    if moved.get(provider) == "replaced":
        yield FieldChange(path="provider", before=provider.rpartition("::")[2], after="another", replaces=True)


def _reworded(old: Any, new: Any) -> list[str]:
    """Paths of what differs though all that the cloud decides is the same."""
    if old is None or new is None:
        return []
    return [path for path, _, _, _, unknown in _leaves(old, new) if not unknown]


def _with_options(rule: Rule, new: Resource, provider: Resource | None) -> Rule:
    """The rule, as the provider's own settings change it: they say whether ConfigMaps and Secrets are mutable."""
    kind = new["type"].rpartition(":")[2]
    if new["type"] not in ("kubernetes:core/v1:ConfigMap", "kubernetes:core/v1:Secret") or new["inputs"].get(
        "immutable"
    ):
        return rule
    settings: dict[str, Any] = provider["inputs"] if provider else {}
    if str(settings.get(f"enable{kind}Mutable", "")).lower() != "true":
        return rule
    kept = ("metadata", "type") if kind == "Secret" else ("metadata",)
    return Rule(replaced_by=tuple(one for one in rule.replaced_by if one.steps[0] in kept), refused=rule.refused)


def _may_differ(
    steps: Steps, old: Resource, new: Resource, was: Mapping[str, str], moved: Mapping[str, Action]
) -> bool:
    """Whether a value that no preview knows will be another one: what it is taken from is not the same as before."""
    after: list[str] = new["property_dependencies"].get(steps[0], ())
    before: list[str] = old["property_dependencies"].get(steps[0], ())
    if {was.get(urn, urn) for urn in after} != {*before}:
        return True
    # Where an answer of the cloud to a question comes from is not recorded: from anything that the resource waits for.
    for urn in after or new["dependencies"]:
        if moved.get(urn) in ("added", "replaced"):
            return True
        type_ = urn.split("::")[2].rpartition("$")[2]
        if moved.get(urn) == "changed" and MOVING.get(type_) == steps[-1]:
            return True
    return False


def _leaves(old: Any, new: Any, path: str = "", steps: Steps = ()) -> Iterator[_Leaf]:
    """Where two values differ, or are both unknown."""
    if _is_unknown(old) and _is_unknown(new) and old == new:
        yield path, steps, old, new, True
    elif _is_object(old) and _is_object(new):
        olds, news = cast(dict[str, Any], old), cast(dict[str, Any], new)
        for key in sorted({*olds, *news}):
            yield from _leaves(olds.get(key), news.get(key), _joined(path, key), (*steps, key))
    elif isinstance(old, list) and isinstance(new, list):
        yield from _list_leaves(cast(list[Any], old), cast(list[Any], new), path, steps)
    elif old != new:
        yield path, steps, old, new, False


def _list_leaves(old: list[Any], new: list[Any], path: str, steps: Steps) -> Iterator[_Leaf]:
    olds, news = _by_name(old), _by_name(new)
    common = [name for name in olds if name in news]
    if olds and news and common == [name for name in news if name in olds]:
        for name in dict.fromkeys((*olds, *news)):
            yield from _leaves(olds.get(name), news.get(name), f"{path}[{name}]", steps)
    elif len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _leaves(before, after, f"{path}[{index}]", steps)
    else:
        yield path, steps, old, new, False


def _by_name(items: list[Any]) -> dict[str, Any]:
    """The items by their names, nothing unless each is an object with a name of its own."""
    objects = [cast(dict[str, Any], item) for item in items if isinstance(item, dict)]
    named = {item["name"]: item for item in objects if isinstance(item.get("name"), str)}
    return named if len(named) == len(items) else {}


def _joined(path: str, key: str) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9_$-]+", key)
    return (f"{path}.{key}" if path else key) if plain else f'{path}["{key}"]'


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not ({UNKNOWN, SECRET} & cast(dict[str, Any], value).keys())


def _is_unknown(value: Any) -> bool:
    return isinstance(value, dict) and bool(cast(dict[str, Any], value).get(UNKNOWN))
