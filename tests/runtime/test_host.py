import csv
import sys
from pathlib import Path

import pytest

from runtime.host import GPU_NAMES, gpu_name, host_facts

# What `nvidia-smi --query-gpu=name,memory.total` prints on each product.
PRODUCTS = [
    ("NVIDIA H100 80GB HBM3", 81559, "H100-80GB"),
    ("NVIDIA H100 PCIe", 81559, "H100-80GB"),
    ("NVIDIA H100 NVL", 95830, "H100-94GB"),
    ("NVIDIA H200", 143771, "H200-141GB"),
    ("NVIDIA H200 NVL", 143771, "H200-141GB"),
    ("NVIDIA B200", 183359, "B200-180GB"),
    ("NVIDIA GB200", 189471, "GB200-186GB"),
    ("NVIDIA B300 SXM6 AC", 275040, "B300-288GB"),
    ("NVIDIA GH200 480GB", 97871, "GH200-96GB"),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887, "RTX-PRO-6000-96GB"),
    ("NVIDIA A100-SXM4-80GB", 81920, "A100-80GB"),
    ("NVIDIA A100 80GB PCIe", 81920, "A100-80GB"),
    ("NVIDIA A100-SXM4-40GB", 40960, "A100-40GB"),
    ("NVIDIA A100-PCIE-40GB", 40960, "A100-40GB"),
    ("NVIDIA A10G", 23028, "A10G"),
    ("NVIDIA A10", 23028, "A10-24GB"),
    ("NVIDIA A30", 24576, "A30-24GB"),
    ("NVIDIA L4", 23034, "L4"),
    ("NVIDIA L40S", 46068, "L40S"),
    ("Tesla T4", 15360, "T4"),
    ("Tesla V100-SXM2-32GB", 32768, "V100-32GB"),
]


@pytest.mark.parametrize(("product", "memory_mib", "name"), PRODUCTS)
def test_products_get_the_names_of_plans(product: str, memory_mib: int, name: str) -> None:
    assert gpu_name(product, memory_mib) == name


@pytest.mark.parametrize(
    ("product", "memory_mib"),
    [
        ("NVIDIA L40", 46068),
        ("NVIDIA GH200 144G HBM3e", 146831),
        ("NVIDIA GeForce RTX 4090", 24564),
        ("NVIDIA A1000", 8188),
    ],
)
def test_a_product_without_a_name_is_not_taken_for_another(product: str, memory_mib: int) -> None:
    assert gpu_name(product, memory_mib) == product


def test_every_name_is_one_that_plans_know() -> None:
    catalog = Path(__file__).parents[2] / "planner" / "catalog" / "gpus.csv"
    known = {row["gpu"] for row in csv.DictReader(catalog.open(encoding="utf-8"))}
    assert {name for _, _, name in GPU_NAMES} == known


def fake_nvidia_smi(folder: Path, query: str, listing: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "query").write_text(query)
    (folder / "list").write_text(listing)
    tool = folder / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\nif [ "$1" = -L ]; then cat {folder}/list; else cat {folder}/query; fi\n')
    tool.chmod(0o755)


def test_a_host_with_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(
        tmp_path / "bin",
        "NVIDIA H100 80GB HBM3, 81559, 9.0, Disabled\nNVIDIA L4, 23034, 8.9, [N/A]\n",
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)\nGPU 1: NVIDIA L4 (UUID: GPU-1)\n",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    first, second = host_facts()["gpus"]
    assert (first["gpu"], first["compute_capability"], first["memory_mib"], first["mig_profile"]) == (
        "H100-80GB",
        "9.0",
        81559,
        None,
    )
    assert (second["gpu"], second["mig_profile"]) == ("L4", None)


def test_a_host_with_mig_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(
        tmp_path / "bin",
        "NVIDIA A100-SXM4-40GB, 40960, 8.0, Enabled\nNVIDIA A100-SXM4-40GB, 40960, 8.0, Disabled\n",
        "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0)\n"
        "  MIG 3g.20gb     Device  0: (UUID: MIG-1)\n"
        "  MIG 1g.5gb+me   Device  1: (UUID: MIG-2)\n"
        "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-1)\n",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    assert [gpu["mig_profile"] for gpu in host_facts()["gpus"]] == ["3g.20gb", "1g.5gb+me", None]


def test_a_host_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host_facts()["gpus"] == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the driver'\nexit 9\n"
    )
    tool.chmod(0o755)
    assert host_facts()["gpus"] == []


@pytest.mark.parametrize(("installed", "found"), [("10.14.1.48", "10.14.1.48"), ("10.14.1.48.post1", "10.14.1.48")])
def test_versions_are_those_of_the_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str, found: str
) -> None:
    install_versions(tmp_path, tensorrt=installed, tensorrt_llm="1.2.1")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    facts = host_facts()
    assert (facts["tensorrt"], facts["tensorrt_llm"]) == (found, "1.2.1")
    assert facts["cpu_engine"] == "1"


def install_versions(site: Path, **versions: str) -> None:
    """Package metadata as pip leaves it, without the packages: those exist only in the TensorRT-LLM image."""
    for name, version in versions.items():
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
