"""The `tensorrt` backend: convert or quantise a Hugging Face checkpoint, then `trtllm-build` one engine per rank.

Command lines are those of TensorRT-LLM 1.2.1, whose tools and scripts exist only in its container image; options were
read from examples/models/*/*/convert_checkpoint.py, examples/quantization/quantize.py, tensorrt_llm/commands/build.py
and tensorrt_llm/plugin/plugin.py.
"""

import collections
import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import Refusal
from runtime.hf_folder import copy_tokenizer, engine_mapping, read_config
from runtime.host import host_facts
from runtime.spec import Spec, rank_files, world_size

EXAMPLES = "/app/examples"
TAIL_LINES = 20


@dataclass(frozen=True)
class Converter:
    """A family's convert_checkpoint.py: its folder under examples/models and what it cannot do."""

    folder: str
    pipeline_parallel: bool = True
    weight_only: bool = True
    gemma_options: bool = False


CONVERTERS = {
    "llama": Converter("core/llama"),
    "mistral": Converter("core/llama"),
    "mixtral": Converter("core/llama"),
    "qwen2": Converter("core/qwen"),
    "qwen3": Converter("core/qwen"),
    "qwen3_moe": Converter("core/qwen"),
    "gemma2": Converter("core/gemma", pipeline_parallel=False, gemma_options=True),
    "phi3": Converter("core/phi", pipeline_parallel=False),
    "deepseek_v2": Converter("contrib/deepseek_v2", weight_only=False),
}

WEIGHT_ONLY = {"int8_wo": "int8", "int4_wo": "int4"}
QFORMATS = ("fp8", "nvfp4", "int4_awq", "w4a8_awq", "int8_sq", *WEIGHT_ONLY)

# Options of trtllm-build that take a value; yes/no ones among them take enable|disable.
_OPTIONS = """
    max_batch_size max_input_len max_seq_len max_beam_width max_num_tokens opt_num_tokens kv_cache_type
    bert_attention_plugin gpt_attention_plugin gemm_plugin gemm_swiglu_plugin fp8_rowwise_gemm_plugin lora_plugin
    dora_plugin moe_plugin mamba_conv1d_plugin nccl_plugin low_latency_gemm_plugin low_latency_gemm_swiglu_plugin
    gemm_allreduce_plugin context_fmha bert_context_fmha_fp32_acc remove_input_padding tokens_per_block
    use_paged_context_fmha use_fp8_context_fmha fuse_fp4_quant multiple_profiles paged_state streamingllm
    norm_quant_fusion reduce_fusion user_buffer use_fused_mlp pp_reduce_scatter
"""
BUILD_OPTIONS = frozenset(_OPTIONS.split())


def build(checkpoint: Path, spec: Spec, out: Path, progress: Callable[[str], None]) -> None:
    """Write config.json, rank<r>.engine and tokenizer/ into `out`; raises Refusal with the tool's last lines."""
    read_config(checkpoint)
    copy_tokenizer(checkpoint, out)
    scratch = out / "scratch"
    scratch.mkdir()
    prepare, compile_ = commands(spec, checkpoint, scratch, out, len(host_facts()["gpus"]))
    _run(prepare, scratch, progress)
    _set_gpus_per_node(_checkpoint_folder(scratch) / "config.json", spec)
    _run(compile_, scratch, progress)
    shutil.rmtree(scratch)
    _check_output(out, spec)
    _set_gpus_per_node(out / "config.json", spec)


def commands(spec: Spec, checkpoint: Path, workdir: Path, out: Path, gpus: int) -> list[list[str]]:
    """The two command lines: checkpoint -> TensorRT-LLM checkpoint in `workdir` -> engines in `out`; raises Refusal."""
    key = spec["key"]
    converter = CONVERTERS.get(key["model"]["family"])
    if converter is None:
        raise Refusal(
            f"TensorRT-LLM 1.2.1 has no checkpoint converter for family {key['model']['family']!r}",
            "no engine can be built for this model",
            f"use backend: pytorch; families with a converter: {', '.join(CONVERTERS)}",
        )
    workers = str(max(1, min(gpus, world_size(key))))
    target = _checkpoint_folder(workdir)
    weights, kv_cache = key["quantization"]["weights"], key["quantization"]["kv_cache"]
    if kv_cache == "none" and (weights == "none" or weights in WEIGHT_ONLY):
        prepare = _convert(converter, key, checkpoint, target, workers)
    else:
        # Scales of a quantised KV cache need calibration too, which only quantize.py does for every family.
        prepare = _quantize(key, checkpoint, target)
    compile_ = ["trtllm-build", "--checkpoint_dir", str(target), "--output_dir", str(out), "--workers", workers]
    return [prepare, compile_ + _build_options(key["build"])]


def _checkpoint_folder(workdir: Path) -> Path:
    return workdir / "checkpoint"


