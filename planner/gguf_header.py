"""A GGUF file's header as a Hugging Face config. Reads the header alone, with every length checked against the file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from planner.errors import PlanError, Problem, shown

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_ENTRIES = 1 << 22


def read_gguf_config(path: Path, key: str) -> dict[str, Any]:
    """The keys of config.json that planner.model reads. Raises PlanError for a damaged or unknown file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            fields, tensors = _Header(data).read()
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        what = f"{shown(str(path))[1:-1]}: the GGUF header is damaged ({shown(str(error))[1:-1]})"
        fix = "fetch the file again; it must be little-endian GGUF version 2 or 3"
        raise PlanError([Problem(key=key, what=what, consequence="nothing is known of the model", fix=fix)]) from None
    return _config(fields, tensors, key)


def _config(fields: dict[str, Any], tensors: set[str], key: str) -> dict[str, Any]:
    name = fields.get("general.architecture")
    if name not in _ARCHITECTURES or f"{name}.expert_count" in fields:
        what = (
            f"GGUF architecture {shown(name)}{' with experts' if name in _ARCHITECTURES else ''} is not read from GGUF"
        )
        fix = f"give `config:` with the model's config.json; read are {', '.join(_ARCHITECTURES)}"
        raise PlanError(
            [
                Problem(
                    key=f"{key}.general.architecture", what=what, consequence="nothing is known of the model", fix=fix
                )
            ]
        )
    tokens = fields.get("tokenizer.ggml.tokens")
    named = {
        "num_hidden_layers": "block_count",
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
        "max_position_embeddings": "context_length",
        "rope_theta": "rope.freq_base",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    }
    config = {ours: fields.get(f"{name}.{theirs}") for ours, theirs in named.items()}
    scaling = fields.get(f"{name}.rope.scaling.type")
    return config | {
        "architectures": [_ARCHITECTURES[name]],
        "vocab_size": fields.get(f"{name}.vocab_size", tokens),
        "tie_word_embeddings": "output.weight" not in tensors,
        # Llama 3's scaling is stored as a tensor of factors, without a name.
        "rope_scaling": {"rope_type": "llama3" if "rope_freqs.weight" in tensors else scaling or "default"},
        "attention_bias": name == "llama" and "blk.0.attn_q.bias" in tensors,
    }


class _Header:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 4

    def read(self) -> tuple[dict[str, Any], set[str]]:
        """Key-values (an array only as its length) and the names of all tensors."""
        version = self.scalar("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        tensors, pairs = self.scalar("Q"), self.scalar("Q")
        if max(tensors, pairs) > _MOST_ENTRIES:
            raise ValueError("more entries than any model has")
        fields = {self.string(): self.value(self.scalar("I")) for _ in range(pairs)}
        return fields, {self.tensor_name() for _ in range(tensors)}

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.skip_array()
        if kind not in _SCALARS:
            raise ValueError(f"value type {kind}")
        return self.scalar(_SCALARS[kind])

    def skip_array(self) -> int:
        kind, length = self.scalar("I"), self.scalar("Q")
        if length > _MOST_ENTRIES:
            raise ValueError("an array longer than any vocabulary")
        if kind == _STRING:
            for _ in range(length):
                self.skip(self.scalar("Q"))
        elif kind in _SCALARS:
            self.skip(length * struct.calcsize("<" + _SCALARS[kind]))
        else:
            raise ValueError(f"array of type {kind}")
        return length

    def tensor_name(self) -> str:
        name = self.string()
        dimensions = self.scalar("I")
        self.skip(8 * dimensions + 4 + 8)
        return name

    def string(self) -> str:
        length = self.scalar("Q")
        start = self.at
        self.skip(length)
        return self.data[start : self.at].decode("utf-8")

    def scalar(self, code: str) -> Any:
        start = self.at
        self.skip(struct.calcsize("<" + code))
        return struct.unpack_from("<" + code, self.data, start)[0]

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise ValueError("it ends early")
