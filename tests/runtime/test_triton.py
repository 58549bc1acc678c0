"""Finding a tritonserver, putting the bundled one together, and the flags and environment of each rank."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from runtime import triton
from runtime.errors import Refusal
from runtime.rank import HostSettings, blas_environment, cpu_flags, mpi_rank, server_environment
from runtime.triton import LOG_FLAGS, Endpoints, Triton, find_triton, rank_command

IMAGE = Triton("/opt/tritonserver/bin/tritonserver", "/opt/tritonserver/backends", {})
ENDPOINTS = Endpoints("0.0.0.0", 8000, 8001, 8002)


def test_the_images_triton_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tritonserver").touch()
    found = find_triton(tmp_path / "cache", image_root=tmp_path)
    assert found == Triton(f"{tmp_path}/bin/tritonserver", f"{tmp_path}/backends", {})
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def bundled() -> None:
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("nvidia-pytriton is not installed")


@pytest.mark.usefixtures("bundled")
def test_the_bundled_triton_starts_with_the_environment_found(tmp_path: Path) -> None:
    found = find_triton(tmp_path, image_root=tmp_path / "no image")
    said = subprocess.run(
        [found.executable, "--help"], env=found.environment, capture_output=True, text=True, check=False
    )
    assert "--model-repository" in said.stdout + said.stderr
    stub = Path(found.backend_directory) / "python" / "triton_python_backend_stub"
    assert os.access(stub, os.X_OK)
    linked = subprocess.run(
        ["ldd", stub],
        env={**os.environ, **found.environment, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"libpython{sys.version_info.major}.{sys.version_info.minor}" in linked.stdout
    assert "not found" not in linked.stdout
    # Nothing else of the system comes before the environment's own libraries.
    first = Path(found.environment["LD_LIBRARY_PATH"].split(os.pathsep)[0])
    assert [path.name.startswith("libpython") for path in first.iterdir()] == [True]
    assert "pytriton" not in sys.modules


@pytest.mark.usefixtures("bundled")
def test_the_backend_directory_is_made_once_and_whole_by_however_many(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tries = [pool.submit(find_triton, tmp_path, tmp_path / "no") for _ in range(8)]
    found = {each.result().backend_directory for each in tries}
    (directory,) = found
    made = {path: path.stat().st_mtime_ns for path in Path(directory).rglob("*")}
    assert {path.name for path in made} >= {"libtriton_python.so", "triton_python_backend_utils.py"}
    assert [path.name for path in tmp_path.iterdir()] == [Path(directory).name]
    find_triton(tmp_path, tmp_path / "no")
    assert made == {path: path.stat().st_mtime_ns for path in Path(directory).rglob("*")}


@pytest.mark.usefixtures("bundled")
def test_an_interrupted_preparation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copy2", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_triton(tmp_path, tmp_path / "no")
    assert list(tmp_path.iterdir()) == []


def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(_: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(triton.importlib.util, "find_spec", find_spec)


def numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.importlib.metadata, "version", lambda _name: "2.1.0")  # pyright: ignore


def static_python(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sysconfig.get_config_var
    monkeypatch.setattr(sysconfig, "get_config_var", lambda n: "libpython3.11.a" if n == "INSTSONAME" else real(n))  # pyright: ignore


def other_python(monkeypatch: pytest.MonkeyPatch) -> None:
    class Version(tuple[int, int]):
        major, minor = 3, 12  # there is a stub for it, but it crashes

    monkeypatch.setattr(sys, "version_info", Version((3, 12)))


@pytest.mark.usefixtures("bundled")
@pytest.mark.parametrize(
    ("lacking", "what"),
    [
        (no_package, "there is no tritonserver"),
        (numpy_2, r"numpy is 2\.1\.0"),
        (static_python, "has no shared libpython"),
        (other_python, r"this is Python 3\.12, .* works with 3\.11 only"),
    ],
)
def test_what_is_lacking_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: Callable[[pytest.MonkeyPatch], None], what: str
) -> None:
    with monkeypatch.context() as patch:
        lacking(patch)
        with pytest.raises(Refusal, match=what) as refusal:
            find_triton(tmp_path / "cache", tmp_path / "no")
    assert refusal.value.consequence
    assert refusal.value.fix
    assert not (tmp_path / "cache").exists()


def flags(rank: int, backend: str = "tensorrt", log_level: str = "info") -> list[str]:
    return rank_command(
        IMAGE,
        rank=rank,
        backend=backend,
        model_repository="/models",
        endpoints=ENDPOINTS,
        shm_prefix="group_",
        log_level=log_level,
    )


def test_rank_0_serves_and_the_others_only_load() -> None:
    assert flags(0) == [
        "/opt/tritonserver/bin/tritonserver",
        "--model-repository=/models",
        "--backend-directory=/opt/tritonserver/backends",
        "--disable-auto-complete-config",
        "--exit-timeout-secs=3600",
        "--backend-config=python,shm-region-prefix-name=group_0_",
        "--http-address=0.0.0.0",
        "--grpc-address=0.0.0.0",
        "--metrics-address=0.0.0.0",
        "--http-port=8000",
        "--grpc-port=8001",
        "--metrics-port=8002",
    ]
    assert flags(5)[5:] == [
        "--backend-config=python,shm-region-prefix-name=group_5_",
        "--model-control-mode=explicit",
        "--load-model=tensorrt_llm",
        "--allow-http=false",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ]


def test_each_log_level_has_its_flags() -> None:
    assert {level: flags(1, log_level=level)[6:-5] for level in LOG_FLAGS} == {
        "error": ["--log-warning=false", "--log-info=false"],
        "warning": ["--log-info=false"],
        "info": [],
        "verbose": ["--log-verbose=1"],
    }


def test_the_llm_api_is_started_through_its_own_launcher_on_every_rank() -> None:
    for rank in (0, 1):
        assert flags(rank, "pytorch") == ["trtllm-llmapi-launch", *flags(rank)]


def host(backend: str, interface: str | None = None) -> HostSettings:
    settings = HostSettings(
        host="here",
        backend=backend,
        model_repository="/models",
        triton=Triton("t", "b", {"PATH": "/venv/bin", "LD_LIBRARY_PATH": "/lib"}),
        endpoints=ENDPOINTS,
        log_directory="/logs",
        tree_directory="/tree",
        shm_prefix="group_",
        ranks_per_host=3,
        busy_ranks=3,
        interface=interface,
        temporary_directory=None,
    )
    assert HostSettings.from_json(settings.to_json()) == settings
    return settings


@pytest.mark.parametrize(("cores", "threads"), [(2, "1"), (3, "1"), (16, "5")])
def test_cpu_ranks_share_the_cores_of_their_host(cores: int, threads: str) -> None:
    env = server_environment(host("cpu"), {"PATH": "/bin"}, cores, "/tree/lifeline.0")
    assert env["OPENBLAS_NUM_THREADS"] == threads
    assert env["PATH"] == "/venv/bin:/bin"
    assert env["TRITONFLEET_LIFELINE"] == "/tree/lifeline.0"
    assert env["OMPI_MCA_mpi_yield_when_idle"] == "1"


def test_one_stage_of_a_pipeline_has_the_host_to_itself() -> None:
    assert blas_environment(8, 1, set())["OPENBLAS_NUM_THREADS"] == "8"


def test_blas_kernels_are_named_only_where_they_run() -> None:
    assert blas_environment(2, 1, {"avx2", "fma", "sse"})["OPENBLAS_CORETYPE"] == "Haswell"
    assert "OPENBLAS_CORETYPE" not in blas_environment(2, 1, {"avx2"})
    assert "fpu" in cpu_flags() or os.uname().machine != "x86_64"


def test_what_the_operator_sets_is_left_alone() -> None:
    mine = {"OPENBLAS_NUM_THREADS": "7", "OMPI_MCA_btl_tcp_if_include": "eth9", "PATH": "/bin"}
    env = server_environment(host("cpu", "eth0"), mine, 16, "l")
    assert {key: env[key] for key in mine} == mine | {"PATH": "/venv/bin:/bin"}
    assert server_environment(host("cpu", "eth0"), {}, 16, "l")["OMPI_MCA_btl_tcp_if_include"] == "eth0"
    other = server_environment(host("cpu", "eth0"), {"OMPI_MCA_btl_tcp_if_exclude": "lo"}, 16, "l")
    assert "OMPI_MCA_btl_tcp_if_include" not in other


def test_gpu_ranks_get_their_transports_from_the_pod_alone() -> None:
    env = server_environment(
        host("tensorrt", "eth0"), {"FI_PROVIDER": "efa", "TRITONFLEET_HOST": "{}", "TMPDIR": "/tree"}, 16, "l"
    )
    assert set(env) == {"FI_PROVIDER", "PATH", "LD_LIBRARY_PATH", "TRITONFLEET_LIFELINE"}


def test_the_rank_is_read_from_open_mpi_or_pmix() -> None:
    assert mpi_rank({"OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "3"}) == 0
    assert mpi_rank({"PMIX_RANK": "3"}) == 3
