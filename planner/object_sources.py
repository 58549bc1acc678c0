"""Weights in a bucket that the stack did not make: what such a source looks like, and whose pods may read it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.errors import shown

if TYPE_CHECKING:
    from planner.config import ModelConfig
    from planner.config_problems import Finding

_NO_WEIGHTS = "there are no weights to build an engine from"
_REFUSED = "the download would be refused, after the cluster is made"


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """An object store: what a source in it looks like, and the pattern of the place (a bucket, or a container and its
    account)."""

    title: str
    shape: str
    place: re.Pattern[str]


STORES: Mapping[str, StoreFacts] = {
    "s3": StoreFacts(
        title="Amazon S3", shape="s3://BUCKET/PREFIX", place=re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
    ),
    "gs": StoreFacts(
        title="Cloud Storage", shape="gs://BUCKET/PREFIX", place=re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
    ),
    "az": StoreFacts(
        title="Azure Blob Storage",
        shape="az://CONTAINER@ACCOUNT/PREFIX",
        place=re.compile(r"[a-z0-9](-?[a-z0-9]){2,62}@[a-z0-9]{3,24}"),
    ),
}

# Letters that mean nothing in the rules of any cloud that say what lies below a prefix.
_PREFIX = re.compile(r"([A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*/?)?")
_DIGESTS = {"sha256:": 64, "etags:": 32}
STORAGE_ACCOUNT = re.compile(
    r"/subscriptions/(?P<subscription>[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})/resourceGroups/[\w.()-]{1,90}"
    r"/providers/Microsoft\.Storage/storageAccounts/(?P<name>[a-z0-9]{3,24})",
    re.ASCII,
)


@dataclass(frozen=True, kw_only=True)
class ObjectSource:
    """The objects below `prefix` ("": all of them) of a bucket; `account` is Azure's storage account."""

    scheme: str
    bucket: str
    account: str
    prefix: str

    @property
    def store(self) -> StoreFacts:
        return STORES[self.scheme]


def object_source(source: str) -> ObjectSource | None:
    """The place that a source names; None where it is in no object store."""
    scheme, separator, rest = source.partition("://")
    if not separator or scheme not in STORES:
        return None
    place, _, prefix = rest.partition("/")
    bucket, _, account = place.partition("@")
    return ObjectSource(scheme=scheme, bucket=bucket, account=account, prefix=prefix.strip("/"))


def cloud_source(model: "ModelConfig") -> ObjectSource | None:
    """A bucket that the model's weights are fetched from as somebody; None where they are elsewhere, or everybody's."""
    return object_source(model.source) if model.source_access == "identity" else None


def storage_account(ids: Sequence[str], name: str) -> str | None:
    """The resource id of that storage account, of those given."""
    return next((known for known in ids if known.rpartition("/")[2] == name), None)


def shape_problems(model: "ModelConfig") -> "Iterator[Finding]":
    """What is wrong with the source by itself, whatever the cloud."""
    found = object_source(model.source)
    if found is None:
        if model.source_access == "anonymous":
            what = f"anonymous is for {', '.join(f'{scheme}://' for scheme in STORES)}"
            yield "source_access", what, "it would have no effect", "remove it"
        return
    store = found.store
    place, _, prefix = model.source.partition("://")[2].partition("/")
    plain = not {".", ".."} & set(prefix.split("/"))
    if not store.place.fullmatch(place):
        account = " It names no storage account." if store.shape.count("@") > model.source.count("@") else ""
        what = f"{shown(model.source)} is not {store.shape}.{account}".rstrip(".")
        yield "source", what, _NO_WEIGHTS, f"write {store.shape}"
    elif not _PREFIX.fullmatch(prefix) or not plain:
        what = f"{shown(prefix)} is not a prefix of letters, digits, `.`, `_`, `-` and `=` between single slashes"
        yield "source", what, _NO_WEIGHTS, f"write {store.shape}, and copy what has another name"
    for kind, digits in _DIGESTS.items():
        revision = model.revision or ""
        if revision.startswith(kind) and not re.fullmatch(rf"{kind}[0-9a-f]{{{digits}}}", revision):
            what = f"{shown(revision)} is not {kind} and {digits} hexadecimal digits"
            fix = "give what `sha256sum SHA256SUMS` prints, or the etags: that a fetch prints (docs/weights.md)"
            yield "revision", what, "no objects could be this revision", fix


def access_problem(model: "ModelConfig", *, own: str | None, title: str) -> "tuple[str, str, str] | None":
    """Why pods of a cloud whose own object store has the scheme `own` could not read the source."""
    source = cloud_source(model)
    if source is None or source.scheme == own:
        return None
    copy = f"copy it to {STORES[own].shape} or the stack's bucket://PREFIX" if own else "give hf://ORG/NAME"
    return (
        f"{shown(model.source)} is in {source.store.title}, where pods of {title} are nobody",
        _REFUSED,
        f"{copy}; if everybody may read it, give `source_access: anonymous`",
    )


def account_problem(model: "ModelConfig", accounts: Sequence[str]) -> tuple[str, str, str] | None:
    """Why nobody could be given the right to read a source of Azure."""
    source = cloud_source(model)
    if source is None or source.scheme != "az" or storage_account(accounts, source.account):
        return None
    return (
        f"nothing says where the storage account {source.account} is",
        "the right to read it could not be given, which takes its resource id",
        f"list under azure.storage_accounts what `az storage account show --name {source.account} --query id` prints",
    )
