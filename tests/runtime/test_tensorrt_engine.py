"""The real tools exist only in the TensorRT-LLM image and need its GPUs: stand-ins on PATH take their place here.

UPDATE_GOLDEN=1 writes the golden command lines anew.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.build import build_engine
from runtime.errors import Refusal
from runtime.spec import Spec
from runtime.store import EngineStore, check_loadable
from runtime.tensorrt_engine import BUILD_OPTIONS, CONVERTERS, commands
from tests.runtime.sample_engines import GPU_KEY, h100_host, spec_of
from tests.runtime.test_host import fake_nvidia_smi, install_versions

GOLDEN = Path(__file__).parents[1] / "golden" / "trtllm_build"


def quantised(weights: str, kv_cache: str = "none", **changes: Any) -> Spec:
    return spec_of(GPU_KEY, quantization={"weights": weights, "kv_cache": kv_cache}, **changes)


def family(name: str, **changes: Any) -> Spec:
    return spec_of(GPU_KEY, model={"family": name}, **changes)


CASES: dict[str, tuple[Spec, int]] = {
    "llama-bf16-tp2": (spec_of(GPU_KEY), 2),
    "llama-bf16-tp2-on-one-gpu": (spec_of(GPU_KEY), 1),
    "llama-bf16-tp8-pp2": (spec_of(GPU_KEY, mapping={"tensor_parallel": 8, "pipeline_parallel": 2}), 8),
    "llama-fp8-kv-fp8": (quantised("fp8", "fp8"), 2),
    "llama-nvfp4": (quantised("nvfp4"), 2),
    "llama-int8-wo": (quantised("int8_wo"), 2),
    "llama-int4-wo-kv-int8": (quantised("int4_wo", "int8"), 2),
    "llama-int4-awq": (quantised("int4_awq"), 2),
    "llama-w4a8-awq": (quantised("w4a8_awq", "fp8"), 2),
    "llama-int8-sq": (quantised("int8_sq", "int8"), 2),
    "llama-bf16-kv-fp8": (quantised("none", "fp8"), 2),
    "qwen3-moe-fp16": (family("qwen3_moe", dtype="float16"), 2),
    "gemma2-int8-wo": (quantised("int8_wo", model={"family": "gemma2"}), 2),
    "phi3": (family("phi3"), 2),
    "deepseek-v2": (family("deepseek_v2"), 2),
    "every-flag-turned": (
        spec_of(
            GPU_KEY,
            build={
                "multiple_profiles": True,
                "reduce_fusion": True,
                "use_paged_context_fmha": False,
                "gemm_plugin": "fp8",
            },
        ),
        2,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_command_lines_are_the_golden_ones(case: str) -> None:
    spec, gpus = CASES[case]
    lines = commands(spec, Path("/checkpoint"), Path("/scratch"), Path("/out"), gpus)
    text = "\n".join(shlex.join(line).replace(" --", " \\\n    --") for line in lines) + "\n"
    golden = GOLDEN / f"{case}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text(text)
    assert golden.read_text() == text


def test_there_is_no_golden_file_without_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


def test_every_build_input_of_the_key_reaches_a_command_line() -> None:
    for name, value in GPU_KEY["build"].items():
        other = not value if isinstance(value, bool) else "disable" if isinstance(value, str) else value + 1
        changed = spec_of(GPU_KEY, build={name: other})
        places = Path("/checkpoint"), Path("/scratch"), Path("/out"), 2
        assert commands(changed, *places) != commands(spec_of(GPU_KEY), *places), name
        assert name in BUILD_OPTIONS


def test_families_that_plans_know_have_a_converter_or_a_reason() -> None:
    planner = pytest.importorskip("planner.model")
    known = {family.name for family in planner.FAMILIES.values()}
    assert set(CONVERTERS) == {family.name for family in planner.FAMILIES.values() if "tensorrt" in family.backends}
    for name in known - set(CONVERTERS):
        with pytest.raises(Refusal, match="no checkpoint converter"):
            commands(family(name), Path("/checkpoint"), Path("/scratch"), Path("/out"), 2)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (family("deepseek_v3"), "no checkpoint converter.*deepseek_v3"),
        (family("phi3", mapping={"pipeline_parallel": 2}), "pipeline parallelism"),
        (family("gemma2", mapping={"pipeline_parallel": 2}), "pipeline parallelism"),
        (quantised("int8_wo", model={"family": "deepseek_v2"}), "int8_wo weights"),
        (quantised("mxfp4"), "mxfp4 weights"),
        (quantised("fp8", "nvfp4"), "nvfp4 KV cache"),
        (spec_of(GPU_KEY, build={"use_custom_all_reduce": True}), "no option --use_custom_all_reduce"),
    ],
)
def test_what_the_tools_cannot_do_is_refused_before_they_run(spec: Spec, reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        commands(spec, Path("/checkpoint"), Path("/scratch"), Path("/out"), 2)


# A stand-in for python3: records its arguments and writes a TensorRT-LLM checkpoint's config.
CONVERT = """#!{python}
import json, pathlib, sys
args = sys.argv[1:]
pathlib.Path({log!r}).open("a").write(json.dumps(["python3", *args]) + "\\n")
out = pathlib.Path(args[args.index("--output_dir") + 1])
out.mkdir(parents=True)
tp, pp = (int(args[args.index(name) + 1]) for name in ("--tp_size", "--pp_size"))
mapping = dict(world_size=tp * pp, tp_size=tp, pp_size=pp, cp_size=1, gpus_per_node=8)
(out / "config.json").write_text(json.dumps(dict(architecture="LlamaForCausalLM", dtype="bfloat16", mapping=mapping)))
print("Total time of converting checkpoints: 00:00:01")
"""

# A stand-in for trtllm-build; `twist` is code that may change what it writes, or stop it.
BUILD = """#!{python}
import json, pathlib, sys
args = sys.argv[1:]
pathlib.Path({log!r}).open("a").write(json.dumps(["trtllm-build", *args]) + "\\n")
pathlib.Path("model.cache").write_text("timing cache, written where it stands")
source = pathlib.Path(args[args.index("--checkpoint_dir") + 1])
out = pathlib.Path(args[args.index("--output_dir") + 1])
pretrained = json.loads((source / "config.json").read_text())
config = dict(version="1.2.1", pretrained_config=pretrained, build_config={{}})
ranks = list(range(pretrained["mapping"]["world_size"]))
content = "engine"
print("[TRT-LLM] [I] building")
{twist}
(out / "config.json").write_text(json.dumps(config))
for rank in ranks:
    (out / f"rank{{rank}}.engine").write_text(content)