def _convert(converter: Converter, key: dict[str, Any], checkpoint: Path, target: Path, workers: str) -> list[str]:
    mapping, weights = key["mapping"], key["quantization"]["weights"]
    if mapping["pipeline_parallel"] > 1 and not converter.pipeline_parallel:
        raise _cannot_convert(key, "pipeline parallelism", "set pipeline_parallel to 1")
    if weights != "none" and not converter.weight_only:
        raise _cannot_convert(key, f"{weights} weights", "set quantization.weights to none or fp8")
    tp, pp = str(mapping["tensor_parallel"]), str(mapping["pipeline_parallel"])
    line = ["python3", f"{EXAMPLES}/models/{converter.folder}/convert_checkpoint.py"]
    if converter.gemma_options:
        line += ["--ckpt-type", "hf", "--model-dir", str(checkpoint), "--output-model-dir", str(target)]
        line += ["--dtype", key["dtype"], "--world-size", tp]
    else:
        line += ["--model_dir", str(checkpoint), "--output_dir", str(target), "--dtype", key["dtype"]]
        line += ["--tp_size", tp, "--pp_size", pp, "--workers", workers]
    if weights in WEIGHT_ONLY:
        line += ["--use_weight_only", "--weight_only_precision", WEIGHT_ONLY[weights]]
    return line


def _quantize(key: dict[str, Any], checkpoint: Path, target: Path) -> list[str]:
    mapping, weights, kv_cache = key["mapping"], key["quantization"]["weights"], key["quantization"]["kv_cache"]
    if weights not in ("none", *QFORMATS) or kv_cache not in ("none", "fp8", "int8"):
        raise _cannot_convert(key, f"{weights} weights with a {kv_cache} KV cache", f"use one of {', '.join(QFORMATS)}")
    line = ["python3", f"{EXAMPLES}/quantization/quantize.py"]
    line += ["--model_dir", str(checkpoint), "--output_dir", str(target), "--dtype", key["dtype"]]
    line += ["--qformat", "full_prec" if weights == "none" else weights, "--calib_size", "512"]
    line += ["--tp_size", str(mapping["tensor_parallel"]), "--pp_size", str(mapping["pipeline_parallel"])]
    if weights.endswith("_awq"):
        line += ["--awq_block_size", "128"]
    if kv_cache != "none":
        line += ["--kv_cache_dtype", kv_cache]
    return line


def _cannot_convert(key: dict[str, Any], what: str, fix: str) -> Refusal:
    return Refusal(
        f"TensorRT-LLM 1.2.1's tools for family {key['model']['family']} do not do {what}",
        "the build would fail after loading the checkpoint",
        f"{fix}; or use backend: pytorch",
    )


def _build_options(flags: dict[str, Any]) -> list[str]:
    line: list[str] = []
    for name, value in sorted(flags.items()):
        if name not in BUILD_OPTIONS:
            raise Refusal(
                f"trtllm-build 1.2.1 has no option --{name}",
                "the build would stop at its command line after the checkpoint was converted",
                f"remove build.{name} from the stack",
            )
        text = ("enable" if value else "disable") if isinstance(value, bool) else str(value)
        line += [f"--{name}", text]
    return line


def _run(line: list[str], cwd: Path, progress: Callable[[str], None]) -> None:
    """Run a tool in `cwd` (trtllm-build writes a timing cache where it stands), its output going to `progress`."""
    progress(f"running {shlex.join(line)}")
    tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
    try:
        # Its own process group: these tools start workers that must end with it.
        process = subprocess.Popen(
            line,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise Refusal(
            f"{line[0]} cannot be started: {error.strerror}",
            "no engine was built",
            "build inside the TensorRT-LLM 1.2.1 image, where its tools are",
        ) from None
    with process:
        try:
            assert process.stdout is not None
            for text in process.stdout:
                tail.append(text.rstrip())
                progress(text.rstrip())
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if status != 0:
        ended = f"was killed by signal {-status}" if status < 0 else f"failed with exit status {status}"
        raise Refusal(
            f"{Path(line[1]).name if line[0] == 'python3' else line[0]} {ended}; its last lines:\n" + "\n".join(tail),
            "no engine was built, and what it had written was removed",
            "read the lines above: out of memory wants more TP or PP, a missing module wants the TensorRT-LLM image",
        )


def _set_gpus_per_node(config: Path, spec: Spec) -> None:
    """trtllm-build has no option for it: it takes the checkpoint's value (8), and the runtime takes config.json's."""
    try:
        value = json.loads(config.read_text(encoding="utf-8"))
        mapping = value.get("pretrained_config", value)["mapping"]
        mapping["gpus_per_node"] = spec["key"]["mapping"]["gpus_per_node"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _lying(f"{config.name} has no mapping ({error})") from None
    config.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")


def _check_output(out: Path, spec: Spec) -> None:
    """Refuse an output that is not the engine the key names: tools have been seen to end well and build another one."""
    try:
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        found = {**config["pretrained_config"]["mapping"], "dtype": config["pretrained_config"]["dtype"]}
        found["version"] = config["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _lying(f"its config.json is unreadable or incomplete ({error})") from None
    wanted = {**engine_mapping(spec), "dtype": spec["key"]["dtype"], "version": spec["key"]["versions"]["tensorrt_llm"]}
    for name, value in wanted.items():
        if name != "gpus_per_node" and found.get(name) != value:
            raise _lying(f"config.json says {name} {found.get(name)}, the plan {value}")
    for name in rank_files(spec["key"]):
        if not (out / name).is_file() or (out / name).stat().st_size == 0:
            raise _lying(f"{name} is missing or empty")
    extra = sorted(path.name for path in out.glob("rank*.engine") if path.name not in rank_files(spec["key"]))
    if extra:
        raise _lying(f"there are more engines than ranks: {', '.join(extra)}")


def _lying(what: str) -> Refusal:
    return Refusal(
        f"trtllm-build ended well, but {what}",
        "the engine would fail on a rank while loading; it was removed",
        "build with the image that the plan's versions name",
    )
