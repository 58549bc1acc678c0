import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import Refusal
from runtime.host import Gpu, HostFacts
from runtime.spec import Spec
from runtime.store import EngineStore, check_loadable
from tests.runtime.sample_engines import CPU_HOST, CPU_KEY, GPU_KEY, h100_host, spec_of, write_engine

SPEC = spec_of(CPU_KEY)


def publish(store: EngineStore, spec: Spec = SPEC) -> Path:
    return store.publish(spec, lambda out: write_engine(out, spec))


def test_a_sound_engine_is_loadable_and_its_manifest_comes_back(tmp_path: Path) -> None:
    engine = publish(EngineStore(tmp_path))
    manifest = check_loadable(engine, world_size=3, host=CPU_HOST)
    assert manifest["key"] == SPEC["key"]
    gpu_spec = spec_of(GPU_KEY)
    engine = publish(EngineStore(tmp_path), gpu_spec)
    assert check_loadable(engine, world_size=2, host=h100_host())["engine"] == gpu_spec["engine"]


def _with_gpu(**changes: Any) -> HostFacts:
    host = h100_host()
    host["gpus"] = [host["gpus"][0], Gpu(**(host["gpus"][0] | changes))]  # type: ignore[typeddict-item]
    return host


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (h100_host(tensorrt_llm="1.2.0"), "tensorrt_llm 1.2.1, and this host has 1.2.0"),
        (h100_host(tensorrt="10.13.3.9"), "tensorrt 10.14.1.48, and this host has 10.13.3.9"),
        (h100_host(tensorrt=None), "this host has none"),
        (h100_host(count=0), "this host has no GPU"),
        (_with_gpu(gpu="H200-141GB"), "this host has H200-141GB"),
        (_with_gpu(compute_capability="9.1"), "compute capability 9.1"),
        (_with_gpu(mig_profile="3g.40gb"), "MIG 3g.40gb"),
    ],
)
def test_an_engine_for_another_host_is_refused(tmp_path: Path, host: HostFacts, reason: str) -> None:
    engine = publish(EngineStore(tmp_path), spec_of(GPU_KEY))
    with pytest.raises(Refusal, match=reason):
        check_loadable(engine, world_size=2, host=host)


def test_a_cpu_engine_minds_only_its_format(tmp_path: Path) -> None:
    engine = publish(EngineStore(tmp_path))
    gpu_host = h100_host()
    gpu_host["cpu_engine"] = "1"
    assert check_loadable(engine, world_size=3, host=gpu_host)
    gpu_host["cpu_engine"] = "2"
    with pytest.raises(Refusal, match="cpu_engine 1, and this host has 2"):
        check_loadable(engine, world_size=3, host=gpu_host)


def _drop_rank_from_manifest(engine: Path) -> None:
    manifest = json.loads((engine / "manifest.json").read_text())
    del manifest["files"]["rank2.safetensors"]
    (engine / "manifest.json").write_text(json.dumps(manifest))


def _change_key(engine: Path) -> None:
    manifest = json.loads((engine / "manifest.json").read_text())
    manifest["key"]["dtype"] = "float16"
    (engine / "manifest.json").write_text(json.dumps(manifest))


def _lie_in_config(engine: Path) -> None:
    text = (engine / "config.json").read_text().replace('"world_size": 3', '"world_size": 4')
    (engine / "config.json").write_text(text)


UNLOADABLE: list[tuple[Callable[[Path], object], str]] = [
    (lambda e: (e / "rank2.safetensors").unlink(), "rank2.safetensors: No such file"),
    (lambda e: os.truncate(e / "rank1.safetensors", 2999), "2999 bytes, not 3000"),
    (_drop_rank_from_manifest, "has no rank2.safetensors"),
    (_change_key, "not the hash of its key"),
    (_lie_in_config, "world size 4, its key 3"),
    (lambda e: (e / "manifest.json").write_text("not json"), "cannot be read"),
    (lambda e: (e / "manifest.json").write_bytes(b"\xff\xfe"), "cannot be read"),
    (lambda e: (e / "manifest.json").write_text("[]"), "not a JSON object"),
    (lambda e: (e / "manifest.json").write_text(json.dumps(SPEC)), "no valid list of files"),
    (lambda e: (e / "manifest.json").unlink(), "no manifest.json"),
]


@pytest.mark.parametrize(("damage", "reason"), UNLOADABLE)
def test_a_damaged_engine_is_refused_with_its_reason(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    engine = publish(EngineStore(tmp_path))
    damage(engine)
    with pytest.raises(Refusal, match=reason) as caught:
        check_loadable(engine, world_size=3, host=CPU_HOST)
    assert "consequence:" in str(caught.value)
    assert "fix:" in str(caught.value)


def test_a_group_of_the_wrong_size_and_a_renamed_engine_are_refused(tmp_path: Path) -> None:
    engine = publish(EngineStore(tmp_path))
    with pytest.raises(Refusal, match=r"needs 3 ranks \(TP 3 x PP 1\), and the group has 4"):
        check_loadable(engine, world_size=4, host=CPU_HOST)
    renamed = engine.rename(engine.with_name("0" * 16))
    with pytest.raises(Refusal, match=f"that of engine {SPEC['engine']}"):
        check_loadable(renamed, world_size=3, host=CPU_HOST)
