"""Where tritonserver is, and the command line that starts it for one rank.

Two installations are known. A Triton container image has everything under /opt/tritonserver. A laptop has the PyPI
package `nvidia-pytriton`, which bundles the server and the python backend but leaves them to be put together: a
backend directory with the stub of this Python's minor version, and the library path that the server and its stub
need.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import Refusal

IMAGE_ROOT = Path("/opt/tritonserver")
LIBPYTHON_FOLDER = "libpython"
PYTHON_MINOR = "3.11"
LOG_FLAGS = {
    "error": ("--log-warning=false", "--log-info=false"),
    "warning": ("--log-info=false",),
    "info": (),
    "verbose": ("--log-verbose=1",),
}
"""Triton's flags for each log level: what it writes beyond its default, or leaves out."""
EXIT_SECONDS = 3600
"""The launcher bounds a drain. Triton by itself would cut what takes longer than 30 s, and a notice may be of 120 s."""


@dataclass(frozen=True)
class Triton:
    """One usable installation. `environment` is added to a rank's own, with its PATH before the inherited one."""

    executable: str
    backend_directory: str
    environment: dict[str, str]


@dataclass(frozen=True)
class Endpoints:
    """Where rank 0 listens. The address is an IP address of this host, or 0.0.0.0."""

    address: str
    http: int
    grpc: int
    metrics: int


def find_triton(cache: Path, image_root: Path = IMAGE_ROOT) -> Triton:
    """The image's Triton where there is one, else the bundled one prepared under `cache`. Raises Refusal."""
    if (image_root / "bin" / "tritonserver").is_file():
        return Triton(str(image_root / "bin" / "tritonserver"), str(image_root / "backends"), {})
    return _bundled(cache)


def rank_command(
    triton: Triton,
    *,
    rank: int,
    backend: str,
    model_repository: str,
    endpoints: Endpoints,
    shm_prefix: str,
    log_level: str = "info",
) -> list[str]:
    """Flags as in NVIDIA's multi-node leader mode: one server per rank, and only rank 0 answers requests.

    `shm_prefix` must differ between groups on one host: the python backend names its shared memory regions with it.
    """
    # trtllm-llmapi-launch makes rank 0 the LLM API's leader and every other rank one of its MPI workers.
    launcher = ["trtllm-llmapi-launch"] if backend == "pytorch" else []
    command = [
        *launcher,
        triton.executable,
        f"--model-repository={model_repository}",
        f"--backend-directory={triton.backend_directory}",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}{rank}_",
        *LOG_FLAGS[log_level],
    ]
    if rank > 0:
        return [
            *command,
            "--model-control-mode=explicit",
            "--load-model=tensorrt_llm",
            "--allow-http=false",
            "--allow-grpc=false",
            "--allow-metrics=false",
        ]
    return [
        *command,
        f"--http-address={endpoints.address}",
        f"--grpc-address={endpoints.address}",
        f"--metrics-address={endpoints.address}",
        f"--http-port={endpoints.http}",
        f"--grpc-port={endpoints.grpc}",
        f"--metrics-port={endpoints.metrics}",
    ]


def _bundled(cache: Path) -> Triton:
    # find_spec, not import: importing pytriton sets up logging, signal handlers and temporary directories of its own.
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise Refusal(
            f"there is no tritonserver: neither {IMAGE_ROOT}/bin/tritonserver nor the package nvidia-pytriton is here",
            "no rank could start",
            "run in a Triton image, or install requirements/local.txt into this Python's environment",
        )
    package = Path(spec.origin).parent
    server = package / "tritonserver" / "bin" / "tritonserver"
    libraries = package.parent / "nvidia_pytriton.libs"
    for needed in (server, libraries):
        if not needed.exists():
            raise Refusal(
                f"the nvidia-pytriton package is incomplete: {needed} is missing",
                "tritonserver could not start",
                "reinstall nvidia-pytriton in the version that requirements/local.txt names",
            )
    _refuse_numpy_2()
    backends = _backend_directory(package / "tritonserver", libpython(), cache)
    path = os.pathsep.join([str(backends / LIBPYTHON_FOLDER), str(libraries)])
    return Triton(str(server), str(backends), {"PATH": str(Path(sys.executable).parent), "LD_LIBRARY_PATH": path})


def libpython() -> Path:
    """This Python's shared library, which the python backend's stub loads. Raises Refusal."""
    name = str(sysconfig.get_config_var("INSTSONAME") or "")
    library = Path(str(sysconfig.get_config_var("LIBDIR") or ""))
    multiarch = str(sysconfig.get_config_var("MULTIARCH") or "")
    for directory in (library, library / multiarch, Path(sys.base_prefix) / "lib"):
        if ".so" in name and (directory / name).is_file():
            return directory / name
    raise Refusal(
        f"Python {sys.version.split()[0]} at {sys.base_prefix} has no shared libpython",
        "Triton's python backend embeds Python, so none of its models would load",
        "use a Python built with --enable-shared, as Debian's is (pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)",
    )


def _refuse_numpy_2() -> None:
    version = importlib.metadata.version("numpy") if importlib.util.find_spec("numpy") else None
    if version is None or int(version.split(".")[0]) >= 2:
        raise Refusal(
            f"numpy is {version or 'not installed'}; the bundled python backend is compiled for numpy 1",
            "text (BYTES) tensors would fail in every request",
            "install numpy 1.26.4, as in requirements/local.txt",
        )


def _backend_directory(bundle: Path, library: Path, cache: Path) -> Path:
    """A folder in `cache` with python/ inside, and a link to `library`; made once, whole or not at all.

    The link stands alone in its folder: a system's library folder on LD_LIBRARY_PATH would put the system's libmpi, of
    another Open MPI, in the place of the environment's own.
    """
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = bundle / "python_backend_stubs" / minor / "triton_python_backend_stub"
    # There are stubs for other minors; that for 3.12 was seen to crash when a model answers from a thread.
    if minor != PYTHON_MINOR or not stub.is_file():
        raise Refusal(
            f"this is Python {minor}, and the bundled Triton's python backend works with {PYTHON_MINOR} only",
            "no python model would load, or the first answer would crash it",
            f"make the environment anew with it: make clean, then make PYTHON=/path/to/python{PYTHON_MINOR} demo",
        )
    python = hashlib.sha256(str(library).encode()).hexdigest()[:8]
    target = cache / f"backends-{importlib.metadata.version('nvidia-pytriton')}-py{minor}-{python}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=cache))
        try:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(bundle / "backends" / "python", staging / "python", ignore=ignore)
            shutil.copy2(stub, staging / "python")
            (staging / LIBPYTHON_FOLDER).mkdir()
            (staging / LIBPYTHON_FOLDER / library.name).symlink_to(library)
            staging.chmod(0o755)
            _rename_unless_there(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _rename_unless_there(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError:
        # Another launcher was first: a directory cannot be renamed over one that has content, and theirs is the same.
        if not target.is_dir():
            raise


def missing_models(model_repository: Path, names: Sequence[str]) -> list[str]:
    """Those of `names` that the repository does not hold as a model directory with a config.pbtxt."""
    return [name for name in names if not (model_repository / name / "config.pbtxt").is_file()]
