"""What an existing cluster lacks, asked of itself before anything is registered. Nothing is made there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from pydantic import ValidationError
from urllib3.exceptions import HTTPError

from planner.cloud_config import ExistingConfig
from planner.config_problems import Finding
from planner.errors import Problem, did_you_mean, shown
from planner.untyped import as_list, as_mapping
from planner.versions import OLDEST_KUBERNETES

ONE_NODE_PROVISIONERS = frozenset(
    {"rancher.io/local-path", "ebs.csi.aws.com", "pd.csi.storage.gke.io", "disk.csi.azure.com"}
)
"""Their volumes are a node's folder or disk: they leave a claim of many writers pending, by their documentation."""

LEADER_WORKER_SET = "leaderworkerset.x-k8s.io"

# To connect, and for an answer: a tunnel that is down says nothing at all.
_SECONDS = (5.0, 15.0)

_NOTHING = "nothing could be deployed; nothing was made"


def problems_of(existing: ExistingConfig) -> list[Problem]:
    """Everything wrong with the kubeconfig, or else with the cluster that it names."""
    found = list(_of_file(existing))
    if not found:
        found = list(dict.fromkeys(_of_cluster(existing)))
    return [Problem(key=f"existing.{key}", what=what, consequence=cost, fix=fix) for key, what, cost, fix in found]


def _of_file(existing: ExistingConfig) -> Iterator[Finding]:
    path, fix = existing.kubeconfig, "give the path of the cluster's kubeconfig, as `kind export kubeconfig` writes one"
    try:
        text = _path(existing).read_text(encoding="utf-8")
        parsed = yaml.safe_load(text)
    except OSError as error:
        yield "kubeconfig", f"{path}: {error.strerror}", _NOTHING, fix
        return
    except (ValueError, RuntimeError, RecursionError, yaml.YAMLError):
        yield "kubeconfig", f"{path} is not YAML", _NOTHING, fix
        return
    contexts = [as_mapping(entry).get("name") for entry in as_list(as_mapping(parsed).get("contexts"))]
    names = [name for name in contexts if isinstance(name, str)]
    if not names:
        what = "is empty" if not text.strip() else "has no contexts"
        yield "kubeconfig", f"{path} {what}", _NOTHING, fix
        return
    listed = f"give one of {', '.join(sorted(names))}"
    if existing.context is None:
        if len(names) > 1:
            cost = "whichever is current in somebody's shell would be changed"
            yield "context", f"is missing, and {path} has {len(names)}", cost, listed
        elif as_mapping(parsed).get("current-context") != names[0]:
            yield "context", f"is missing, and {path} has no current one", _NOTHING, listed
    elif existing.context not in names:
        fix = did_you_mean(existing.context, names, listed)
        yield "context", f"{path} has no context {shown(existing.context)}", _NOTHING, fix


