"""Files as ConfigMaps: named by their content and immutable, so that a change is a new object beside the old one."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from model_repo.render import render
from planner.errors import PlanError, Problem
from planner.plan import ModelPlan

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "runtime"
FRONTEND = ROOT / "frontend"
REQUIREMENTS = ROOT / "requirements" / "pods.txt"
LIMIT_BYTES = 1 << 20
"""Kubernetes' limit for all values of a ConfigMap (MaxSecretSize in its API validation)."""

SPEC_FILE = "engine.json"


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files of one ConfigMap: `data` by key, and `paths` says where the file of each key lies. Keys hold no slash."""

    name: str
    data: dict[str, str]
    paths: dict[str, str]

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders at the top, sorted."""
        return tuple(sorted({path.split("/")[0] for path in self.paths.values() if "/" in path}))


def runtime_files(folder: Path = RUNTIME) -> Files:
    """What runs inside the pods: the Python files of runtime/."""
    content = {path.name: path.read_bytes() for path in sorted(folder.glob("*.py"))}
    return _files("runtime", content, "split the package: most of it is not needed in one pod")


def frontend_files(folder: Path = FRONTEND) -> Files:
    """The frontend: its Python files, and those of its page."""
    found = [*folder.glob("*.py"), *(path for path in (folder / "static").rglob("*") if path.is_file())]
    content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}
    return _files("frontend", content, "split the package: the page's files may have a ConfigMap of their own")


def requirements_file(path: Path = REQUIREMENTS) -> Files:
    """What the environment of pods without a GPU is made of."""
    return _files("requirements", {path.name: path.read_bytes()}, "leave out packages that no such pod imports")


def repository_files(model: ModelPlan, engine_dir: str) -> Files:
    """The Triton model repository of a model whose engine lies at `engine_dir`."""
    return _files(f"{model.name}-repository", render(model, engine_dir), "keep weights and tokenizers in the engine")


def spec_file(model: ModelPlan) -> Files:
    """The engine spec that the build reads; the engine's id is the content's own hash already."""
    text = json.dumps(model.engine.document(), indent=2, sort_keys=True) + "\n"
    return Files(name=f"engine-{model.engine.id}", data={SPEC_FILE: text}, paths={SPEC_FILE: SPEC_FILE})


def _files(name: str, content: dict[str, bytes], fix: str) -> Files:
    size = sum(len(data) for data in content.values())
    if size > LIMIT_BYTES:
        largest = max(content, key=lambda path: len(content[path]))
        what = (
            f"{size:,} bytes in {len(content)} files, and a ConfigMap holds {LIMIT_BYTES:,}; the largest is {largest}"
        )
        consequence = "Kubernetes would refuse it, and no pod that mounts it could start"
        raise PlanError([Problem(key=f"ConfigMap {name}", what=what, consequence=consequence, fix=fix)])
    digest = hashlib.sha256()
    for path, data in sorted(content.items()):
        digest.update(f"{path}\0{len(data)}\0".encode() + data)
    keys = {path: path.replace("/", "__") for path in content}
    assert len(set(keys.values())) == len(keys), f"two files of {name} would have the same key"
    return Files(
        name=f"{name}-{digest.hexdigest()[:10]}",
        data={keys[path]: data.decode() for path, data in content.items()},
        paths={keys[path]: path for path in content},
    )
