"""Triton's `tensorrt_llm` model on the pytorch backend: the LLM API model of the serving image, loaded where it lies.

It reads its arguments from the YAML file that LLM_CONFIG_PATH names. That file is made here, from the engine's
llm_args.yaml (what the engine key covers) with serving.json on top (what may change without a new engine). Both are
written as JSON, which is YAML.
"""

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

IMAGE_MODEL = Path("/app/all_models/llmapi/tensorrt_llm/1/model.py")


def _write_arguments() -> str:
    serving = json.loads(Path(__file__).with_name("serving.json").read_text(encoding="utf-8"))
    arguments = json.loads(Path(serving["llm_args"]).read_text(encoding="utf-8"))
    arguments = _merged(arguments, serving["update"]) | {"triton_config": serving["triton_config"]}
    handle, path = tempfile.mkstemp(suffix=".yaml", text=True)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(arguments, file)
    return path


def _merged(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    below = {name: _merged(base[name], value) for name, value in update.items() if isinstance(base.get(name), dict)}
    return base | update | below


def _load_image_model() -> Any:
    sys.path.insert(0, str(IMAGE_MODEL.parent))  # it imports its helpers.py
    spec = importlib.util.spec_from_file_location("llmapi_model", IMAGE_MODEL)
    if spec is None or spec.loader is None or not IMAGE_MODEL.is_file():
        raise FileNotFoundError(
            f"{IMAGE_MODEL} is missing; the pytorch backend cannot serve; use a tritonserver …-trtllm-python-py3 image"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


os.environ["LLM_CONFIG_PATH"] = _write_arguments()
TritonPythonModel = _load_image_model().TritonPythonModel
