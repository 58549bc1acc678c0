"""What both GPU builders take from a Hugging Face checkpoint folder besides its weights."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

from runtime.errors import Refusal
from runtime.spec import Spec, world_size

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; raises Refusal."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
        return cast(dict[str, Any], config)
    except (OSError, ValueError) as error:
        raise Refusal(
            f"checkpoint {folder} has no readable config.json: {error}",
            "the model's shape is unknown, so nothing can be built from it",
            "pass a Hugging Face checkpoint folder (config.json, *.safetensors, tokenizer.json)",
        ) from None


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy the tokenizer's files to `out`/tokenizer; raises Refusal where there is no tokenizer."""
    present = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & set(present):
        raise Refusal(
            f"checkpoint {folder} has no tokenizer (none of tokenizer.json, tokenizer.model, vocab.json)",
            "the engine could not be served: there would be nothing to turn text into tokens",
            "add the tokenizer's files to the checkpoint folder",
        )
    tokenizer = out / "tokenizer"
    tokenizer.mkdir()
    for name in present:
        shutil.copyfile(folder / name, tokenizer / name)  # follows links: Hugging Face caches are made of them


def engine_mapping(spec: Spec) -> dict[str, int]:
    """The `mapping` of TensorRT-LLM's config.json for an engine key."""
    mapping = spec["key"]["mapping"]
    return {
        "world_size": world_size(spec["key"]),
        "tp_size": mapping["tensor_parallel"],
        "pp_size": mapping["pipeline_parallel"],
        "cp_size": 1,
        "gpus_per_node": mapping["gpus_per_node"],
    }