"""


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Something like the TensorRT-LLM image with two H100s; gives the log of its tools' command lines."""
    fake_nvidia_smi(
        tmp_path / "bin",
        "NVIDIA H100 80GB HBM3, 81559, 9.0, Disabled\n" * 2,
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n",
    )
    install_versions(tmp_path / "site", tensorrt_llm="1.2.1", tensorrt="10.14.1.48.post1")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")

    def with_twist(twist: str = "") -> Path:
        log = tmp_path / "tools.log"
        for name, text in (("python3", CONVERT), ("trtllm-build", BUILD)):
            tool = tmp_path / "bin" / name
            tool.write_text(
                text.format(python="/usr/bin/env -S " + os.path.realpath("/proc/self/exe"), log=str(log), twist=twist)
            )
            tool.chmod(0o755)
        return log

    return with_twist


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (tmp_path / "blob").write_text('{"model": {}}')
    (folder / "tokenizer.json").symlink_to(tmp_path / "blob")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def publish(store: Path, checkpoint: Path, spec: Spec, lines: list[str] | None = None) -> Path:
    return build_engine(spec, checkpoint, store, ([] if lines is None else lines).append)


def test_a_build_gives_a_loadable_engine(image: Callable[[str], Path], checkpoint: Path, tmp_path: Path) -> None:
    log = image("")
    spec, lines = spec_of(GPU_KEY), list[str]()
    engine = publish(tmp_path / "store", checkpoint, spec, lines)
    assert check_loadable(engine, world_size=2, host=h100_host())["engine"] == spec["engine"]
    assert EngineStore(tmp_path / "store").verify(engine.name) == []
    files = {path.relative_to(engine).as_posix() for path in engine.rglob("*") if path.is_file()}
    tokenizer = {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}
    assert files == {"config.json", "manifest.json", "rank0.engine", "rank1.engine"} | tokenizer
    assert not (engine / "tokenizer" / "tokenizer.json").is_symlink()
    config = json.loads((engine / "config.json").read_text())
    assert config["pretrained_config"]["mapping"]["gpus_per_node"] == 4
    ran = [json.loads(line) for line in log.read_text().splitlines()]
    staging = Path(ran[1][ran[1].index("--output_dir") + 1])
    assert staging.parent == tmp_path / "store" / "staging"
    assert ran == commands(spec, checkpoint, staging / "scratch", staging, 2)
    assert "[TRT-LLM] [I] building" in lines


