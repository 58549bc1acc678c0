"""A model's Triton repository from its plan: five upstream models, the same to a client on every backend.

`ensemble` and `tensorrt_llm_bls` take and give the same tensors whatever the backend:

- tensorrt: preprocessing -> tensorrt_llm (the C++ backend "tensorrtllm") -> postprocessing.
- cpu: the same with this project's own python engine as tensorrt_llm.
- pytorch: tensorrt_llm is the LLM API model of the serving image, at /app/all_models/llmapi/tensorrt_llm. It takes and
  gives text under names of its own, so there is no preprocessing or postprocessing: tensorrt_llm_bls translates, and
  the ensemble has that one step. The rendered tensorrt_llm/1/model.py loads the image's model where it lies and gives
  it the engine's llm_args.yaml with serving.json on top. The launcher copies nothing.

tensorrt_llm_bls is the one to stream from. The ensemble detokenises each response by itself, so a character split over
two tokens comes out as U+FFFD there, as upstream; and a client that cancels a gRPC stream of an ensemble now and then
crashes tritonserver 2.51 (seen after a few hundred; never with tensorrt_llm_bls). Both leave a matched stop word at the
end of the text, as upstream.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

from google.protobuf import text_format
from google.protobuf.message import Message

from model_repo import configs
from planner.plan import ModelPlan

HERE = Path(__file__).parent
VERSION = "1"


def render(model: ModelPlan, engine_dir: str) -> dict[str, bytes]:
    """The files of the repository, by path inside it. `engine_dir` is where the engine lies when Triton runs."""
    pytorch = model.config.backend == "pytorch"
    messages = [configs.tensorrt_llm(model, engine_dir), configs.tensorrt_llm_bls(model, engine_dir)]
    if not pytorch:
        messages += [configs.preprocessing(model, engine_dir), configs.postprocessing(model, engine_dir)]
    messages.append(configs.ensemble(model))

    files = {f"{message.name}/config.pbtxt": _pbtxt(message) for message in messages}
    # Triton wants a version directory in every model, and a ConfigMap or git cannot hold an empty one.
    files |= {f"{message.name}/{VERSION}/.keep": b"" for message in messages if message.backend != "python"}
    for name in [message.name for message in messages if message.backend == "python"]:
        source = "llm_api" if pytorch and name == "tensorrt_llm" else name
        files |= _code(HERE / source / VERSION, f"{name}/{VERSION}")
        if name != "tensorrt_llm":
            files |= _code(HERE / "shared", f"{name}/{VERSION}")
    if pytorch:
        files[f"tensorrt_llm/{VERSION}/serving.json"] = _llm_api_serving(model, engine_dir)
    return dict(sorted(files.items()))


def write(files: dict[str, bytes], out: Path) -> None:
    """Put the files at `out`, replacing what was there: whole, or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        new, old = staging / "new", staging / "old"
        for name, content in files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if out.exists():
            os.rename(out, old)
        os.rename(new, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _pbtxt(message: Message) -> bytes:
    return text_format.MessageToString(message, use_short_repeated_primitives=True).encode()


def _code(folder: Path, target: str) -> dict[str, bytes]:
    return {f"{target}/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.py"))}


def _llm_api_serving(model: ModelPlan, engine_dir: str) -> bytes:
    """What the LLM API gets besides the engine's own arguments: fields of LlmArgs 1.2.1 that no engine key covers."""
    serving = model.config.serving
    content = {
        "llm_args": f"{engine_dir}/llm_args.yaml",
        "update": {
            "kv_cache_config": {
                "free_gpu_memory_fraction": serving.kv_cache_free_gpu_mem_fraction,
                "enable_block_reuse": serving.enable_kv_cache_reuse,
            },
            "enable_chunked_prefill": serving.enable_chunked_context,
            "scheduler_config": {"capacity_scheduler_policy": serving.batch_scheduler_policy.upper()},
        },
        "triton_config": {
            "max_batch_size": 0,
            "decoupled": True,
            "cancellation_check_period_ms": configs.CANCELLATION_CHECK_PERIOD_MS,
        },
    }
    return json.dumps(content, indent=2).encode() + b"\n"