def _of_cluster(existing: ExistingConfig) -> Iterator[Finding]:
    try:
        api = _api(existing)
    except (ConfigException, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        # The client checks the file's shape here and there.
        fix = "write it anew, for example by `kind export kubeconfig`"
        yield "kubeconfig", f"{existing.kubeconfig} cannot be used: {_reason(error)}", _NOTHING, fix
        return
    for ask in (_of_version, _of_storage, _of_rights, _of_sets):
        try:
            yield from ask(existing, api)
        except ApiException as error:
            yield _refused(existing, cast(Any, error))
            if not cast(Any, error).status:
                return
        except ValidationError:
            what = f"what {_named(existing)} leads to answers unlike a Kubernetes API server"
            yield "context", what, _NOTHING, "correct the server's address in the kubeconfig"
            return
        except (HTTPError, OSError, ValueError) as error:
            what = f"the cluster of {_named(existing)} does not answer: {_reason(error)}"
            yield "context", what, _NOTHING, f"start it or its tunnel; `kubectl version{_option(existing)}` must answer"
            return


def _of_version(existing: ExistingConfig, api: client.ApiClient) -> Iterator[Finding]:
    found = client.VersionApi(api).get_code(_request_timeout=_SECONDS)
    # Some clouds put a + after the minor version.
    version = (int(found.major), int(found.minor.rstrip("+")))
    if version < OLDEST_KUBERNETES:
        oldest = ".".join(map(str, OLDEST_KUBERNETES))
        what = f"the cluster of {_named(existing)} has Kubernetes {found.major}.{found.minor}"
        cost = f"it would drop or refuse fields that pods rely on, which came with {oldest}"
        yield "context", what, cost, f"use a cluster of {oldest} or newer"


def _of_storage(existing: ExistingConfig, api: client.ApiClient) -> Iterator[Finding]:
    listed = client.StorageV1Api(api).list_storage_class(_request_timeout=_SECONDS).items
    classes = {found.metadata.name: found.provisioner for found in listed if found.metadata and found.metadata.name}
    name = existing.storage_class
    if name not in classes:
        known = f"give one of {', '.join(sorted(classes))}" if classes else "install a provisioner: it has none"
        cost = "the volume for engines would never come, and no pod start"
        yield "storage_class", f"the cluster has no {shown(name)}", cost, did_you_mean(name, classes, known)
    elif existing.access_mode == "ReadWriteMany" and classes[name] in ONE_NODE_PROVISIONERS:
        what = f"ReadWriteMany, and the volumes of {name} ({classes[name]}) are for one node"
        fix = "give ReadWriteOnce where one node does, or the class of a network file system"
        yield "access_mode", what, "the claim would stay pending, and every pod with it", fix


def _of_rights(existing: ExistingConfig, api: client.ApiClient) -> Iterator[Finding]:
    """The widest of what is made; the rest lies in the namespace that its maker may fill."""
    wanted = {"namespaces": ""}
    if existing.install_leader_worker_set:
        wanted |= {"customresourcedefinitions": "apiextensions.k8s.io", "clusterroles": "rbac.authorization.k8s.io"}
    missing = [resource for resource, group in wanted.items() if not _may_create(api, group, resource)]
    if missing:
        what = f"the user of {_named(existing)} may not create {' or '.join(missing)}"
        yield "context", what, "the update would end in the middle", "give the context of a cluster administrator"


def _of_sets(existing: ExistingConfig, api: client.ApiClient) -> Iterator[Finding]:
    if existing.install_leader_worker_set:
        return
    groups = client.ApisApi(api).get_api_versions(_request_timeout=_SECONDS).groups
    if LEADER_WORKER_SET not in [group.name for group in groups]:
        cost = "nothing would make pods of the models' groups"
        yield "install_leader_worker_set", "false, and the cluster has none", cost, "remove it, or install it there"


def _may_create(api: client.ApiClient, group: str, resource: str) -> bool:
    asked = client.V1ResourceAttributes(verb="create", group=group, resource=resource)
    review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=asked))
    reviews = client.AuthorizationV1Api(api)
    status = reviews.create_self_subject_access_review(review, _request_timeout=_SECONDS).status
    return status is not None and status.allowed


def _api(existing: ExistingConfig) -> client.ApiClient:
    settings: Any = client.Configuration()
    settings.retries = False
    # A token that is renewed on the way is not written back: the file is somebody else's.
    load = cast(Any, config).new_client_from_config
    return load(str(_path(existing)), existing.context, persist_config=False, client_configuration=settings)


def _refused(existing: ExistingConfig, error: Any) -> Finding:
    known = {0: f"no sound TLS: {_reason(error)}", 401: "it does not know the user", 403: "the user may not"}
    says = known.get(error.status, f"it answers with {error.status}")
    what = f"the cluster of {_named(existing)} does not let us look: {says}"
    return "context", what, _NOTHING, f"log in again, or give another context; try `kubectl get sc{_option(existing)}`"


def _path(existing: ExistingConfig) -> Path:
    return Path(existing.kubeconfig).expanduser()


def _named(existing: ExistingConfig) -> str:
    return f"context {existing.context}" if existing.context else existing.kubeconfig


def _option(existing: ExistingConfig) -> str:
    return f" --context {existing.context}" if existing.context else ""


def _reason(error: Exception) -> str:
    """What went wrong, without what the client quotes of the file: that may be a token."""
    if not isinstance(error, ConfigException | OSError | HTTPError | ApiException):
        return "something in it is not what it should be"
    return " ".join(str(error).partition("{")[0].split())[:200] or type(error).__name__