def test_gpus_per_node_reaches_the_build_and_the_runtime(
    image: Callable[[str], Path], checkpoint: Path, tmp_path: Path
) -> None:
    image("content = str(pretrained['mapping']['gpus_per_node']); pretrained['mapping']['gpus_per_node'] = 8")
    engine = publish(tmp_path / "store", checkpoint, spec_of(GPU_KEY))
    assert (engine / "rank0.engine").read_text() == "4"
    config = json.loads((engine / "config.json").read_text())
    assert config["pretrained_config"]["mapping"]["gpus_per_node"] == 4


@pytest.mark.parametrize(
    ("twist", "reason"),
    [
        ("sys.exit('CUDA out of memory')", "(?s)trtllm-build failed with exit status 1.*\nCUDA out of memory"),
        ("import os; os.kill(os.getpid(), 9)", "trtllm-build was killed by signal 9"),
        ("pretrained['mapping']['world_size'] = 4", "world_size 4, the plan 2"),
        ("pretrained['mapping']['tp_size'], pretrained['mapping']['pp_size'] = 1, 2", "tp_size 1, the plan 2"),
        ("config['version'] = '1.2.0'", "version 1.2.0, the plan 1.2.1"),
        ("pretrained['dtype'] = 'float16'", "dtype float16, the plan bfloat16"),
        ("ranks = [0]", "rank1.engine is missing or empty"),
        ("ranks = [0, 1, 2]", "more engines than ranks: rank2.engine"),
        ("content = ''", "rank0.engine is missing or empty"),
        ("config = []", "config.json is unreadable or incomplete"),
    ],
)
def test_tools_that_fail_or_lie_are_refused_and_nothing_stays(
    image: Callable[[str], Path], checkpoint: Path, tmp_path: Path, twist: str, reason: str
) -> None:
    image(twist)
    with pytest.raises(Refusal, match=reason):
        publish(tmp_path / "store", checkpoint, spec_of(GPU_KEY))
    assert list((tmp_path / "store" / "staging").iterdir()) == []
    assert list((tmp_path / "store" / "engines").iterdir()) == []


def test_an_engine_is_not_built_under_a_key_of_another_host(
    image: Callable[[str], Path], checkpoint: Path, tmp_path: Path
) -> None:
    log = image("")
    for spec in (
        spec_of(GPU_KEY, target={"gpu": "A100-80GB", "compute_capability": "8.0"}),
        spec_of(GPU_KEY, versions={"tensorrt_llm": "1.2.0"}),
    ):
        with pytest.raises(Refusal, match="this host has"):
            publish(tmp_path / "store", checkpoint, spec)
    assert not log.exists()


def test_outside_the_image_the_missing_tool_is_named(
    image: Callable[[str], Path], checkpoint: Path, tmp_path: Path
) -> None:
    image("")
    (tmp_path / "bin" / "trtllm-build").unlink()
    with pytest.raises(Refusal, match="trtllm-build cannot be started"):
        publish(tmp_path / "store", checkpoint, spec_of(GPU_KEY))


def test_a_checkpoint_without_a_tokenizer_is_refused_first(
    image: Callable[[str], Path], checkpoint: Path, tmp_path: Path
) -> None:
    log = image("")
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(Refusal, match="no tokenizer"):
        publish(tmp_path / "store", checkpoint, spec_of(GPU_KEY))
    assert not log.exists()
