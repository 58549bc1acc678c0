"""What this host has that an engine depends on: its GPUs and the versions that would load the engine.

TensorRT engines record neither the GPU nor the TensorRT version in config.json, and refuse the wrong ones only while
loading, so both are in the engine key and are compared here first.
"""

import csv
import io
import re
import shutil
import subprocess
from importlib import metadata
from typing import Any, TypedDict

from runtime.errors import Refusal


class Gpu(TypedDict):
    """One GPU, or one MIG slice of it. `gpu` is the name that plans use, or the product where that is not known."""

    gpu: str
    product: str
    compute_capability: str
    memory_mib: int
    mig_profile: str | None


class HostFacts(TypedDict):
    """GPUs, and the installed version of each thing that loads engines, None where it is not installed."""

    gpus: list[Gpu]
    tensorrt_llm: str | None
    tensorrt: str | None
    cpu_engine: str | None


# (word in nvidia-smi's product name, least memory in MiB, the plans' name); the first match wins.
# Product names and memory.total: nvidia-smi on each GPU, as NVIDIA's data sheets and drivers print them, 2026-11.
GPU_NAMES: tuple[tuple[str, int, str], ...] = (
    ("GB200", 0, "GB200-186GB"),
    ("B300", 0, "B300-288GB"),
    ("B200", 0, "B200-180GB"),
    ("H200", 0, "H200-141GB"),
    ("480GB", 90_000, "GH200-96GB"),
    ("H100", 90_000, "H100-94GB"),
    ("H100", 70_000, "H100-80GB"),
    ("A100", 70_000, "A100-80GB"),
    ("A100", 0, "A100-40GB"),
    ("A30", 0, "A30-24GB"),
    ("A10G", 0, "A10G"),
    ("A10", 0, "A10-24GB"),
    ("L40S", 0, "L40S"),
    ("L4", 0, "L4"),
    ("T4", 0, "T4"),
    ("V100", 30_000, "V100-32GB"),
    ("6000", 90_000, "RTX-PRO-6000-96GB"),
)


def host_facts() -> HostFacts:
    """Read this host. Without a GPU or a driver `gpus` is empty; nothing is raised."""
    return HostFacts(
        gpus=_gpus(),
        tensorrt_llm=_installed("tensorrt_llm"),
        tensorrt=_installed("tensorrt", "tensorrt_cu13"),
        cpu_engine=_cpu_engine(),
    )


def gpu_name(product: str, memory_mib: int) -> str:
    """The plans' name of an nvidia-smi product; the product itself where there is none."""
    words = re.split(r"[\s\-_]+", product.upper())
    return next(
        (name for word, least, name in GPU_NAMES if word in words and memory_mib >= least),
        product,
    )


def require_host(key: dict[str, Any], host: HostFacts, subject: str) -> None:
    """Raise Refusal unless this host has the versions and the GPUs that `key` names."""
    wrong = "TensorRT would refuse the engine while loading, after minutes, or compute with other kernels than planned"
    for name, wanted in key["versions"].items():
        found = host.get(name)
        if found != wanted:
            raise Refusal(
                f"{subject} is for {name} {wanted}, and this host has {found or 'none'}",
                wrong if key["backend"] != "cpu" else "the engine's files would be read by the wrong reader",
                f"use the image with {name} {wanted}, or plan for the version that is here",
            )
    if key["backend"] == "cpu":
        return
    target = key["target"]
    wanted = _describe(target["gpu"], target["compute_capability"], target["mig_profile"])
    if not host["gpus"]:
        raise Refusal(f"{subject} is for {wanted}, and this host has no GPU", wrong, f"run it on a node with {wanted}")
    for gpu in host["gpus"]:
        found = _describe(gpu["gpu"], gpu["compute_capability"], gpu["mig_profile"])
        if found != wanted:
            raise Refusal(
                f"{subject} is for {wanted}, and this host has {found}",
                wrong,
                f"run it on a node with {wanted}, or plan with gpu: {gpu['gpu']}",
            )


def _describe(gpu: str | None, compute_capability: str | None, mig_profile: str | None) -> str:
    slice_ = f" MIG {mig_profile}" if mig_profile else ""
    return f"{gpu}{slice_} (compute capability {compute_capability})"


def _gpus() -> list[Gpu]:
    if shutil.which("nvidia-smi") is None:
        return []
    fields = "name,memory.total,compute_cap,mig.mode.current"
    table = _nvidia_smi(f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    gpus: list[Gpu] = []
    profiles = _mig_profiles()
    for index, row in enumerate(csv.reader(io.StringIO(table), skipinitialspace=True)):
        product, memory, capability, mig_mode = (cell.strip() for cell in row)
        memory_mib = int(memory) if memory.isdigit() else 0
        name = gpu_name(product, memory_mib)
        for profile in profiles.get(index, []) if mig_mode == "Enabled" else [None]:
            gpus.append(
                Gpu(
                    gpu=name,
                    product=product,
                    compute_capability=capability,
                    memory_mib=memory_mib,
                    mig_profile=profile,
                )
            )
    return gpus


def _mig_profiles() -> dict[int, list[str]]:
    """MIG profiles by GPU, in nvidia-smi's order: its -L prints a line per GPU and an indented one per slice."""
    found: dict[int, list[str]] = {}
    for line in _nvidia_smi("-L").splitlines():
        if line.startswith("GPU "):
            found[len(found)] = []
        elif found and (match := re.match(r"\s+MIG\s+(\S+)", line)):
            found[len(found) - 1].append(match[1])
    return found


def _nvidia_smi(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=30, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _installed(*distributions: str) -> str | None:
    for distribution in distributions:
        try:
            # Wheels add build marks (.post1, +cu13) that the engine does not depend on.
            return re.split(r"\.post|\+", metadata.version(distribution))[0]
        except metadata.PackageNotFoundError:
            continue
    return None


def _cpu_engine() -> str | None:
    try:
        from runtime.cpu_engine import FORMAT
    except ImportError:
        return None
    return FORMAT
